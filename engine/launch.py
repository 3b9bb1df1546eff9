"""Processes, signals, several runs at a time, and errors in one line."""
import os
import signal
import sys
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import wait

import torch
import torch.distributed as dist
from tqdm import tqdm

from engine.audio import DataError
from engine.pretrained import EncoderError
from engine.runs import RunError

def rank() -> int:
    """This process's number among those that torchrun started; 0 without it."""
    return int(os.environ.get("RANK", 0))

def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))

def say(text: str) -> None:
    """Print above the progress bars; only the first process speaks."""
    if rank() == 0:
        tqdm.write(text)

@contextmanager
def interruptible():
    """A list that Ctrl-C and SIGTERM (which Slurm sends before it kills) go into, so that the loop can save first."""
    received = []
    before = {number: signal.signal(number, lambda number, frame: received.append(number))
              for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

def any_rank(condition: bool, device: torch.device) -> bool:
    """Is it true in any process? All of them must stop at the same step."""
    if not dist.is_initialized():
        return condition
    flag = torch.tensor(float(condition), device=device)
    dist.all_reduce(flag)
    return bool(flag > 0)

@contextmanager
def first_process_first():
    """The first process runs the block before the others, which then find its files (lengths, features) on disk."""
    if dist.is_initialized() and rank() > 0:
        dist.barrier()
    yield
    if dist.is_initialized() and rank() == 0:
        dist.barrier()

def run_parallel(function, items: dict, jobs: int) -> None:
    """function(item) of each of {name: item}, `jobs` at a time, each in a process of its own."""
    names = ", ".join([*items][:3]) + (", ..." if len(items) > 3 else "")
    context, waiting, running = get_context("forkserver"), list(items.values()), []
    with tqdm(desc=f"{names} ({jobs} at a time)", total=len(items), unit="run") as progress:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(context.Process(target=function, args=(waiting.pop(0),)))
                    running[-1].start()
                wait([process.sentinel for process in running])
                for process in [process for process in running if process.exitcode is not None]:
                    running.remove(process)
                    progress.update()
                    if process.exitcode < 0:
                        raise RunError(f"a run was killed by signal {-process.exitcode}, perhaps for want of memory; "
                                       "the same command goes on, and --jobs 1 needs less")
                    if process.exitcode > 0:
                        sys.exit(process.exitcode)  # it has said why
        finally:
            for process in running:
                with suppress(ProcessLookupError):  # it may just have ended
                    os.kill(process.pid, signal.SIGINT)  # it saves first
            for process in running:
                process.join()

@contextmanager
def friendly_errors(debug: bool):
    """What the user can mend ends as one sentence and exit code 2, Ctrl-C as one and 130; all else is a bug of ours."""
    try:
        yield
    except KeyboardInterrupt as stop:
        print(f"{str(stop) or 'stopped'}; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except (DataError, EncoderError, RunError, OSError, RuntimeError) as error:
        causes = {"DataLoader worker": "a process that reads audio was killed; the same command goes on from the last "
                                       "checkpoint, and fewer --workers need less memory",
                  "allocate": "the memory is full; take a smaller --ssl-batch, --mtl-batch or --transfer-batch in a "
                              "new --runs folder",
                  "Connection": "another process of this run has died; the same command goes on from the last "
                                "checkpoint"}
        text = str(error)
        if isinstance(error, RuntimeError):
            text = next((causes[sign] for sign in causes if sign in text), None)
        if debug or text is None:
            raise
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
