"""Several processes: the log holds the mean of all, and all of them stop together."""

import json
import os
from pathlib import Path

import torch
from torch import nn

from engine.session import Session


class Model(nn.Module):
    """One weight under a frozen encoder without weights."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.encoder = nn.Identity()
        self.encoder.frozen = True


def one_process(rank: int, port: int, folder: str) -> None:
    """A step whose loss is 2 * rank; then the second process alone receives a signal."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo")
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = Session(Path(folder), model, optimizer, 20, save_every=50, log_every=1, quiet=True)
    session.resume()
    list(session.with_progress_bar([]))
    for _ in range(9):
        session.end_step({"a": torch.tensor(2.0 * rank)}, torch.tensor(1.0), {"a": ["x"]}, 0.1)
    session.save_when_due([15] if rank == 1 else [])  # not asked at step 9
    session.end_step({"a": torch.tensor(2.0 * rank)}, torch.tensor(1.0), {"a": ["x"]}, 0.1)
    try:
        session.save_when_due([15] if rank == 1 else [])
    except KeyboardInterrupt:
        Path(folder, f"stopped-{rank}").touch()
    torch.distributed.destroy_process_group()


def test_the_log_is_the_mean_over_processes_and_all_stop_after_one_signal(tmp_path):
    port = 28_900 + os.getpid() % 90
    torch.multiprocessing.spawn(one_process, (port, str(tmp_path)), nprocs=2)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["losses"]["a"] for row in rows] == [1.0] * 10  # of 0 and 2
    assert (tmp_path / "stopped-0").exists() and (tmp_path / "stopped-1").exists()
    assert (tmp_path / "checkpoint.pt").exists()
