"""How the losses of the parts and tasks of an update become one gradient.

The paper adds the losses of the tasks. train.py --weighting has two alternatives, which the paper
cites (Section 1) and the released code has. Shared parameters: the encoder and the layer weights.
All others belong to one head. DIFFERS marks a deviation from the authors' released code.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def loss_weights(model, parts: list[dict]) -> list[dict]:
    """The weight of each loss of an update, so that its gradient is that of the whole batch.

    An update has `parts` [{task: batch}, ...] in each process. A head's loss is a mean over
    `num_loss_terms` terms. Its weight is its share of the terms of all parts and processes, times
    the number of processes, because DDP averages the gradients over processes.
    Each process must pass the same tasks in the same order: `all_reduce` adds by position.
    """
    # DIFFERS: the released code gives processes equal weight, whatever their shares are.
    terms = [[model.heads[task].num_loss_terms(batch.targets) for task, batch in part.items()]
             for part in parts]  # (parts, tasks)
    totals, processes = [sum(column) for column in zip(*terms)], 1
    if dist.is_initialized():
        processes = dist.get_world_size()
        device = model.layer_sum.weights.device
        totals = torch.tensor(totals, dtype=torch.float32).to(device, non_blocking=True)
        dist.all_reduce(totals)  # now the sums over all processes
    weights = []
    for part, own_terms in zip(parts, terms):
        weights.append({task: own * processes / total
                        for task, own, total in zip(part, own_terms, totals)})
    return weights


def uncertainty_total(losses: dict[str, Tensor], log_sigma: Tensor) -> Tensor:
    """Uncertainty weighting (Kendall et al. 2018), a scalar.

        sum over tasks of (loss / sigma^2 + log sigma)
    log_sigma (tasks,) is learned. A task with a large loss gets a large sigma, so a small weight.
    DIFFERS: in the released code `nn.Parameter(...).to("cuda")` returns a non-leaf tensor, which
    the optimiser does not update. Here log_sigma is a parameter.
    """
    terms = []
    for loss, log_s in zip(losses.values(), log_sigma):
        terms.append(loss / torch.exp(2 * log_s) + log_s)
    return sum(terms)


def pcgrad_backward(losses: dict[str, Tensor], model, key: int) -> None:
    """Gradient surgery (PCGrad, Yu et al. 2020): replaces `sum(losses.values()).backward()`.

    Fills `.grad` of every trained parameter of `model`, a MultiTask. Heads get the summed gradient.
    Shared parameters get the result of `combine_conflicting`. Its random order follows from `key`,
    which must be the same in all processes.
    """
    shared = [*model.encoder.parameters(), *model.layer_sum.parameters()]
    shared = [p for p in shared if p.requires_grad]
    head_parameters = [p for p in model.heads.parameters() if p.requires_grad]
    shared_gradients = []
    for loss in losses.values():
        gradients = torch.autograd.grad(
            loss, shared + head_parameters, retain_graph=True, allow_unused=True
        )
        flat = []
        for parameter, gradient in zip(shared, gradients):
            if gradient is None:  # the task does not use this parameter
                gradient = torch.zeros_like(parameter)
            flat.append(gradient.flatten())
        shared_gradients.append(torch.cat(flat))
        for parameter, gradient in zip(head_parameters, gradients[len(shared) :]):
            if gradient is not None:  # this task's head: the sum has no other term
                parameter.grad = gradient.contiguous()  # fused Adam needs contiguous gradients
    shared_gradients = torch.stack(shared_gradients)  # (tasks, shared parameters)
    if dist.is_initialized():
        # We average over processes first, so only conflicts between tasks are projected.
        for tensor in (shared_gradients, *(p.grad for p in head_parameters)):
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()
    total = combine_conflicting(shared_gradients, torch.Generator().manual_seed(key))
    for parameter, gradient in zip(shared, total.split([p.numel() for p in shared])):
        parameter.grad = gradient.view_as(parameter)


def combine_conflicting(task_gradients: Tensor, generator: torch.Generator) -> Tensor:
    """The sum of the projected task gradients: (tasks, parameters) -> (parameters,).

    Two gradients conflict if their dot product is negative. Then we remove from g_i its component
    along the unprojected g_j. The other tasks j come in random order:
        g_i <- g_i - ((g_i . g_j) / |g_j|^2) g_j        if g_i . g_j < 0
    DIFFERS: the released code takes the mean over tasks, which divides the encoder's gradient by
    the number of tasks. It also projects the gradient of each weight matrix separately.
    """
    total = torch.zeros_like(task_gradients[0])
    for i, gradient in enumerate(task_gradients):
        projected = gradient.clone()
        for j in torch.randperm(len(task_gradients), generator=generator).tolist():
            other = task_gradients[j]
            dot_product = projected @ other
            if j != i and dot_product < 0:
                projected -= dot_product / other.square().sum() * other
        total += projected
    return total
