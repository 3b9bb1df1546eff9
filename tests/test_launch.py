"""Output, signals, locks and errors never stop the work, and each error names its cause."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from conftest import ROOT, SMALL, result
from engine import launch
from engine import runs as engine_runs
from engine.launch import (ForgivingStream, choose_threads, friendly_errors, process_group,
                           progress, rank, world_size)
from engine.runs import RunError, atomic_file, load_checkpoint, locked, read_log
from options import parse_arguments



def shell(command: str, **environment) -> subprocess.CompletedProcess:
    """A command line in a shell, from the root of the repository."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=170
    )


def train_command(root: Path, runs: Path, *flags: str) -> str:
    """train.py with small settings, as a line for the shell."""
    words = [sys.executable, "train.py", "--data", root, "--runs", runs, *SMALL, *flags]
    return " ".join(map(str, words))


@pytest.mark.parametrize(
    "redirection", ["2>&-", ">&-", ">&- 2>&-", "| head -1", "2>&1 | head -c 1", "> /dev/full"]
)
def test_output_that_nobody_reads_does_not_stop_a_run(root, tmp_path, redirection):
    done = shell(
        f"{train_command(root, tmp_path, '--scenario', 'ssl', '--task', 'KS')} {redirection}"
    )
    assert result(tmp_path, "ssl-KS")["metrics"]["KS"] and "Traceback" not in done.stderr


def test_an_ascii_terminal_shows_a_table(run_train, tmp_path):
    run_train(tmp_path, "--scenario", "ssl", "--task", "KS")
    plain = dict(LC_ALL="C", LANG="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    done = shell(f"{sys.executable} evaluate.py --table --runs {tmp_path}", **plain)
    assert done.returncode == 0 and "(a) SSL" in done.stdout


def test_a_stream_falls_silent_when_its_reader_is_gone():
    read, write = os.pipe()
    os.close(read)
    stream = ForgivingStream(open(write, "w"))
    stream.write("x" * 100_000)
    stream.flush()
    stream.write("still no error")
    stream.flush()


def test_a_log_file_gets_few_lines_of_progress(monkeypatch):
    lines = io.StringIO()
    monkeypatch.setattr(sys, "stderr", lines)  # no terminal
    for _ in progress(range(2_000), "steps", file=lines):
        time.sleep(0.0005)
    assert lines.getvalue().count("\r") <= 3


def test_the_backend_of_a_notebook_may_be_missing(tmp_path):
    backend = "module://no_such_package.backend_inline"
    done = shell(f"{sys.executable} graphs.py --paper --out {tmp_path}", MPLBACKEND=backend)
    assert done.returncode == 0 and (tmp_path / "fig2.png").exists(), done.stderr


@pytest.mark.parametrize(
    "error, words",
    [
        (RuntimeError("DataLoader worker (pid 3) is killed"), "--workers"),
        (RuntimeError("unable to write to file </torch_1>: No space left on device"), "/dev/shm"),
        (RuntimeError("unable to allocate shared memory(shm)"), "shared memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "memory of the GPU"),
        (RunError("a sentence"), "error: a sentence"),
        (OSError("cannot write x"), "cannot write x"),
        (OSError("cannot write x (No space left on device)"), "cannot write x"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(capsys, error, words):
    with pytest.raises(SystemExit) as stop, friendly_errors():
        raise error
    said = capsys.readouterr().err
    assert stop.value.code == 2 and words in said and said.count("\n") == 1


def test_a_bug_stays_a_bug():
    with pytest.raises(RuntimeError, match="ours"), friendly_errors():
        raise RuntimeError("a bug of ours")


def test_world_size_without_torchrun_is_one_sentence(root, tmp_path):
    command = train_command(root, tmp_path, "--scenario", "ssl", "--task", "KS")
    done = shell(command, WORLD_SIZE="4", RANK="0")
    assert done.returncode == 2 and "torchrun did not start" in done.stderr


@pytest.mark.parametrize("environment, said", [
    ({"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "a"}, "without MASTER_PORT"),
    ({"WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "without RANK"),
    ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc'"), ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
    ({"WORLD_SIZE": "2", "RANK": "-1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK is '-1'")])
def test_half_of_torchruns_environment_is_one_sentence(environment, said, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=said), process_group("cpu"):
        rank()


def test_empty_variables_and_a_rank_alone_mean_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    monkeypatch.setenv("RANK", "1")
    with process_group("cpu"):
        assert (rank(), world_size()) == (0, 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_output_that_a_full_disk_loses_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))
    with pytest.raises(SystemExit) as stop, friendly_errors(needs_output=True):
        print("a result")
    assert stop.value.code == 2 and "incomplete: the disk is full" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))
    with friendly_errors():  # training: its results are files
        print("a line of progress")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_cuda_without_a_gpu_is_one_sentence(root, tmp_path):
    command = train_command(root, tmp_path, "--scenario", "ssl", "--task", "KS")
    done = shell(f"{command} --device cuda")
    assert done.returncode == 2 and done.stderr.startswith("error: --device cuda")


@pytest.mark.parametrize("computes_bf16, precision", [(True, "bf16"), (False, "fp32")])
def test_bf16_is_the_default_on_a_gpu_that_computes_it(monkeypatch, computes_bf16, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: computes_bf16)
    monkeypatch.setattr(sys, "argv", ["train.py", "--scenario", "mtl", "--device", "cuda"])
    assert parse_arguments("")[1].precision == precision


@pytest.fixture
def two_threads():
    """PyTorch computes with two threads during a test."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("slow, chosen", [(1, 2), (2, 1)])
def test_the_faster_number_of_threads_is_kept_and_said(
    two_threads, monkeypatch, capsys, slow, chosen
):
    monkeypatch.setattr(launch, "SECONDS_PER_TRIAL", 0.02)
    choose_threads(lambda: time.sleep(0.02 if torch.get_num_threads() == slow else 0.001))
    assert torch.get_num_threads() == chosen
    assert f"{chosen} of 2 threads: a step takes" in capsys.readouterr().out


def test_a_long_step_is_tried_once_with_each_number_of_threads(two_threads, monkeypatch):
    monkeypatch.setattr(launch, "SECONDS_PER_TRIAL", 0.001)
    tried = []

    def step() -> None:
        tried.append(torch.get_num_threads())
        time.sleep(0.02 if torch.get_num_threads() == 2 else 0.002)

    choose_threads(step)
    assert tried == [1, 2] and torch.get_num_threads() == 1


def test_a_run_keeps_its_number_of_threads_and_its_trial_changes_nothing(
    two_threads, monkeypatch, run_train, tmp_path
):
    flags = ("--scenario", "mtl", "--tasks", "KS,SD", "--heads", "fresh")
    for trials, folder in ((0, tmp_path / "untried"), (2, tmp_path / "tried")):

        def choose(step):
            for _ in range(trials):
                step()
            torch.set_num_threads(1)

        monkeypatch.setattr(train, "choose_threads", choose)
        run_train(folder, *flags, "--steps", "2")
        assert torch.get_num_threads() == 2  # after the run
    untried = load_checkpoint(tmp_path / "untried" / "mtl-SD+KS")
    tried = load_checkpoint(tmp_path / "tried" / "mtl-SD+KS")
    assert untried["threads"] == 1
    assert read_log(tmp_path / "tried" / "mtl-SD+KS")[0] == {"step": 0, "threads": 1}
    assert all(torch.equal(x, tried["model"][name]) for name, x in untried["model"].items())
    # It is continued before its test, without another trial.
    (tmp_path / "tried" / "mtl-SD+KS" / "result.json").unlink()
    monkeypatch.delattr(train, "choose_threads")
    run_train(tmp_path / "tried", *flags, "--steps", "2")
    assert load_checkpoint(tmp_path / "tried" / "mtl-SD+KS")["threads"] == 1


def test_control_c_during_the_imports_prints_no_traceback(root, tmp_path):
    command = train_command(root, tmp_path, "--scenario", "ssl", "--task", "KS").split()
    for seconds in (0.3, 1.0):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.communicate()[1] and process.returncode != 0


def test_a_file_system_without_locks_is_used_after_a_note(tmp_path, monkeypatch, capsys):
    def no_locks(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(engine_runs.fcntl, "flock", no_locks)
    with locked(tmp_path / "run"):
        pass
    assert "no file locks" in capsys.readouterr().out  # the patch was hit


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="make room"), atomic_file(tmp_path / "file") as file:
        file.write(b"half of the new")
        raise OSError(28, "No space left on device")
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_the_processes_of_a_killed_parent_stop(root, tmp_path):
    command = train_command(root, tmp_path, "--scenario", "ssl", "--task", "KS", "IC")
    command = command.replace("--jobs 1", "--jobs 2 --ssl-steps 200000 --log-every 1")
    process = subprocess.Popen(command.split(), cwd=ROOT, start_new_session=True)
    logs = [tmp_path / name / "log.jsonl" for name in ("ssl-KS", "ssl-IC")]
    began = time.time()
    while not all(log.exists() and log.stat().st_size for log in logs):
        assert time.time() - began < 120 and process.poll() is None
        time.sleep(0.2)
    process.kill()
    process.wait()
    time.sleep(5)
    sizes = [log.stat().st_size for log in logs]
    time.sleep(2)
    assert [log.stat().st_size for log in logs] == sizes


def test_a_lock_in_a_read_only_folder_is_skipped(monkeypatch, tmp_path):
    def refuse(path, mode):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("engine.runs.open", refuse, raising=False)
    with locked(tmp_path / "run"):  # raises nothing
        assert os.listdir(tmp_path) == []


def test_a_lock_that_a_full_disk_refuses_is_one_sentence(monkeypatch, tmp_path):
    def refuse(path, mode):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("engine.runs.open", refuse, raising=False)
    with pytest.raises(OSError, match="cannot write .*run.lock .No space left"):
        with locked(tmp_path / "run"):
            pass
