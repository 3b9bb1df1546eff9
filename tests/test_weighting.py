"""Weights of losses; gradient surgery on worked vectors. test_train.py has two real tasks."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import weighting
from weighting import combine_conflicting, loss_weights, pcgrad_backward


class Model(nn.Module):
    """The parts of MultiTask that gradient surgery uses: three shared numbers, a head per task."""

    def __init__(self):
        super().__init__()
        self.encoder, self.layer_sum = nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.heads = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in "ab"})


class Counts:
    """A head whose loss is a mean over all numbers in its targets."""

    def num_loss_terms(self, targets):
        return sum(targets)


def shares(parts, monkeypatch=None, others=None) -> list[dict]:
    """loss_weights of parts {task: targets}; `others`: the terms of a second process."""
    tasks = parts[0]
    model = SimpleNamespace(heads=dict.fromkeys(tasks, Counts()),
                            layer_sum=SimpleNamespace(weights=torch.zeros(1)))
    if others:
        monkeypatch.setattr(weighting, "dist", SimpleNamespace(
            is_initialized=lambda: True, get_world_size=lambda: 2,
            all_reduce=lambda totals: totals.add_(torch.tensor(others))))
    batches = [{task: SimpleNamespace(targets=t) for task, t in part.items()} for part in parts]
    return loss_weights(model, batches)


def test_one_part_in_one_process_has_weight_one():
    assert shares([{"a": [3, 4], "b": [5]}]) == [{"a": 1.0, "b": 1.0}]


def test_a_part_weighs_as_much_as_its_share_of_the_terms():
    assert shares([{"a": [1], "b": [2]}, {"a": [1, 2], "b": [2]}]) == [
        {"a": 0.25, "b": 0.5}, {"a": 0.75, "b": 0.5}]


def test_processes_with_unequal_shares_average_to_the_mean_over_all_terms(monkeypatch):
    # Two terms here and six in the other process, whose gradients DDP averages: 2/8 = (1/2) 0.5.
    (weights,) = shares([{"a": [2]}], monkeypatch, [6.0])
    assert float(weights["a"]) == 0.5


def combined(task_gradients, key):
    """`combine_conflicting` with the random order of a key."""
    return combine_conflicting(task_gradients, torch.Generator().manual_seed(key))


@pytest.mark.parametrize(
    "gradients, expected",
    [
        ([[1.0, 0], [0, 1]], [1.0, 1]),  # orthogonal: the plain sum
        ([[1.0, 0], [1, 1]], [2.0, 1]),  # agree: the plain sum
        ([[1.0, 0], [-1, 1]], [0.5, 1.5]),  # (1, 0) -> (0.5, 0.5) and (-1, 1) -> (0, 1)
        ([[1.0, 0], [-1, 0]], [0.0, 0]),  # opposite
        ([[1.0, 0], [0, 0]], [1.0, 0]),  # a task without a gradient
    ],
)
def test_only_conflicting_gradients_are_projected(gradients, expected):
    for key in range(4):
        assert combined(torch.tensor(gradients), key).tolist() == expected


def test_the_order_of_three_tasks_follows_from_the_key():
    gradients = torch.tensor([[1.0, 0.2], [-1.0, 1.0], [-0.5, -1.0]])
    totals = [tuple(combined(gradients, key).tolist()) for key in range(20)]
    assert totals == [tuple(combined(gradients, key).tolist()) for key in range(20)]
    assert len(set(totals)) > 1


def test_the_sum_of_projected_gradients_is_that_of_the_papers_loop():
    gradients = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    for key in range(20):
        generator, expected = torch.Generator().manual_seed(key), 0
        for i, projected in enumerate(gradients):
            for j in torch.randperm(6, generator=generator).tolist():
                dot_product = projected @ gradients[j]
                if j != i and dot_product < 0:
                    projected = projected - dot_product / gradients[j].norm() ** 2 * gradients[j]
            expected = expected + projected
        torch.testing.assert_close(combined(gradients, key), expected)


def losses_of(model: Model, batches: dict) -> dict:
    """The losses of "a", which uses all shared parameters, and of "b", which uses the encoder."""
    found = {}
    for task, x in batches.items():
        h = model.encoder(x)
        found[task] = model.heads[task](model.layer_sum(h) if task == "a" else h).sum()
    return found


def surgery(seed: int) -> list[torch.Tensor]:
    """All gradients of a random model after gradient surgery."""
    torch.manual_seed(seed)
    model, batches = Model(), {"a": torch.randn(1, 2), "b": torch.randn(1, 2)}
    pcgrad_backward(partial(losses_of, model), batches, model, key=0)
    return [parameter.grad for parameter in model.parameters()]


def test_a_shared_parameter_that_a_task_does_not_use_gets_no_gradient_from_it():
    torch.manual_seed(0)
    model, x = Model(), torch.tensor([[1.0, 2.0]])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()  # no conflict, so surgery is the plain sum
    losses = pcgrad_backward(partial(losses_of, model), {"a": x, "b": x}, model, key=0)
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    expected = losses_of(model, {"a": x, "b": x})
    sum(expected.values()).backward()
    assert losses == expected
    for gradient, parameter in zip(found, model.parameters()):
        torch.testing.assert_close(gradient, parameter.grad)


def test_gradients_are_averaged_over_processes_before_surgery(monkeypatch):
    """The other process has the same batches, so the average is what one process has."""
    expected = surgery(seed=1)
    both = SimpleNamespace(is_initialized=lambda: True, get_world_size=lambda: 2,
                           all_reduce=lambda tensor: tensor.mul_(2))
    monkeypatch.setattr(weighting, "dist", both)
    for ours, alone in zip(surgery(seed=1), expected):
        assert torch.equal(ours, alone)
