"""Gradient surgery on worked vectors and a small model. test_train.py has two real tasks."""

import pytest
import torch
from torch import nn

from weighting import combine_conflicting, pcgrad_backward


class Model(nn.Module):
    """The parts of MultiTask that gradient surgery uses: three shared numbers, a head per task."""

    def __init__(self):
        super().__init__()
        self.encoder, self.layer_sum = nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.heads = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in "ab"})


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


def test_a_shared_parameter_that_a_task_does_not_use_gets_no_gradient_from_it():
    torch.manual_seed(0)
    model, x = Model(), torch.tensor([[1.0, 2.0]])

    def losses():
        h = model.encoder(x)
        return {
            "a": model.heads["a"](model.layer_sum(h)).sum(),
            "b": model.heads["b"](h).sum(),
        }

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()  # no conflict, so surgery is the plain sum
    pcgrad_backward(losses(), model, key=0)
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    sum(losses().values()).backward()
    for gradient, parameter in zip(found, model.parameters()):
        torch.testing.assert_close(gradient, parameter.grad)
