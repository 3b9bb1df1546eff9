"""The data doctor: what a folder of datasets holds, and what to do about the rest.

    python data.py DIR                 counts beside SUPERB's, problems, and what is left out
    python data.py DIR --task KS ASR   the same for some tasks
    python data.py DIR --decode        decodes every file too, and prints the digests of the splits
"""
import argparse
import os

from corpus import Corpus
from engine.audio import sample_rate
from engine.files import NOT_READ, UNKNOWN_SYMBOL, DataError, printable
from engine.flags import as_path
from engine.measure import corpus_digest
from rules import SAMPLE_RATE
from tables import has_table
from tasks import read_split

SUPERB = {  # task: folders, utterances in train, dev and test (ASV: train recordings, test trials)
    "PR": ("LibriSpeech", 28_539, 2_703, 2_620),
    "ASR": ("LibriSpeech", 28_539, 2_703, 2_620),
    "KS": ("speech_commands", 51_100, 6_804, 3_081),
    "SID": ("VoxCeleb1", 138_361, 6_904, 8_251),
    "ASV": ("VoxCeleb1", 148_642, 0, 37_720),
    "SD": ("Libri2Mix, diarization", 13_900, 3_000, 3_000),
    "IC": ("fluent_speech_commands_dataset", 23_132, 3_118, 3_793),
    "SF": ("SNIPS", 104_672, 2_800, 2_800),
    "ER": ("IEMOCAP", 3_556, 890, 1_085),
}


def main() -> bool:
    """Print the report. Returns True if there is a problem."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="DIR", type=as_path, help="the folder with the datasets")
    parser.add_argument("--task", nargs="+", choices=SUPERB, default=[*SUPERB], metavar="TASK",
                        type=str.upper, help=f"only these of {', '.join(SUPERB)}")
    parser.add_argument("--decode", action="store_true", help="also decode every audio file")
    args = parser.parse_args()
    root = args.root.expanduser()
    if not os.path.isdir(root):
        sentence = f"There is no folder {root}; name the one that holds the datasets."
        parser.exit(2, printable(sentence) + "\n")
    problems, notes = {}, []  # {problem: the tasks that have it}
    print(f"{'':6}{'found / in SUPERB':31}{'train':>19}{'dev':>19}{'test':>19}")
    for task in args.task:
        folder, *expected = SUPERB[task]
        if has_table(task, root):
            folder, expected = f"{task}.tsv", (0, 0, 0)
        row = f"{task:6}{folder:31}"
        for split, count in zip(("train", "dev", "test"), expected):
            try:
                corpus = read_split(task, root, split, skip_broken=args.decode or "headers")
            except DataError as error:
                corpus = Corpus(task, [], [], skipped=(str(error),))
            for sentence in corpus.skipped:
                if sentence.startswith(f"{task}: "):  # of a DataError
                    problems.setdefault(sentence.removeprefix(f"{task}: "), {})[task] = True
            notes += describe(corpus, split, args.decode)
            found = len(corpus.trials) or len({u.path for u in corpus.utterances})
            cell = f"{found:,}" if found else "none"
            row += f"{f'{cell} / {count:,}' if count else cell:>19}"
        print(row)
    print()
    for problem, tasks in problems.items():
        print(f"{', '.join(tasks)}: {problem}.")
    for note in notes:
        print(note)
    print(f"Problems: {len(problems)}.")
    return bool(problems)


def describe(corpus: Corpus, split: str, decoded: bool) -> list[str]:
    """Notes on a split: what is left out, files that are not read, resampling, the digest."""
    notes, left_out = [], []
    for sentence in corpus.skipped:
        if NOT_READ in sentence or UNKNOWN_SYMBOL in sentence:
            notes.append(f"{corpus.task} {split}: {sentence}.")
        elif not sentence.startswith(f"{corpus.task}: "):
            left_out.append(sentence)
    if left_out:
        notes.append(f"{corpus.task} {split}: {len(left_out):,} left out, as {left_out[0]}.")
    paths = sorted({u.path for u in corpus.utterances})
    resampled = [path for path in paths if sample_rate(path) != SAMPLE_RATE]
    if resampled:
        notes.append(printable(f"{corpus.task} {split}: {len(resampled):,} not at 16 kHz (convert "
                               f"them to save time), as {resampled[0]}."))
    if paths and decoded:
        digest = corpus_digest(corpus, every_byte=True)
        notes.append(f"{corpus.task} {split}: the digest of its content is {digest}.")
    return notes


if __name__ == "__main__":
    raise SystemExit(main())
