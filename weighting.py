"""Two alternatives to the plain sum of the task losses: train.py --weighting.

The paper cites both (Section 1), and the released code has both. Shared parameters are those of the
encoder and the weights of its hidden states. All other parameters belong to the head of one task.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def uncertainty_total(losses: dict[str, Tensor], log_sigma: Tensor) -> Tensor:
    """Uncertainty weighting (Kendall et al. 2018): the sum of loss / sigma^2 + log sigma, a scalar.

    log_sigma (tasks,) is learned. A task whose loss is noisy gets a large sigma and a small weight.
    DIFFERS: in the released code `.to("cuda")` makes log_sigma a plain tensor, which the optimiser
    does not update. Here it is a parameter.
    """
    terms = []
    for loss, log_s in zip(losses.values(), log_sigma):
        terms.append(loss / torch.exp(2 * log_s) + log_s)
    return sum(terms)


def pcgrad_backward(losses: dict[str, Tensor], model, step: int) -> None:
    """Gradient surgery (PCGrad, Yu et al. 2020): replaces `sum(losses.values()).backward()`.

    Fills `.grad` of every trained parameter of `model`, a MultiTask. Heads get the usual gradient,
    shared parameters that of `combine_conflicting`. Random numbers follow from `step`.
    """
    shared = [*model.encoder.parameters(), *model.layer_sum.parameters()]
    shared = [p for p in shared if p.requires_grad]
    own = [p for p in model.heads.parameters() if p.requires_grad]
    rows = []
    for loss in losses.values():
        gradients = torch.autograd.grad(loss, shared + own, retain_graph=True, allow_unused=True)
        rows.append(torch.cat([g.flatten() for g in gradients[: len(shared)]]))
        for p, g in zip(own, gradients[len(shared) :]):
            if g is None:  # a parameter of another task's head
                continue
            # Fused Adam wants contiguous gradients.
            p.grad = g.contiguous() if p.grad is None else p.grad + g
    task_gradients = torch.stack(rows)  # (tasks, shared parameters)
    if dist.is_initialized():
        # Average first: conflicts are those between tasks, not those between processes.
        for tensor in (task_gradients, *(p.grad for p in own)):
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()
    total = combine_conflicting(task_gradients, torch.Generator().manual_seed(step))
    for p, g in zip(shared, total.split([p.numel() for p in shared])):
        p.grad = g.view_as(p)


def combine_conflicting(task_gradients: Tensor, generator: torch.Generator) -> Tensor:
    """The sum of the projected task gradients: (tasks, parameters) -> (parameters,).

    Two gradients conflict if their product is negative. Then the gradient of a task loses its part
    along the original gradient of the other task. The other tasks come in random order:
        g_i <- g_i - (g_i . g_j) / |g_j|^2 g_j        if g_i . g_j < 0
    DIFFERS: the released code takes the mean over tasks, which divides the encoder's gradient by
    their number. It also projects the gradient of each weight matrix separately.
    """
    total = torch.zeros_like(task_gradients[0])
    for i, own in enumerate(task_gradients):
        projected = own.clone()
        for j in torch.randperm(len(task_gradients), generator=generator).tolist():
            other = task_gradients[j]
            product = projected @ other
            if j != i and product < 0:
                projected -= product / other.square().sum() * other
        total += projected
    return total
