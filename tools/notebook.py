"""TOUR.md as a Jupyter notebook: the same text, code and outputs (about Section 2 of the paper).

    python -m tools.notebook [--out TOUR.ipynb]

Each Python block of the page becomes a code cell, and the text block below it becomes the output.
Two cells are added: the first clones the repository and installs its packages where they are
missing, and a player follows the first stop.
"""
import argparse
import json
import re
from pathlib import Path

from engine.launch import friendly_errors
from engine.runs import save_text

PAGE = Path(__file__).parent.parent / "TOUR.md"
BLOCK = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```\n", re.DOTALL)  # code, output
INSTALL = """\
# Outside a clone of the repository (for example in Colab), this cell makes one.
import os
import subprocess
import sys

REPOSITORY = "https://github.com/OWNER/NAME"  # set the address here first
if not os.path.exists("TOUR.md"):
    subprocess.run(["git", "clone", REPOSITORY, "repository"], check=True)
    os.chdir("repository")
    packages = ["-m", "pip", "install", "--quiet", "-r", "requirements.txt"]
    subprocess.run([sys.executable, *packages], check=True)
if not os.path.exists("data/toy"):
    subprocess.run([sys.executable, "-m", "toy.synthesis"], check=True)
"""
PLAYER = """\
from IPython.display import Audio

Audio(wave, rate=SAMPLE_RATE)
"""


def text_cell(text: str) -> dict:
    """A cell of Markdown."""
    return {"cell_type": "markdown", "metadata": {}, "source": text.strip().splitlines(True)}


def code_cell(code: str, output: str = "") -> dict:
    """A cell of Python with what it printed."""
    outputs = []
    if output:
        outputs.append({"output_type": "stream", "name": "stdout",
                        "text": output.splitlines(True)})
    return {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": outputs,
            "source": code.strip().splitlines(True)}


def notebook(page: str) -> dict:
    """The notebook of a page, in Jupyter's format 4."""
    text, *rest = BLOCK.split(page)  # text, then code, output and text of each stop
    cells = [code_cell(INSTALL), text_cell(text)]
    for stop in range(0, len(rest), 3):
        code, output, text = rest[stop:stop + 3]
        cells.append(code_cell(code, output))
        if stop == 0:
            cells.append(code_cell(PLAYER))
        cells.append(text_cell(text))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 4, "cells": cells, "metadata": {"kernelspec": kernel}}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PAGE.with_suffix(".ipynb"))
    args = parser.parse_args()
    with friendly_errors():
        save_text(args.out, json.dumps(notebook(PAGE.read_text()), indent=1) + "\n")
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
