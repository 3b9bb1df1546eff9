"""The nine tasks in one picture: an utterance of each, its label and a head's answer (paper, Section 3.1).

    python -m tools.tour [--data data/toy] [--runs runs] [--out figures]      -> figures/tasks.png

A panel shows the test utterance (ASV: two) of median length as a spectrogram, its energy by time and frequency, and
above it the label. Where runs/ssl-<TASK> is finished, its answer stands beneath the label. TOUR.md then follows a
single utterance through the code. N samples (16 kHz), T labels (100 Hz; diarization only)."""
import argparse
import json
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from data import SAMPLE_RATE, Corpus, DataError, diarization_labels, load_audio
from tasks import TASKS, Task

SPEAKERS = ListedColormap(["white", "#e08a1e", "#2a9d8f"])  # nobody, one, the other
COLUMNS = 50  # characters in a line

def pick(corpus: Corpus) -> tuple[str, np.ndarray, object]:
    """The item of median length: its id in predictions/<TASK>.jsonl, its wave (N,), its reference.
    The two utterances of a trial come one after the other, with a pause of 0.3 s."""
    utterances = {u.id: u for u in corpus.utterances}
    items = [(label, [a, b]) for label, a, b in corpus.trials] or [(u.reference, [u.id]) for u in corpus.utterances]
    items.sort(key=lambda item: sum(utterances[id].samples for id in item[1]))
    reference, ids = items[len(items) // 2]
    pause = np.zeros(int(0.3 * SAMPLE_RATE), np.float32)
    parts = [part for id in ids for part in (pause, load_audio(utterances[id], corpus))]
    return " ".join(ids), np.concatenate(parts[1:]), reference

def answer(runs: Path, task: Task, name: str):
    """What the finished run of scenario (a) predicted for the item, else None."""
    file = runs / f"ssl-{task.name}" / "predictions" / f"{task.name}.jsonl"
    rows = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return next((row["prediction"] for row in rows if row["id"] == name), None)

def in_lines(who: str, value) -> str:
    """A reference or a prediction in at most two lines. A trial's reference is 0 or 1, its prediction a cosine."""
    if isinstance(value, float):
        value = f"cosine {value:.2f}"
    if isinstance(value, int):
        value = "the same speaker" if value else "different speakers"
    if isinstance(value, list):
        value = (", " if " " in "".join(value) else " ").join(value)     # "change language" is one value of three
    return "\n".join(textwrap.wrap(f"{who}: {value}", COLUMNS, max_lines=2, placeholder=" …"))

def draw_turns(axes: Axes, samples: int, reference: list, prediction: list | None) -> None:
    """Who speaks when: bars above the spectrogram, a row and a colour for each speaker; label, then answer."""
    rows = [diarization_labels(reference, samples)]                                    # (T, 2)
    if prediction is not None:
        found = diarization_labels([*prediction, ["0", 0, 0], ["1", 0, 0]], samples)   # two columns, even if empty
        # The head's order of the speakers means nothing: take the one that fits better.
        rows.append(max(found, found[:, ::-1], key=lambda labels: (labels * rows[0]).sum()))
    strip = axes.inset_axes((0, 1.02, 1, 0.13 * len(rows)))
    strip.imshow(np.hstack(rows).T * ([[1], [2]] * len(rows)), SPEAKERS, aspect="auto", interpolation="nearest")
    strip.set_yticks([0.5, 2.5][:len(rows)], ["label", "head"][:len(rows)])
    strip.set_xticks([])
    strip.axhline(1.5, color="black", linewidth=0.8)

def draw(data: Path, runs: Path) -> Figure:
    """A panel for each task, the tasks of a group together. DataError if a task's data are missing."""
    rows = -(-len(TASKS) // 3)
    figure = Figure(figsize=(10, 3 * rows))
    figure.subplots_adjust(left=0.045, right=0.985, bottom=0.055, top=0.893, wspace=0.14, hspace=0.72)
    figure.supxlabel("seconds")
    for k, task in enumerate(sorted(TASKS.values(), key=lambda task: task.group), 1):
        corpus, axes = task.read(data, "test"), figure.add_subplot(rows, 3, k)
        name, wave, reference = pick(corpus)
        prediction = answer(runs, task, name)
        with np.errstate(divide="ignore"):  # the pause has no energy at all
            power, _, _, image = axes.specgram(wave, NFFT=400, noverlap=320, Fs=SAMPLE_RATE, cmap="Greys")
        loudest = 10 * np.log10(power.max())
        image.set_clim(loudest - 60, loudest)  # dB
        axes.set_yticks([0, 4000, 8000], ["0", "4", "8 kHz"])
        if isinstance(reference, list) and isinstance(reference[0], list):
            draw_turns(axes, len(wave), reference, prediction)
        else:
            axes.text(0, 1.37, in_lines("label", reference), va="top", transform=axes.transAxes)
            if prediction is not None:
                axes.text(0, 1.19, in_lines("head", prediction), va="top", transform=axes.transAxes, color="#1f55c4")
        axes.text(0, 1.42, f"{task.name}: {task.title}", fontsize=10, weight="bold", transform=axes.transAxes)
    return figure

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/toy"), help="folder with the datasets")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder with the runs, for the answers")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for tasks.png")
    args = parser.parse_args()
    matplotlib.rc("font", size=8)
    try:
        figure = draw(args.data, args.runs)
    except DataError as error:
        parser.exit(2, f"error: {error}\n")
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "tasks.png", dpi=130)
    print(f"wrote {args.out / 'tasks.png'}")

if __name__ == "__main__":
    main()
