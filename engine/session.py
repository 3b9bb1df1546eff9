"""The session of a training run: its step, log, checkpoints, stop signals and progress bar.

A resumed run ends with the same bits as an unbroken one (on a CPU with as many threads).
checkpoint.pt holds the weights, Adam's state and the best head so far. Batches, masks and dropout
follow from (seed, step), the learning rate from the step. The log loses its lines after the
checkpoint. A frozen encoder is not saved: it is loaded anew.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

from engine.launch import (
    any_rank,
    mean_over_ranks,
    progress,
    rank,
    say,
    wait_for_all,
    world_size,
)
from engine.runs import (
    RunError,
    load_checkpoint,
    read_json_lines,
    save_checkpoint,
    save_json_lines,
)


class Session:
    """One run while it trains. `step` counts the updates that are done."""

    def __init__(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer,
                 steps: int, save_every: int, log_every: int, quiet: bool):
        self.folder, self.model, self.optimizer = folder, model, optimizer
        self.steps, self.save_every, self.log_every = steps, save_every, log_every
        self.quiet = quiet or rank() > 0
        self.step = 0
        self.best = None  # {"value", "step", "model"} of the best evaluation on dev
        self.previous = None  # (step, losses, gradient norm, ids) of the last step
        self.shown = {}  # figures in the progress bar
        self.began = time.time()  # moved back by the seconds of earlier sessions

    def resume(self) -> None:
        """Continue from checkpoint.pt if it is there, and cut the log at its step."""
        if (self.folder / "checkpoint.pt").exists():
            saved = restore(self.model, self.folder)
            if "optimizer" in saved:
                self.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.best = saved["step"], saved["best"]
            self.began -= saved["seconds"]
            say(f"{self.folder.name}: continuing after step {self.step}")
        log = self.folder / "log.jsonl"
        if log.exists() and rank() == 0:
            save_json_lines(log, [row for row in read_json_lines(log) if row["step"] <= self.step])
        self.log = open(log if rank() == 0 else os.devnull, "a")

    def show_progress(self, batches: Iterable) -> Iterator:
        """The batches of the remaining steps, with a progress bar."""
        self.bar = progress(batches, self.folder.name, initial=self.step, total=self.steps,
                            unit="step", disable=self.quiet)
        return self.bar

    def end_step(self, losses: dict, gradient_norm: torch.Tensor, ids: dict, rate: float) -> None:
        """Count a step, check the one before, and log every `log_every` steps.

        The check comes one step late, when the next step is enqueued: reading a value from the GPU
        then does not leave it idle.
        """
        self.step += 1
        self.check_previous_step()
        losses = {name: loss.detach() for name, loss in losses.items()}
        self.previous = self.step, losses, gradient_norm, ids
        if self.step % self.log_every == 0 or self.step == self.steps:
            values = mean_over_ranks(torch.stack(list(losses.values()))).tolist()
            self.write_log({"step": self.step, "losses": dict(zip(losses, values)), "lr": rate,
                            "seconds": round(self.seconds(), 2)})
            self.show(loss=f"{sum(values):.2f}", lr=f"{rate:.1e}")

    def check_previous_step(self) -> None:
        """Raises RunError if the previous step was not finite; the saved checkpoint predates it."""
        if self.previous is None:
            return
        step, losses, norm, ids = self.previous
        bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
        if bad or not math.isfinite(norm):
            what = f"loss of {', '.join(bad)}" if bad else "gradient"
            utterances = ", ".join(one for name in bad or ids for one in ids[name])
            raise RunError(f"{self.folder.name}: the {what} is not finite at step {step} "
                           f"({utterances}); check these files, or lower the learning rate in a "
                           "new --runs folder (the checkpoint is intact)")

    def keep_if_best(self, value: float, better) -> None:
        """Keep a copy of the weights if better(value, best value so far)."""
        if self.best is None or better(value, self.best["value"]):
            self.best = {"value": value, "step": self.step, "model": self._own_weights()}

    def show(self, **figures: str) -> None:
        """Show figures beside the progress bar."""
        self.shown |= figures
        self.bar.set_postfix(self.shown, refresh=False)

    def write_log(self, row: dict) -> None:
        """Append one line to log.jsonl."""
        self.log.write(json.dumps(row) + "\n")
        self.log.flush()

    def seconds(self) -> float:
        """The training time so far; interruptions do not count."""
        return time.time() - self.began

    def save_when_due(self, signals: list[int]) -> None:
        """Save every `save_every` steps. After Ctrl-C or SIGTERM in any process: save and stop."""
        stop = False
        if self.step % 10 == 0 or world_size() == 1:  # processes wait for each other's answers
            stop = any_rank(bool(signals), next(self.model.parameters()).device)
        if stop or self.step % self.save_every == 0:
            self.save(optimizer=self.optimizer.state_dict())
        if stop:
            raise KeyboardInterrupt(f"{self.folder.name}: stopped after step {self.step} and saved")

    def finish(self) -> dict:
        """Load the best weights, save without Adam's state, and return what was saved."""
        if self.best:
            self.model.load_state_dict(self.best["model"], strict=False)
        self.log.close()
        return self.save()

    def save(self, **more) -> dict:
        """Write checkpoint.pt, unless the last step was not finite, and return its content."""
        self.check_previous_step()
        state = {"step": self.step, "model": self._own_weights(), "best": self.best,
                 "seconds": self.seconds(), **more}
        if not self.model.encoder.frozen:
            state["encoder"] = self.model.encoder.checkpoint()
        if rank() == 0:
            save_checkpoint(self.folder, state)
        wait_for_all()  # torchrun kills all processes soon after the first one ends
        return state

    def _own_weights(self) -> dict[str, torch.Tensor]:
        """A copy of the weights of everything but the encoder."""
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()
                if not name.startswith("encoder.")}


def restore(model: nn.Module, folder: Path) -> dict:
    """Load the weights of a run's checkpoint into its model, and return the checkpoint.

    The encoder's weights are loaded if the run trained it. Raises RunError if they do not fit.
    """
    saved = load_checkpoint(folder)
    encoder = saved["encoder"]["state_dict"] if "encoder" in saved else model.encoder.state_dict()
    weights = dict(saved["model"])
    weights |= {f"encoder.{name}": tensor for name, tensor in encoder.items()}
    try:
        model.load_state_dict(weights)
    except (RuntimeError, AttributeError) as error:
        message = f"weights that do not fit config.json in {folder}; delete it and train again"
        raise RunError(message) from error
    return saved
