"""Several processes: the log holds the mean of all, all stop together, all have one result."""

import json
import operator
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
    """A step whose loss is 2 * rank; then the second process alone receives a signal.

    The weight that is selected is 0; the last one is 5.
    """
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
    if rank == 0:  # it alone scores dev
        session.keep_if_best(1.0, operator.gt)
    nn.init.constant_(model.weight, 5.0)
    session.finish()
    torch.save(model.weight, f"{folder}/weight-{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_log_their_mean_stop_after_one_signal_and_have_the_selected_weights(tmp_path):
    port = 28_900 + os.getpid() % 90
    torch.multiprocessing.spawn(one_process, (port, str(tmp_path)), nprocs=2)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["losses"]["a"] for row in rows] == [1.0] * 10  # of 0 and 2
    assert (tmp_path / "stopped-0").exists() and (tmp_path / "stopped-1").exists()
    assert (tmp_path / "checkpoint.pt").exists()
    assert [torch.load(tmp_path / f"weight-{rank}.pt").item() for rank in (0, 1)] == [0.0, 0.0]
