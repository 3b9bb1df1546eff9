"""The nine tasks in one picture: an utterance of each, its label and a head's answer (paper, Section 3.1).

    python tour.py [--data data/toy] [--runs runs] [--out figures]      -> figures/tasks.png

A panel shows the test utterance (ASV: the trial) of median length. Where runs/ssl-<TASK> is finished, its answer
stands beneath the label. TOUR.md then follows a single utterance through the code.
T labels (100 Hz; diarization only)."""
import argparse
import json
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data import SAMPLE_RATE, Corpus, DataError, Utterance, diarization_labels, load_audio
from tasks import TASKS, Task

GROUPS = {"content": "#1b6ca8", "speaker": "#b26b00", "semantics": "#3d7d24", "paralinguistics": "#8d3f86"}
SPEAKERS, ANSWER = ("#e08a1e", "#2a9d8f"), "#1f55c4"
COLUMNS, PAUSE = 42, 0.3     # characters in a line; seconds between the two utterances of a trial

def pick(corpus: Corpus) -> tuple[str, list[Utterance], object]:
    """The item of median length: its id in predictions/<TASK>.jsonl, its utterance (a trial: two), its reference."""
    named = {u.id: u for u in corpus.utterances}
    items = [(f"{a} {b}", [named[a], named[b]], label) for label, a, b in corpus.trials]
    items = items or [(u.id, [u], u.reference) for u in corpus.utterances]
    return sorted(items, key=lambda item: sum(u.samples for u in item[1]))[len(items) // 2]

def answer(runs: Path, task: Task, name: str):
    """What the finished run of scenario (a) predicted for the item, else None."""
    file = runs / f"ssl-{task.name}" / "predictions" / f"{task.name}.jsonl"
    rows = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return next((row["prediction"] for row in rows if row["id"] == name), None)

def in_lines(value) -> list[str]:
    """A reference or a prediction in at most two lines. A trial's reference is 0 or 1, its prediction a cosine."""
    if isinstance(value, float):
        value = f"cosine {value:.2f}"
    if isinstance(value, int):
        value = "the same speaker" if value else "different speakers"
    if isinstance(value, list):
        value = (", " if " " in "".join(value) else " ").join(value)     # "change language" is one value of three
    return textwrap.wrap(value, COLUMNS, max_lines=2, placeholder=" …")

def write(axes: Axes, right: float, up: float, text: str, **look) -> None:
    """Text that begins so many points to the right of the panel's upper left corner, and above it."""
    axes.annotate(text, (0, 1), (right, up), "axes fraction", textcoords="offset points", **look)

def write_labels(axes: Axes, reference, prediction) -> None:
    """The label, then the answer, above the spectrogram."""
    up = 37.0
    for name, value, colour in (("label", reference, "black"), ("head", prediction, ANSWER)):
        if value is not None:
            write(axes, 0, up, name, color="grey", fontsize=8)
            for line in in_lines(value):
                write(axes, 29, up, line, color=colour, fontsize=8)
                up -= 10.5

def draw_spectrogram(axes: Axes, waves: list[np.ndarray]) -> float:
    """Energy by time and frequency in windows of 25 ms, 60 dB deep, one wave after the other; -> seconds drawn."""
    end = -PAUSE
    for wave in waves:
        start, end = end + PAUSE, end + PAUSE + len(wave) / SAMPLE_RATE
        power, _, _, image = axes.specgram(wave, NFFT=400, noverlap=320, Fs=SAMPLE_RATE, xextent=(start, end),
                                           cmap="Greys")
        loudest = 10 * np.log10(power.max())
        image.set_clim(loudest - 60, loudest)
    return end

def draw_turns(axes: Axes, samples: int, reference: list, prediction: list | None) -> None:
    """Who speaks when: bars above the spectrogram, a row and a colour for each speaker; label, then answer."""
    rows = {"label": diarization_labels(reference, samples)}                           # (T, 2)
    if prediction is not None:
        found = diarization_labels([*prediction, ["0", 0, 0], ["1", 0, 0]], samples)   # two columns, even if empty
        # The head's order of the speakers means nothing: take the one that fits better.
        rows["head"] = max(found, found[:, ::-1], key=lambda labels: (labels * rows["label"]).sum())
    for (name, labels), top in zip(rows.items(), (1.28, 1.13)):    # in heights of the panel
        axes.text(-0.01, top - 0.07, name, transform=axes.transAxes, ha="right", color="grey", fontsize=8)
        for column, colour, up in zip(labels.T, SPEAKERS, (top, top - 0.06)):
            axes.fill_between(np.arange(len(column)) / 100, up, up - 0.05, where=column > 0, step="post", color=colour,
                              linewidth=0, transform=axes.get_xaxis_transform(), clip_on=False)

def draw(data: Path, runs: Path) -> Figure:
    """Nine panels, a row for each group of tasks (the last row has two). DataError if a task's data are missing."""
    figure, tasks = Figure(figsize=(10, 9)), sorted(TASKS.values(), key=lambda task: list(GROUPS).index(task.group))
    figure.subplots_adjust(left=0.045, right=0.985, bottom=0.055, top=0.893, wspace=0.14, hspace=0.72)
    figure.supxlabel("seconds", fontsize=8)
    for axes, task in zip(figure.subplots(3, 3).flat, tasks):
        corpus = task.read(data, "test")
        name, utterances, reference = pick(corpus)
        prediction, colour = answer(runs, task, name), GROUPS[task.group]
        axes.set_xlim(0, draw_spectrogram(axes, [load_audio(u, corpus) for u in utterances]))
        axes.set_yticks([0, 4000, 8000], ["0", "4", "8 kHz"])
        axes.tick_params(labelsize=8, length=2)
        if isinstance(reference, list) and isinstance(reference[0], list):
            draw_turns(axes, utterances[0].samples, reference, prediction)
        else:
            write_labels(axes, reference, prediction)
        write(axes, 0, 54, task.name, fontsize=12, weight="bold", color=colour)
        write(axes, 38, 54, task.title, fontsize=9.5, color=colour)
    return figure

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/toy"), help="folder with the datasets")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder with the runs, for the answers")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for tasks.png")
    args = parser.parse_args()
    try:
        figure = draw(args.data, args.runs)
    except DataError as error:
        parser.exit(2, f"error: {error}\n")
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "tasks.png", dpi=130)
    print(f"wrote {args.out / 'tasks.png'}")

if __name__ == "__main__":
    main()
