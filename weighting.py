"""How the losses of all tasks become one step where a plain sum (the paper) is not wanted: train.py --weighting.

The paper cites both methods, the released code offers both. Shared are the encoder and the layer weights.
"""
import torch
import torch.distributed as dist

def uncertainty_total(losses: dict[str, torch.Tensor], log_sigma: torch.Tensor) -> torch.Tensor:
    """Kendall et al. 2018: sum of loss / sigma^2 + log sigma, with one learned sigma per task: a noisy task gets a
    wide one.

    DIFFERS: in the released code `.to("cuda")` makes log_sigma a plain tensor that no optimiser moves; here it is a
    parameter.
    """
    return sum(loss / torch.exp(2 * s) + s for loss, s in zip(losses.values(), log_sigma))

def pcgrad_backward(losses: dict[str, torch.Tensor], model, step: int) -> None:
    """Gradient surgery (Yu et al. 2020) instead of `sum(losses).backward()`: fills `.grad` of every trained parameter.

    Each task's gradient of the shared parameters loses its component against any other task's, taken in random order;
    then they are summed. DIFFERS: the released code averages them, which divides the encoder's gradient by the number
    of tasks, and projects each weight matrix apart.
    """
    shared = [p for p in (*model.encoder.parameters(), *model.layer_sum.parameters()) if p.requires_grad]
    own = [p for p in model.heads.parameters() if p.requires_grad]
    rows = []
    for loss in losses.values():
        gradients = torch.autograd.grad(loss, shared + own, retain_graph=True, allow_unused=True)
        rows.append(torch.cat([g.flatten() for g in gradients[:len(shared)]]))
        for p, g in zip(own, gradients[len(shared):]):
            if g is not None:
                p.grad = g.contiguous() if p.grad is None else p.grad + g  # as fused Adam wants it
    originals = torch.stack(rows)  # (tasks, shared parameters)
    if dist.is_initialized():  # conflicts are between tasks, not between processes: average first
        for tensor in (originals, *(p.grad for p in own)):
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()
    total = torch.zeros_like(originals[0])
    order = torch.Generator().manual_seed(step)
    for i, gradient in enumerate(originals.clone()):
        for j in torch.randperm(len(rows), generator=order).tolist():
            against = gradient @ originals[j]
            if j != i and against < 0:
                gradient -= against / originals[j].square().sum() * originals[j]
        total += gradient
    for p, g in zip(shared, total.split([p.numel() for p in shared])):
        p.grad = g.view_as(p)
