"""How often the CPU waits for the GPU in a training step of nine tasks."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import INPUTS
from fake_gpu import FakeGpu, OnGpu
from torch import nn
from torch.nn.utils.rnn import pad_sequence

import train
from batches import Batch
from engine.session import Session
from model import TINY, MultiTask, random_encoder
from scenarios import SETTINGS, make_config, scenario_runs
from tasks import TASKS
from tools.bench import MIX


def nine_tasks() -> tuple[MultiTask, dict[str, Batch]]:
    """A small model of all tasks, and a batch of two short utterances for each."""
    encoder = random_encoder(TINY | {"encoder_num_layers": 1})
    heads, batches = {}, {}
    for task, (_, classes, target) in MIX.items():
        if isinstance(target, list | torch.Tensor):  # of tokens or label frames
            target = target[:4]
        heads[task] = TASKS[task].head(encoder.dim, classes, 16)
        waves = pad_sequence([torch.randn(2_400), torch.randn(1_800)], batch_first=True)
        batches[task] = Batch(waves, torch.tensor([2_400, 1_800]), [target] * 2, ["a", "b"])
    return MultiTask(encoder, heads), batches


def train_steps(model: MultiTask, steps, folder) -> None:
    """The training loop on some steps, none of which is a logging step."""
    setting = SETTINGS["tiny"]
    config = make_config(scenario_runs("mtl", (), tuple(TASKS))[0], setting, INPUTS)
    optimizer = train.make_optimizer(model, config)
    session = Session(folder, model, optimizer, config.steps, save_every=100, log_every=100,
                      quiet=True)
    train.training_loop(session, model, model, config, steps, evaluate=None)


def test_in_a_step_of_nine_tasks_the_cpu_waits_for_nothing_but_the_lengths_of_ctc(
    monkeypatch, tmp_path
):
    """These were 14 more: it read nine losses and the gradient norm, and copied PIT's indices."""
    on_fake_gpu = ["meta"]
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it knows no "meta"
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"],
                        "_get_fused_kernels_supported_devices", lambda: on_fake_gpu)
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    model, batches = nine_tasks()
    gpu = FakeGpu()

    def steps():
        for _ in range(2):  # the second step checks the losses of the first
            gpu.waits.clear()
            yield [batches]

    with gpu:
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                module.register_parameter(name, nn.Parameter(OnGpu(parameter.detach())))
        train_steps(model, steps(), tmp_path)
    forward, backward = ["aten._ctc_loss.Tensor"], ["aten._ctc_loss_backward.Tensor"]
    assert gpu.waits == 3 * forward + 3 * backward  # one of each for PR, ASR and SF


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: bool(x[0] > 0),
        lambda x: x[x > 0],
        lambda x: x[[0, 1]],
        lambda x: x[torch.tensor([0, 1])],
        lambda x: torch.zeros(2).to(x.device),
    ],
)
def test_the_fake_gpu_notes_what_waits(read):
    with FakeGpu() as gpu:
        read(OnGpu(torch.ones(2)))
    assert len(gpu.waits) >= 1


def test_the_fake_gpu_notes_nothing_else_and_computes_what_a_cpu_computes():
    x = torch.randn(3, 4)
    with FakeGpu() as gpu:
        y = OnGpu(x)
        y[:, torch.zeros(2, dtype=torch.long).to("meta", non_blocking=True)] *= 2
        result = (y[0] + torch.arange(4, device=y.device)).to("cpu", non_blocking=True)
    expected = x[0] + torch.arange(4)
    assert gpu.waits == [] and torch.equal(result, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_in_a_step_on_a_gpu_nothing_synchronises_but_ctc(monkeypatch, tmp_path):
    monkeypatch.setattr(F, "ctc_loss", lambda log_probs, *_, **__: -log_probs.mean((0, 2)))
    model, batches = nine_tasks()

    def steps():
        yield [batches]  # the first step tunes cuDNN and makes the state of Adam
        yield [batches]
        torch.cuda.set_sync_debug_mode("error")
        yield [batches]
        torch.cuda.set_sync_debug_mode("default")

    try:
        train_steps(model.to("cuda"), steps(), tmp_path)
    finally:
        torch.cuda.set_sync_debug_mode("default")
