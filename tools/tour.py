"""One picture of the nine tasks: an utterance, its label, a head's answer (paper, Section 3.1).

    python -m tools.tour [--data data/toy] [--runs runs] [--out figures]      -> figures/tasks.png

A panel shows the test utterance of median length (ASV: two utterances) as a spectrogram, with its
label above. Where the run ssl-<TASK> is finished, its answer is below the label. TOUR.md then
follows one utterance through the code.

N samples (16 kHz), T label frames (100 Hz; diarization only).
"""
import argparse
import math
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from corpus import Corpus, load_audio
from engine.flags import as_path
from engine.launch import friendly_errors
from engine.runs import atomic_file, check_writable, read_json_lines
from rules import SAMPLE_RATE, diarization_labels
from tasks import TASKS, Task

SPEAKER_COLOURS = ListedColormap(["white", "#e08a1e", "#2a9d8f"])   # nobody, one, the other
HEAD_COLOUR = "#1f55c4"
COLUMNS = 47                # characters in a line
LINE_HEIGHT = 0.085         # of a text line, relative to the height of a panel
PAUSE = np.zeros(int(0.3 * SAMPLE_RATE), np.float32)


def pick(corpus: Corpus) -> tuple[str, np.ndarray, object]:
    """The utterance of median length, or the trial, where a corpus has trials.

    Returns its id in predictions/<TASK>.jsonl, its wave (N,) and its reference. The wave of a trial
    is its two utterances with a pause between them.
    """
    by_id = {utterance.id: utterance for utterance in corpus.utterances}
    items = []
    if corpus.trials:
        for label, first, second in corpus.trials:
            items.append((label, [by_id[first], by_id[second]]))
    else:
        for utterance in corpus.utterances:
            items.append((utterance.reference, [utterance]))
    items.sort(key=lambda item: sum(utterance.samples for utterance in item[1]))
    reference, utterances = items[len(items) // 2]

    wave = load_audio(utterances[0], corpus)
    for utterance in utterances[1:]:
        wave = np.concatenate([wave, PAUSE, load_audio(utterance, corpus)])
    return " ".join(utterance.id for utterance in utterances), wave, reference


def answer(runs: Path, task: Task, name: str):
    """The prediction of the run of scenario (a) for an item; None if there is none yet."""
    path = runs / f"ssl-{task.name}" / "predictions" / f"{task.name}.jsonl"
    if path.exists():
        for row in read_json_lines(path):
            if row["id"] == name:
                return row["prediction"]
    return None


def caption(who: str, value) -> str:
    """A reference or a prediction in at most two lines.

    The reference of a trial is 1 for the same speaker, else 0; its prediction is a cosine.
    """
    if isinstance(value, float):
        value = f"cosine {value:.2f}"
    elif isinstance(value, int):
        value = "the same speaker" if value else "different speakers"
    elif isinstance(value, list):
        separator = ", " if any(" " in part for part in value) else " "     # "change language"
        value = separator.join(value)
    lines = textwrap.wrap(f"{who}: {value}", COLUMNS, max_lines=2, placeholder=" …")
    return "\n".join(lines)


def is_turns(reference) -> bool:
    """Whether a reference is a list of [speaker, start, end], which bars show better than words."""
    return isinstance(reference, list) and isinstance(reference[0], list)


def draw_captions(axes: Axes, reference, prediction) -> None:
    """The label, and below it the answer, in the space between title and spectrogram."""
    top = 1.37
    label = caption("label", reference)
    axes.text(0, top, label, va="top", transform=axes.transAxes)
    if prediction is not None:
        top -= LINE_HEIGHT * len(label.splitlines())
        axes.text(0, top, caption("head", prediction), va="top", transform=axes.transAxes,
                  color=HEAD_COLOUR)


def draw_turns(axes: Axes, samples: int, reference: list, prediction: list | None) -> None:
    """Who speaks when, as bars above the spectrogram: a row and a colour for each speaker."""
    bars = [diarization_labels(reference, samples)]                         # (T, 2)
    if prediction is not None:
        # two empty turns, so that there are two columns even if the head found only one speaker
        found = diarization_labels([*prediction, ["0", 0, 0], ["1", 0, 0]], samples)
        # the head's order of the speakers has no meaning: take the order that fits better
        swapped = found[:, ::-1]
        if (swapped * bars[0]).sum() > (found * bars[0]).sum():
            found = swapped
        bars.append(found)
    strip = axes.inset_axes((0, 1.02, 1, 0.13 * len(bars)))
    colours = np.concatenate([labels * [1, 2] for labels in bars], axis=1)  # (T, 2 or 4)
    strip.imshow(colours.T, SPEAKER_COLOURS, vmin=0, vmax=2, aspect="auto",
                 interpolation="nearest")
    strip.set_yticks([0.5, 2.5][:len(bars)], ["label", "head"][:len(bars)])
    strip.set_xticks([])
    strip.axhline(1.5, color="black", linewidth=0.8)


def draw_spectrogram(axes: Axes, wave: np.ndarray) -> None:
    """The energy of a wave (N,) by time and frequency, over a range of 60 dB."""
    with np.errstate(divide="ignore"):      # a pause has no energy at all
        power, _, _, image = axes.specgram(wave, NFFT=400, noverlap=320, Fs=SAMPLE_RATE,
                                           cmap="Greys")
    loudest = 10 * np.log10(power.max())
    image.set_clim(loudest - 60, loudest)
    axes.set_yticks([0, 4000, 8000], ["0", "4", "8"])


def draw(data: Path, runs: Path) -> Figure:
    """A panel for each task, ordered by group. DataError if the data of a task are missing."""
    rows = math.ceil(len(TASKS) / 3)
    figure = Figure(figsize=(10, 3 * rows))
    figure.subplots_adjust(left=0.055, right=0.985, bottom=0.055, top=0.893, wspace=0.14,
                           hspace=0.72)
    figure.supxlabel("seconds")
    for k, task in enumerate(sorted(TASKS.values(), key=lambda task: task.group)):
        axes = figure.add_subplot(rows, 3, k + 1)
        name, wave, reference = pick(task.read(data, "test"))
        prediction = answer(runs, task, name)
        draw_spectrogram(axes, wave)
        if k % 3 == 0:
            axes.set_ylabel("kHz")
        if is_turns(reference):
            draw_turns(axes, len(wave), reference, prediction)
        else:
            draw_captions(axes, reference, prediction)
        axes.text(0, 1.42, f"{task.name}: {task.title}", fontsize=10, weight="bold",
                  transform=axes.transAxes)
    return figure


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=as_path, default=Path("data/toy"), help="the data folder")
    parser.add_argument("--runs", type=as_path, default=Path("runs"),
                        help="folder with the runs, for the answers")
    parser.add_argument("--out", type=as_path, default=Path("figures"), help="folder for tasks.png")
    args = parser.parse_args()
    matplotlib.rc("font", size=8)
    path = args.out / "tasks.png"
    with friendly_errors(debug=False):
        check_writable(path)
        figure = draw(args.data, args.runs)
        with atomic_file(path) as file:
            figure.savefig(file, dpi=130)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
