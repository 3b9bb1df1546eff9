"""README and docs are true: their commands, Python blocks and the tenth task run, their links lead
somewhere, and README stays short."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, SMALL

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "TOUR.md", *sorted((ROOT / "docs").glob("*.md"))]
# Not run here: tools.bench with HuBERT Base (test_bench.py runs it with narrow heads), tools.superb
# (needs a published checkpoint; test_superb.py runs it with random weights), the toy corpus
# (minutes; the fixture `root` is a smaller one), srun (needs Slurm), `make demo` (minutes) and
# `make test` (would call itself).
NOT_RUN = ("tools.bench", "tools.superb", "toy.synthesis")
COMMAND = re.compile(r"(?:^|`)((?:python|torchrun) [^`#|\n]*(?:\.py|-m )[^`#|\n]*[^`#|\s])",
                     flags=re.MULTILINE)


def text_of(page: Path) -> str:
    """A page without its HTML comments."""
    return re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)


def commands() -> list[str]:
    """Every command that a page shows, in a line of its own or between backticks."""
    found = set()
    for page in PAGES:
        found.update(COMMAND.findall(text_of(page)))
    return sorted(command for command in found if not any(name in command for name in NOT_RUN))


def python_blocks() -> list:
    """The Python blocks of README and docs; test_tour.py runs those of TOUR.md."""
    blocks = []
    for page in PAGES:
        if page.name != "TOUR.md":
            for code in re.findall(r"```python\n(.*?)```", text_of(page), flags=re.DOTALL):
                blocks.append(pytest.param(code, id=f"{page.name}, {code.splitlines()[0]}"))
    return blocks


def small_flags(script: str, flags: list[str], root: Path, out: Path, folder: str) -> list[str]:
    """More flags for a command: a tiny corpus, few steps, nothing written into the repository."""
    figures = ["--out", str(out / "figures")]
    runs = [] if "--runs" in flags else ["--runs", str(out / folder)]
    if script == "train.py":
        data = [] if "--data" in flags else ["--data", str(root)]
        return [*SMALL, *runs, *figures, *data]
    if script == "evaluate.py":
        return [] if "--run" in flags else [*runs, *figures]
    if script == "tools.tour":
        return ["--data", str(root), *runs, *figures]
    if script == "tools.notebook":
        return ["--out", str(out / "TOUR.ipynb")]
    if script == "toy.pretrain":
        small = "--hours 0.01 --steps 2 --batch 2 --out".split()
        return [*small, str(out / "tiny.pt")]
    if script == "tools.report":  # the fixture `workshop` has a page of all runs
        shutil.copytree(out / "runs" / "ssl-KS", out / "one" / "ssl-KS", dirs_exist_ok=True)
        return ["--runs", str(out / "one")]
    as_they_are = ("graphs.py", "data.py", "predict.py", "tools.export")
    assert script in as_they_are, f"no small settings for {script}"
    return []


def small_command(command: str, root: Path, out: Path) -> list[str]:
    """The words of a command after python, with small settings."""
    wav = min(root.glob("fluent_speech_commands_dataset/wavs/**/*.wav"))
    replaced = {"DIR": str(root), "my.wav": str(wav), "PR,ASR": "KS,IC", "--seed 0 1 2": "--seed 0",
                "--fold 1 2 3 4 5": "--fold 2", "FOLDER": str(out / "exported")}
    for old, new in replaced.items():
        command = command.replace(old, new)
    launcher, *words = shlex.split(command)
    folder = "runs"
    if launcher == "torchrun":
        words = [*words[words.index("train.py"):], "--heads", "fresh"]
        folder = "together"
    module = ["-m"] if words[0] == "-m" else []
    script, *flags = words[len(module):]
    for position, flag in enumerate(flags):
        if flag.startswith(("runs", "figures")):
            flags[position] = str(out / flag)
    return [*module, script, *flags, *small_flags(script, flags, root, out, folder)]


def run_together(words: list[str]) -> None:
    """Run a program in two processes of torchrun; it must succeed."""
    port = str(29_100 + os.getpid() % 300)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    done = subprocess.run([sys.executable, *launch, *words], cwd=ROOT, capture_output=True,
                          text=True, timeout=170, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]


def run_here(words: list[str], monkeypatch) -> None:
    """Run a program in this process, as from the shell; it must succeed."""
    is_module = words[0] == "-m"
    monkeypatch.setattr(sys, "argv", words[1:] if is_module else words)
    try:
        if is_module:
            # Not imported before, as in a shell; other tests get their module back.
            monkeypatch.delitem(sys.modules, words[1], raising=False)
            runpy.run_module(words[1], run_name="__main__")
        else:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, f"exit code {stop.code}"


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_pages_runs(command, root, workshop, monkeypatch):
    words = small_command(command, root, workshop)
    if command.startswith("torchrun"):
        run_together(words)
    else:
        run_here(words, monkeypatch)


def test_scenario_all_ends_with_the_table_and_the_graphs(workshop):
    assert len(list(workshop.glob("runs/*/result.json"))) >= 28
    for name in ("edges.json", "fig2.png", "fig2.svg"):
        assert (workshop / "figures" / name).exists()


def test_the_worked_example_of_own_recordings_runs(root, tmp_path, monkeypatch, capsys):
    page = text_of(ROOT / "docs" / "DATA.md")
    section = page.split("\n## Own recordings\n")[1].split("\n## ")[0]
    (table,) = re.findall(r"```tsv\n(.*?)```", section, flags=re.DOTALL)
    _, *rows = table.splitlines()
    folder = tmp_path / "own"
    for seed, row in enumerate(rows):
        path = folder / row.split("\t")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = 0.1 * np.random.default_rng(seed).standard_normal(16_000)
        soundfile.write(path, noise, 16_000)
    (folder / "KS.tsv").write_text(table)
    printed = {}
    for command in COMMAND.findall(section):
        words = small_command(command.replace("DIR", str(folder)), root, tmp_path)
        run_here(words, monkeypatch)
        printed[words[0]] = capsys.readouterr().out
    assert list(printed) == ["data.py", "train.py", "predict.py"]
    assert re.search(r"^KS +KS\.tsv +5 +2 +2$", printed["data.py"], flags=re.MULTILINE)
    assert "Problems: 0." in printed["data.py"]
    assert re.search(r"\b(ja|nein|halt)\b", printed["predict.py"])


@pytest.mark.parametrize("block", python_blocks())
def test_a_python_block_of_the_pages_runs(block):
    exec(compile(block, "a page", "exec"), {})


def test_the_readme_has_at_most_1300_words():
    words = [word for word in text_of(ROOT / "README.md").split() if re.search(r"\w", word)]
    assert len(words) <= 1300


def test_every_program_that_the_readme_names_exists():
    named = set(re.findall(r"`((?:\w+/)?\w+\.py)`", README))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_to_files(page):
    for link in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if not link.startswith("https://"):
            assert (page.parent / link).exists(), link


def with_tenth_task(diff: str, folder: Path) -> None:
    """A copy of the program with the lines that docs/DATA.md adds to data.py and tasks.py."""
    for path in ("engine", "toy", "tools"):
        shutil.copytree(ROOT / path, folder / path)
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.json")]:
        shutil.copy(path, folder)
    reader, lines = diff.replace("\n+", "\n").split("\ntasks.py\n")
    reader = reader.removeprefix("data.py\n")
    import_line, row = lines.split("\n", 1)

    end_of_data = '\n\ndef main('
    data = (folder / "data.py").read_text()
    assert data.count(end_of_data) == 1
    (folder / "data.py").write_text(data.replace(end_of_data, f"\n\n{reader}\n{end_of_data}"))

    end_of_table = "\n)}\n"
    tasks = (folder / "tasks.py").read_text()
    assert tasks.count(end_of_table) == 1
    tasks = tasks.replace(end_of_table, f"\n{row})}}\n")
    (folder / "tasks.py").write_text(tasks.replace("\nimport", f"\n{import_line}\nimport", 1))


def test_the_tenth_task_of_the_docs_needs_only_the_lines_shown(root, tmp_path):
    page = text_of(ROOT / "docs" / "DATA.md")
    (diff,) = re.findall(r"```diff\n(.*?)```", page, flags=re.DOTALL)
    for line in diff.splitlines():
        assert line.startswith("+") or line in ("", "data.py", "tasks.py")
    with_tenth_task(diff, tmp_path)
    command = ["train.py", "--scenario", "transfer", "--task", "GR", "--data", str(root), *SMALL]
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True,
                          timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "GR acc" in done.stdout
    finished = {path.parent.name for path in tmp_path.glob("runs/*/result.json")}
    assert {"ssl-GR", "leave-one-out-GR", "transfer-GR"} < finished
    assert len(finished) == 12  # ten heads
