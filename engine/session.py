"""The state of one run during training: its step, log, checkpoints, signals and progress bar.

A resumed run gives bit-identical weights to an uninterrupted one (on a CPU). checkpoint.pt holds
the weights, Adam's state, the best or averaged weights so far, and the number of threads, which
decides rounding. Batches follow from (seed, step), masks and dropout from (seed, step, rank), the
learning rate from the step. On resume, log lines after the checkpoint's step are removed. A frozen
encoder is not saved: it is loaded again.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

from engine.launch import (any_rank, copy_from_first, mean_over_ranks, progress, rank, say,
                           wait_for_all, world_size)
from engine.runs import RunError, load_checkpoint, read_log, save_checkpoint, save_json_lines


class StepValues:
    """The losses and the gradient norm of a step, on their way from the GPU to the CPU.

    Reading a value from the GPU waits for everything that was enqueued before. `read` waits for the
    copy of these values alone, which was enqueued at the end of their step.
    """

    def __init__(self, step: int, losses: dict[str, torch.Tensor], norm: torch.Tensor, ids: dict):
        self.step, self.ids = step, ids  # {task: ids of the utterances}, in the order of the losses
        values = torch.stack([*losses.values(), norm]).detach()
        # A copy to the CPU that does not block has pinned memory; on a CPU nothing is copied.
        self.values = values.to("cpu", non_blocking=True)
        self.copied = torch.cuda.Event() if values.is_cuda else None
        if self.copied:
            self.copied.record()

    def read(self) -> list[float]:
        """The losses in the order of `ids`, then the gradient norm."""
        if self.copied:
            self.copied.synchronize()
        return self.values.tolist()


class Session:
    """The state of one run during training. `step` counts the updates that are done."""

    def __init__(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer,
                 steps: int, save_every: int, log_every: int, quiet: bool):
        self.folder, self.model, self.optimizer = folder, model, optimizer
        self.steps, self.save_every, self.log_every = steps, save_every, log_every
        self.quiet = quiet or rank() > 0
        self.step = 0
        # {"value", "step", "model"}: dev score, step and weights of the best evaluation. With
        # `add_to_average`: the number of averaged steps, the last of them, the mean weights.
        self.best = None
        self.last_step = None  # the StepValues of the last step
        self.shown = {}  # figures in the progress bar
        self.bar, self.log = None, None
        self.began = time.time()  # shifted by `resume`, so that earlier time counts

    def resume(self) -> None:
        """Continue from checkpoint.pt if it is there, and cut the log at its step."""
        if (self.folder / "checkpoint.pt").exists():
            saved = restore(self.model, self.folder)
            if "optimizer" in saved:  # else training was complete, and only scores are missing
                self.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.best = saved["step"], saved["best"]
            torch.set_num_threads(saved.get("threads", torch.get_num_threads()))
            self.began -= saved["seconds"]
            if not self.quiet:
                say(f"{self.folder.name}: continuing after step {self.step}")
        log = self.folder / "log.jsonl"
        if log.exists() and rank() == 0:
            save_json_lines(log, [row for row in read_log(self.folder) if row["step"] <= self.step])
        self.log = open(log if rank() == 0 else os.devnull, "a")

    def with_progress_bar(self, batches: Iterable) -> Iterator:
        """The batches of the remaining steps, behind a progress bar."""
        self.bar = progress(batches, self.folder.name, initial=self.step, total=self.steps,
                            unit="step", disable=self.quiet)
        return self.bar

    def end_step(self, losses: dict, gradient_norm: torch.Tensor, ids: dict, rate: float) -> None:
        """Count a step, check the one before, and log every `log_every` steps.

        The check comes one step late: the GPU works on this step while the CPU reads the values of
        the one before.
        """
        self.step += 1
        self.check_last_step()
        self.last_step = StepValues(self.step, losses, gradient_norm, ids)
        if self.step % self.log_every == 0 or self.step == self.steps:
            values = mean_over_ranks(torch.stack(list(losses.values())).detach()).tolist()
            self.write_log({"step": self.step, "losses": dict(zip(losses, values)), "lr": rate,
                            "seconds": round(self.seconds(), 2)})
            self.show(loss=f"{sum(values):.2f}", lr=f"{rate:.1e}")

    def check_last_step(self) -> None:
        """Raises RunError if a loss or the gradient norm of the last step is NaN or infinite.

        The saved checkpoint predates that step.
        """
        if self.last_step is None:
            return
        step, ids = self.last_step.step, self.last_step.ids
        *losses, norm = self.last_step.read()
        bad = [name for name, loss in zip(ids, losses) if not math.isfinite(loss)]
        if bad or not math.isfinite(norm):
            what = f"loss of {', '.join(bad)}" if bad else "gradient"
            named = []  # of all tasks if only the gradient is not finite
            for name in bad or ids:
                for utterance in ids[name]:
                    if utterance not in named:
                        named.append(utterance)
            utterances = ", ".join(named)
            raise RunError(f"{self.folder.name}: the {what} is not finite at step {step} "
                           f"({utterances}); check these files, or lower the learning rate in a "
                           "new --runs folder (a checkpoint, if there is one, is older)")

    def keep_if_best(self, value: float, better) -> None:
        """Keep a copy of the weights if `value` beats the best so far."""
        if self.best is None or better(value, self.best["value"]):
            weights = self._weights(with_encoder=not self.model.encoder.frozen)
            self.best = {"value": value, "step": self.step, "model": weights}

    def add_to_average(self) -> None:
        """Keep the average of the weights at this step and at all earlier calls."""
        weights, count = self._weights(with_encoder=not self.model.encoder.frozen), 1
        if self.best:
            count = self.best["value"] + 1
            for name, mean in self.best["model"].items():
                mean = mean.to(weights[name].device)  # a resumed run has read it on the CPU
                weights[name] = mean + (weights[name] - mean) / count  # exact for equal weights
        self.best = {"value": count, "step": self.step, "model": weights}

    def show(self, **figures: str) -> None:
        """Show figures beside the progress bar."""
        self.shown |= figures
        self.bar.set_postfix(self.shown, refresh=False)

    def write_log(self, row: dict) -> None:
        """Append one line to log.jsonl."""
        self.log.write(json.dumps(row) + "\n")
        self.log.flush()

    def seconds(self) -> float:
        """The seconds since the first start, without interruptions."""
        return time.time() - self.began

    def save_when_due(self, signals: list[int]) -> None:
        """Save every `save_every` steps; after Ctrl-C or SIGTERM in any process, save and stop.

        Several processes stop at the next tenth step: asking all of them is a synchronisation.
        """
        stop = False
        if self.step % 10 == 0 or self.step == self.steps or world_size() == 1:
            stop = any_rank(bool(signals), next(self.model.parameters()).device)
        if stop or self.step % self.save_every == 0:
            self.save(optimizer=self.optimizer.state_dict())
        if stop:
            raise KeyboardInterrupt(f"{self.folder.name}: stopped after step {self.step} and saved")

    def finish(self) -> dict:
        """Load the best weights, if any. Save and return a checkpoint without Adam's state.

        Only the first process scores dev, so all others receive its weights.
        """
        if self.best:
            self.model.load_state_dict(self.best["model"], strict=False)  # no frozen encoder in it
            self.best["model"] = self._weights(with_encoder=False)  # `save` writes the encoder once
        copy_from_first(self.model)
        self.log.close()
        return self.save()

    def save(self, **more) -> dict:
        """Write checkpoint.pt and return its content. Raises RunError as `check_last_step` does."""
        self.check_last_step()
        state = {"step": self.step, "model": self._weights(with_encoder=False), "best": self.best,
                 "seconds": self.seconds(), "threads": torch.get_num_threads(), **more}
        if not self.model.encoder.frozen:
            state["encoder"] = self.model.encoder.checkpoint()
        if rank() == 0:
            save_checkpoint(self.folder, state)
        wait_for_all()  # torchrun kills all processes soon after the first one ends
        return state

    def _weights(self, with_encoder: bool) -> dict[str, torch.Tensor]:
        """A copy of all weights, with or without those of the encoder."""
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()
                if with_encoder or not name.startswith("encoder.")}


def restore(model: nn.Module, folder: Path) -> dict:
    """Load the weights of a run's checkpoint into its model, and return the checkpoint.

    The encoder's weights are loaded if the run trained it. Raises RunError if they do not fit.
    """
    saved = load_checkpoint(folder)
    # A frozen encoder keeps the weights that it has.
    encoder = saved["encoder"]["state_dict"] if "encoder" in saved else model.encoder.state_dict()
    weights = dict(saved["model"])
    weights |= {f"encoder.{name}": tensor for name, tensor in encoder.items()}
    try:
        model.load_state_dict(weights)
    except (RuntimeError, AttributeError) as error:  # AttributeError: a tensor is something else
        message = f"weights that do not fit config.json in {folder}; delete it and train again"
        raise RunError(message) from error
    return saved
