"""The README is true: its commands and Python blocks run, its file table has the right line counts."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import SMALL

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(
    set(
        re.findall(
            r"(?:^|`)((?:python|torchrun) [^`#|\n]*(?:\.py|-m )[^`#|\n]*[^`#|\s])",
            README,
            flags=re.M,
        )
    )
)
# Not run here: tools.bench at the size of HuBERT Base (test_bench.py runs it with narrow heads), srun (needs Slurm),
# `make demo` (takes minutes) and `make test` (would call itself).


def _small(command: str, root: Path, out: Path) -> list[str]:
    """A command of the README with a tiny corpus, few steps, and nothing written into the repository."""
    words = shlex.split(
        command.replace("DIR", str(root))
        .replace("PR,ASR", "KS,IC")
        .replace("--seed 0 1 2", "--seed 0")
        .replace("--fold 1 2 3 4 5", "--fold 2")
    )
    launch = []
    if words[0] == "torchrun":
        port = str(29_100 + os.getpid() % 300)
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            "2",
            "--master_port",
            port,
        ]
        words = ["python", *words[words.index("train.py") :], "--heads", "fresh"]
    module = words[1] == "-m"
    script, flags = words[1 + module], words[2 + module :]
    folder = [] if "--runs" in flags else ["--runs", str(out / ("together" if launch else "runs"))]
    flags = [str(out / flag) if flag.startswith(("runs", "figures")) else flag for flag in flags]
    more = {
        "train.py": [
            *SMALL,
            *folder,
            "--out",
            str(out / "figures"),
            *([] if "--data" in flags else ["--data", str(root)]),
        ],
        "evaluate.py": [] if "--run" in flags else [*folder, "--out", str(out / "figures")],
        "graphs.py": [],
        "data.py": [],
        "toy.pretrain": [
            "--hours",
            "0.01",
            "--steps",
            "2",
            "--batch",
            "2",
            "--out",
            str(out / "tiny.pt"),
        ],
        "toy.synthesis": ["--out", str(out / "toy")],
        "tools.tour": [
            "--data",
            str(root),
            "--runs",
            str(out / "runs"),
            "--out",
            str(out / "figures"),
        ],
    }[script]
    return [*launch, *(["-m"] if module else []), script, *flags, *more]


def _run(command: str, root: Path, out: Path) -> None:
    """Run a command in this process, as if in the shell (torchrun: in processes of its own); it must succeed."""
    words = _small(command, root, out)
    if words[0] == sys.executable:
        done = subprocess.run(
            words,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=170,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return
    before, sys.argv = sys.argv, words[1:] if words[0] == "-m" else words
    try:
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__")
        else:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, f"{command}: exit code {stop.code}"
    finally:
        sys.argv = before


@pytest.mark.parametrize("command", [c for c in COMMANDS if "tools.bench" not in c])
def test_a_command_of_the_readme_runs(command, root, workshop):
    _run(command, root, workshop)


def test_scenario_all_ends_with_the_table_and_the_graphs(workshop):
    assert len(list(workshop.glob("runs/*/result.json"))) >= 28
    for name in ("edges.json", "fig2.png", "fig2.svg"):
        assert (workshop / "figures" / name).exists()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, flags=re.S))
def test_a_python_block_of_the_readme_runs(block):
    exec(compile(block, "README.md", "exec"), {})
