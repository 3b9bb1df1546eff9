"""How the losses of the tasks and parts of an update become one gradient.

The paper adds the losses of the tasks. train.py --weighting has two alternatives, which the paper
cites (Section 1) and the released code has. Shared parameters: the encoder and the layer weights.
All others belong to one head. DIFFERS marks a deviation from the authors' released code.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from engine.launch import rank, world_size
from model import MultiTask
from scenarios import RunConfig


def backward(network, model: MultiTask, config: RunConfig, step: int,
             parts: list[dict]) -> dict[str, Tensor]:
    """Compute the gradients of one update, and return the losses of the heads {task: scalar}.

    In the paper, the loss is the plain sum over the tasks (`weighting` "sum").
    """
    losses = dict.fromkeys(model.heads, 0.0)
    passes = forward_passes(network, model, config, step, parts)
    for number, (forward, batches) in enumerate(zip(passes, parts)):
        with average_if(number == len(parts) - 1, network):
            if config.weighting == "pcgrad":
                order_seed = config.seed * config.steps + step  # another one for each (seed, step)
                found = pcgrad_backward(forward, batches, model, order_seed)
            elif config.weighting == "uncertainty":
                found = forward(batches)
                uncertainty_total(found, model.log_sigma).backward()
            else:
                found = forward(batches)
                sum(found.values()).backward()
        for task, loss in found.items():
            losses[task] = losses[task] + loss.detach()
    return losses


def forward_passes(network, model: MultiTask, config: RunConfig, step: int,
                   parts: list[dict]) -> list[Callable]:
    """`weighted_losses` for each part of an update, as a function of its batches."""
    passes = []
    for number, weights in enumerate(loss_weights(model, parts)):
        # Masks and dropout follow from this key, so a resumed run draws the same ones.
        random_key = (config.seed, step, rank() + number * world_size())
        passes.append(partial(weighted_losses, network, config, random_key, weights))
    return passes


def weighted_losses(network, config: RunConfig, random_key: tuple, weights: dict[str, float],
                    batches: dict) -> dict[str, Tensor]:
    """A forward pass of some tasks: {task: batch} -> {task: loss times its weight}."""
    device, bf16 = next(network.parameters()).device, config.precision == "bf16"
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        losses = network(batches, random_key)  # {task: scalar}
    return {task: loss * weights[task] for task, loss in losses.items()}


def average_if(last: bool, network) -> AbstractContextManager:
    """Inside, DDP averages gradients over processes only for the `last` part of an update."""
    if last or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    return network.no_sync()


def loss_weights(model, parts: list[dict]) -> list[dict]:
    """The weight of each loss of an update, so that its gradient is that of the whole batch.

    An update has `parts` [{task: batch}, ...] in each process. A head's loss is a mean over
    `num_loss_terms` terms. Its weight is its share of the terms of all parts and processes, times
    the number of processes, because DDP averages the gradients over processes.
    Each process must pass the same tasks in the same order: `all_reduce` adds by position.
    """
    # DIFFERS: the released code gives processes equal weight, whatever their shares are.
    terms = []  # (parts, tasks)
    for part in parts:
        terms.append([head.num_loss_terms(part[task].targets)
                      for task, head in model.heads.items()])
    totals = [sum(column) for column in zip(*terms)]  # of each task
    processes = 1
    if dist.is_initialized():
        processes = dist.get_world_size()
        device = model.layer_sum.weights.device
        totals = torch.tensor(totals, dtype=torch.float32).to(device, non_blocking=True)
        dist.all_reduce(totals)  # now the sums over all processes
    weights = []
    for own_terms in terms:
        weights.append({task: own * processes / total
                        for task, own, total in zip(model.heads, own_terms, totals)})
    return weights


# Two alternatives to the sum


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


def pcgrad_backward(forward: Callable, batches: dict, model, key: int) -> dict[str, Tensor]:
    """Gradient surgery (PCGrad, Yu et al. 2020): a forward and a backward pass for each task.

    Fills `.grad` of every trained parameter of `model`, a MultiTask, and returns the losses. Heads
    get the gradient of their loss. Shared parameters get the result of `combine_conflicting`. Its
    random order follows from `key`, which must be the same in all processes.
    """
    losses, task_gradients = shared_gradients(forward, batches, model)
    if dist.is_initialized():
        for parameter in model.heads.parameters():
            if parameter.requires_grad:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
    # The gradient of a task is its mean over processes, so only tasks can conflict here.
    total = combine_conflicting(task_gradients, torch.Generator().manual_seed(key))
    shared = shared_parameters(model)
    for parameter, gradient in zip(shared, total.split([p.numel() for p in shared])):
        parameter.grad = gradient.view_as(parameter)
    return losses


def shared_parameters(model) -> list[Tensor]:
    """The trained parameters that all tasks share: of the encoder, and the layer weights."""
    shared = [*model.encoder.parameters(), *model.layer_sum.parameters()]
    return [p for p in shared if p.requires_grad]


def shared_gradients(forward: Callable, batches: dict,
                     model) -> tuple[dict[str, Tensor], Tensor]:
    """The losses {task: scalar} and their gradients (tasks, shared parameters).

    `forward({task: batch})` returns {task: loss}. A task has a forward pass of its own, because the
    backward pass of one loss of a common forward pass would go through the frames of all tasks.
    The gradients are averaged over processes. Those of the heads stay in `.grad`, not averaged.
    """
    losses, rows = {}, []
    for task, batch in batches.items():
        loss = forward({task: batch})[task]
        loss.backward()
        losses[task] = loss.detach()
        flat = []
        for parameter in shared_parameters(model):
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:  # the task does not use this parameter
                gradient = torch.zeros_like(parameter)
            flat.append(gradient.flatten())
        rows.append(torch.cat(flat))
    gradients = torch.stack(rows)
    if dist.is_initialized():
        dist.all_reduce(gradients)
        gradients /= dist.get_world_size()
    return losses, gradients


def combine_conflicting(task_gradients: Tensor, generator: torch.Generator) -> Tensor:
    """The sum of the projected task gradients: (tasks, parameters) -> (parameters,).

    Two gradients conflict if their dot product is negative. Then we remove from g_i its component
    along the unprojected g_j. The other tasks j come in random order:
        g_i <- g_i - ((g_i . g_j) / |g_j|^2) g_j        if g_i . g_j < 0
    A projected g_i is a weighted sum of the unprojected gradients. The loop changes only its
    weights, row i of `weights`. For this it needs only the dot products of the unprojected
    gradients. So the gradients are read twice: for these products, and for the final sum.
    DIFFERS: the released code takes the mean over tasks, which divides the encoder's gradient by
    the number of tasks. It also projects the gradient of each weight matrix separately.
    """
    tasks = len(task_gradients)
    products = (task_gradients @ task_gradients.T).cpu().double()  # of the unprojected gradients
    weights = torch.eye(tasks).double()  # row i: the projected g_i, a sum of unprojected gradients
    for i in range(tasks):
        for j in torch.randperm(tasks, generator=generator).tolist():
            dot_product = weights[i] @ products[:, j]
            if j != i and dot_product < 0:
                weights[i, j] -= dot_product / products[j, j]
    return weights.sum(0).to(task_gradients) @ task_gradients


# What the gradients of the tasks have in common


def measure_affinity(model: MultiTask, config: RunConfig, step: int,
                     parts: list[dict]) -> dict[str, dict[str, float]]:
    """The cosine between the gradients of each two tasks on the shared weights, for one update.

    {task: {task: cosine}}; None if one of the two gradients is 0, because its loss is 0. Nothing
    else changes: no gradient is left, and each update seeds its own random numbers. DDP is not
    used: `shared_gradients` averages over processes.
    """
    gradients = 0.0
    for forward, batches in zip(forward_passes(model, model, config, step, parts), parts):
        tasks = {task: batches[task] for task in config.tasks}  # without masked prediction
        gradients = gradients + shared_gradients(forward, tasks, model)[1]
    model.zero_grad()
    # A cosine does not depend on lengths. Without this, squares of a small gradient would be 0.
    gradients = gradients / gradients.abs().amax(1, keepdim=True)  # NaN without a gradient
    products = gradients @ gradients.T  # (tasks, tasks)
    lengths = products.diag().sqrt()
    affinity = {}
    for task, row in zip(config.tasks, (products / lengths / lengths[:, None]).tolist()):
        affinity[task] = {other: None if math.isnan(cosine) else round(cosine, 4)
                          for other, cosine in zip(config.tasks, row)}
    return affinity
