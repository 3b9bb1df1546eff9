"""Processes and signals, several runs at a time, progress bars, and one-line error messages."""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait

import torch
import torch.distributed as dist
from tqdm import tqdm

from engine.files import DataError, printable
from engine.pretrained import EncoderError
from engine.runs import RunError

SECONDS_BETWEEN_LINES = 30  # of a progress bar that is written into a file

# Several processes, one per GPU (torchrun sets their environment)


def rank() -> int:
    """The number of this process among those that torchrun started; 0 without torchrun."""
    return _environment_number("RANK", default=0) if world_size() > 1 else 0


def world_size() -> int:
    """The number of processes that torchrun started; 1 without torchrun."""
    return _environment_number("WORLD_SIZE", default=1)


def _environment_number(name: str, default: int) -> int:
    """A number that torchrun puts into the environment; the default if it is missing or empty.

    Raises RunError if it is no number, or below the default, which is also the smallest value.
    """
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or int(text) < default:
        raise RunError(f"{name} is {text!r} in the environment, not a number of torchrun; unset it")
    return int(text)


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the other processes of torchrun, if there are any.

    Raises RunError if WORLD_SIZE is set, as some clusters do, but torchrun did not start us.
    """
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    rank()  # raises RunError if WORLD_SIZE or RANK is not a number
    if world_size() > 1 and missing:
        raise RunError(
            f"WORLD_SIZE is {world_size()} in the environment, without {' and '.join(missing)}: "
            "torchrun did not start this program; use torchrun for several processes, or unset "
            "WORLD_SIZE"
        )
    if device == "cuda":
        torch.cuda.set_device(_environment_number("LOCAL_RANK", default=0))
    if world_size() > 1:
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=12))
    yield
    if dist.is_initialized():  # not after an error: the other processes may still be busy
        dist.destroy_process_group()


@contextmanager
def first_process_first() -> Iterator[None]:
    """The first process runs the block before the others, which then find its files on disk."""
    if dist.is_initialized() and rank() > 0:
        dist.barrier()
    yield
    if dist.is_initialized() and rank() == 0:
        dist.barrier()


def wait_for_all() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def any_rank(condition: bool, device: torch.device) -> bool:
    """Whether the condition is true in any process: all of them must stop at the same step."""
    if not dist.is_initialized():
        return condition
    flag = torch.tensor(float(condition), device=device)
    dist.all_reduce(flag)
    return bool(flag > 0)


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all processes."""
    if not dist.is_initialized():
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / dist.get_world_size()


def copy_from_first(model: torch.nn.Module) -> None:
    """Give all processes the weights of the first one."""
    if dist.is_initialized():
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that collects Ctrl-C and SIGTERM (Slurm sends it first), so that a loop can save."""
    received = []

    def remember(number, frame) -> None:
        received.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Threads

SECONDS_PER_TRIAL = 0.5


def choose_threads(step: Callable) -> None:
    """Time `step()` on a CPU with one thread and with all, and keep the faster number.

    Threads wait for each other. This can take longer than the work itself if the step is small, or
    if other programs use the cores. A long step is tried once with each number of threads.
    """
    most, seconds = torch.get_num_threads(), {}
    for threads in (1, most):
        torch.set_num_threads(threads)
        began = time.perf_counter()
        step()
        seconds[threads] = time.perf_counter() - began
        if seconds[threads] > SECONDS_PER_TRIAL:
            continue
        began, steps = time.perf_counter(), 0  # the first step is slower than the others
        while time.perf_counter() - began < SECONDS_PER_TRIAL:
            step()
            steps += 1
        seconds[threads] = (time.perf_counter() - began) / steps
    chosen = min(seconds, key=seconds.get)
    torch.set_num_threads(chosen)
    say(f"{chosen} of {most} threads: a step takes {1000 * seconds[1]:.1f} ms with one and "
        f"{1000 * seconds[most]:.1f} ms with {most}")


# Several runs at a time, each in a process of its own


def run_parallel(function: Callable, items: dict, jobs: int) -> None:
    """Call function(item) for each of {name: item}, `jobs` at a time, each in a new process.

    Each process uses one thread. Raises RunError if a process is killed; exits with the code of a
    process that fails, which has printed its reason. Ctrl-C reaches every process, and each saves.
    """
    names = list(items)
    title = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    context = get_context("forkserver")
    waiting, running = list(items.values()), []
    with progress(total=len(items), desc=f"{title} ({jobs} at a time)", unit="run") as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    process = context.Process(target=_run_one, args=(function, waiting.pop(0)))
                    process.start()
                    running.append(process)
                wait([process.sentinel for process in running])
                ended = [process for process in running if process.exitcode is not None]
                for process in ended:
                    running.remove(process)
                    bar.update()
                    _check_exit(process.exitcode)
        finally:
            for process in running:
                with suppress(ProcessLookupError):  # it may have ended just now
                    os.kill(process.pid, signal.SIGINT)  # it saves first
            for process in running:
                process.join()


def _run_one(function: Callable, item) -> None:
    """The main function of one process of `run_parallel`."""
    torch.set_num_threads(1)

    def stop_with_parent() -> None:
        parent_process().join()
        os.kill(os.getpid(), signal.SIGINT)  # nobody waits for the result: save and stop

    threading.Thread(target=stop_with_parent, daemon=True).start()
    function(item)


def _check_exit(code: int) -> None:
    """Stop everything if a process ended badly."""
    if code < 0:
        raise RunError(
            f"a run was killed by signal {-code}, perhaps because the memory is full; "
            "the same command continues, and --jobs 1 needs less memory"
        )
    if code > 0:
        sys.exit(code)


# Output


def say(text: str) -> None:
    """Print above the progress bars; only the first process prints."""
    if rank() == 0:
        tqdm.write(text)


@contextmanager
def or_note(what: str, debug: bool) -> Iterator[None]:
    """Guard a block that only shows something: if it fails, print "note: <what>: <reason>".

    With `debug` the error is raised.
    """
    try:
        yield
    except Exception as error:  # of any kind: the work that it shows is done
        if debug:
            raise
        reason = str(error).strip() or type(error).__name__
        say(f"note: {what}: {printable(reason.splitlines()[0])}")


def progress(*args, **options) -> tqdm:
    """A tqdm progress bar on standard error; a log file gets one line every 30 seconds at most."""
    if not sys.stderr.isatty():
        options = {"mininterval": SECONDS_BETWEEN_LINES, **options}
    return tqdm(*args, **options)


class ForgivingStream:
    """A text stream that falls silent when nobody reads it any more (`| head -1`).

    `lost` is the error if a full disk lost a part of the text, else None.
    """

    def __init__(self, stream):
        self.lost = None
        self.stream = stream if stream is not None else open(os.devnull, "w")
        if hasattr(self.stream, "reconfigure"):
            self.stream.reconfigure(errors="replace")  # an ASCII terminal cannot print an arrow

    def write(self, text: str) -> int:
        """Write the text, or nothing if the reader is gone."""
        with suppress(ValueError):  # the stream is closed
            try:
                self.stream.write(text)
            except OSError as error:
                self._fall_silent(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or do nothing if the reader is gone."""
        with suppress(ValueError):
            try:
                self.stream.flush()
            except OSError as error:
                self._fall_silent(error)

    def _fall_silent(self, error: OSError) -> None:
        """Send everything from now on, and what is still in the buffer, to /dev/null."""
        if error.errno == errno.ENOSPC:
            self.lost = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


# Errors

CAUSES = {  # a part of an error's text: what the user can do about it
    "shared memory": "the shared memory (/dev/shm) is too small for the processes that read audio; "
    "use --workers 0, or start the container with a larger --shm-size",
    "DataLoader worker": "a process that reads audio was killed; the same command continues from "
    "the last checkpoint, and fewer --workers need less memory",
    "No space left on device": "the disk or the shared memory (/dev/shm) is full; make room, or "
    "use --workers 0",
    "out of memory": "the memory of the GPU is full; take a smaller --mtl-batch or "
    "--transfer-batch in a new --runs folder",
    "allocate": "the memory is full; take a smaller --ssl-batch, --mtl-batch or --transfer-batch "
    "in a new --runs folder",
    "Connection": "another process of this run has ended; the same command continues from the "
    "last checkpoint",
}


@contextmanager
def friendly_errors(debug: bool = False, after_stop: str = "",
                    needs_output: bool = False) -> Iterator[None]:
    """Guard a program: user errors print one line and exit with code 2; anything else is a bug.

    Ctrl-C prints one line that ends with `after_stop`, and exits with code 130. If nobody reads the
    output any more (`| head -1`), the program goes on without printing. With `needs_output`, output
    that a full disk loses is an error, because it is all that the program makes.
    """
    streams = sys.stdout, sys.stderr
    sys.unraisablehook = _ignore_loader_end  # also after the end of this block
    output = ForgivingStream(sys.stdout)
    sys.stdout, sys.stderr = output, ForgivingStream(sys.stderr)
    try:
        yield
        output.flush()
        if output.lost and needs_output:
            raise OSError("the output of this program is incomplete: the disk is full; make room, "
                          "and start it again")
    except KeyboardInterrupt as stop:
        reason = str(stop) or "stopped"
        print(f"{reason}{after_stop}", file=sys.stderr)
        sys.exit(130)
    except (DataError, EncoderError, RunError, OSError, RuntimeError, ValueError) as error:
        text = _explanation(error)
        if debug or text is None:
            raise
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
    finally:
        sys.stdout, sys.stderr = streams


def _ignore_loader_end(problem) -> None:
    """A DataLoader that could not start its workers fails again when it is deleted: ignore that."""
    if "DataLoader" not in repr(problem.object):
        sys.__unraisablehook__(problem)


def _explanation(error: Exception) -> str | None:
    """What to tell the user about an error; None if it is a bug of ours."""
    text = " ".join(str(error).split())
    # An OSError without a number is one of ours, too: its sentence names the file.
    ours = isinstance(error, OSError) and error.errno is None
    if ours or isinstance(error, DataError | EncoderError | RunError):
        return text
    for sign, explanation in CAUSES.items():
        if sign in text:
            return explanation
    return None if isinstance(error, RuntimeError | ValueError) else text
