"""Own data: a table per task, which is read instead of the folders of SUPERB's dataset.

A data folder may hold <TASK>.tsv: UTF-8, separated by tabs, with a header line and these columns.

    KS SID ER   path split label
    IC          path split, and one column per slot under any name
    ASR         path split text
    PR          path split phonemes     phonemes are separated by spaces
    SF          path split text         for example: play B-artist ABBA E-artist
    SD          path split rttm         an RTTM file with the turns of the recording
    ASV         path split speaker      and ASV.trials.tsv: split label path path

Paths start from the data folder; split is train, dev or test. Columns start and stop (seconds) may
be added to use a part of a file. Classes and symbols are those of train, sorted. The recipe, the
head and the metrics are the task's.
"""
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from corpus import Corpus, Utterance
from data import cut_recordings, keep_trials
from engine.files import UNKNOWN_SYMBOL, check, data_folder, read_rttm, read_text
from engine.measure import measure_corpus
from rules import (ASR_SYMBOLS, GAIN, PR_SYMBOLS, SAMPLE_RATE, SF_SYMBOLS, SPEAKER_CROP,
                   clip_turns, encode, word_characters)

FORMS = {"KS": "path split label", "SID": "path split label", "ER": "path split label",
         "IC": "path split slot slot", "ASR": "path split text", "PR": "path split phonemes",
         "SF": "path split text", "SD": "path split rttm", "ASV": "path split speaker"}
TRIALS = "split label path path"
RESERVED = {"ASR": ASR_SYMBOLS[:5], "PR": PR_SYMBOLS[:3], "SF": SF_SYMBOLS[:4]}  # special symbols
MAX_SPEAKERS = 6  # in one recording: the loss of SD tries all orders of them


@dataclass(frozen=True)
class Row:
    """One line of a table."""
    task: str
    file: Path
    number: int        # of the line
    form: str          # the names of the expected columns
    header: list[str]
    cells: list[str]

    def __getitem__(self, column: str) -> str:
        """A cell; "" if it is missing.

        Cells are NFC-normalised, so ä has one encoding. Paths are not."""
        if column not in self.header[:len(self.cells)]:
            return ""
        cell = self.cells[self.header.index(column)]
        return cell if column in ("path", "rttm") else unicodedata.normalize("NFC", cell)

    def check(self, ok, problem: str) -> None:
        """Raises DataError, with the number of the line, unless `ok`."""
        form = self.form.replace(" ", "<tab>")
        check(ok, f"{self.task}: line {self.number}: {problem} ({self.file}); expected: {form}")

    def samples(self, column: str) -> int | None:
        """The cell start or stop in samples; None if it is empty."""
        text = self[column]
        if not text:
            return None
        is_number = re.fullmatch(r"\d{1,6}(\.\d*)?|\.\d+", text)
        self.check(is_number, f"the {column} {text} is not a number of seconds")
        return round(float(text) * SAMPLE_RATE)

    def utterance(self, root: Path, target=None, reference=None) -> Utterance:
        """The utterance of this line; its length is measured later."""
        start, stop = self.samples("start") or 0, self.samples("stop")
        self.check(stop is None or start < stop, "the stop is not after the start")
        name = f"{self['path']}@{start}" if start else self["path"]
        return Utterance(name, str(root / self["path"]), target, reference, start=start, stop=stop)


def has_table(task: str, root) -> bool:
    """Whether the data folder holds a table of this task."""
    file = Path(root, f"{task}.tsv").expanduser()
    return task in FORMS and os.path.lexists(file)  # a broken link is an error, not "no table"


def read_table(task: str, root, split: str, skip_broken=False, cache: Path | None = None) -> Corpus:
    """One split of the table of a task. Raises DataError if a line is wrong.

    `skip_broken` and `cache` are those of `engine.measure.measure_corpus`."""
    root = data_folder(task, root)
    file = root / f"{task}.tsv"
    rows = read_rows(task, file, FORMS[task])
    train = [row for row in rows if row["split"] == "train"]
    own = [row for row in rows if row["split"] == split]
    check(train and own, f"{task}: no line for {split if train else 'train'} in {file}; add some")
    row_of_id = {}
    for row in own:
        check_path(row, "path", root, skip_broken)
        name = row.utterance(root).id
        if name in row_of_id:
            row.check(False, f"the same part of a file is in line {row_of_id[name].number}")
        row_of_id[name] = row
    turns = {}
    ctc = task in RESERVED and split == "train"
    if task in RESERVED:
        corpus = text_corpus(task, train, own, root)
    elif task == "SD":
        corpus, turns = turns_corpus(train, own, root)
    elif task == "ASV":
        corpus = speaker_corpus(train, own, root, split)
    else:
        corpus = class_corpus(task, train, own, root, split)
    corpus = measure_corpus(corpus, root, skip_broken, cache, ctc)
    if task == "SD":
        return cut_recordings(corpus, turns, split, file)
    if task == "ASV" and split != "train":
        trials = read_table_trials(root, split, ids=set(row_of_id))
        return keep_trials(corpus, trials, split, root / "ASV.trials.tsv")
    return corpus


def read_rows(task: str, file: Path, form: str) -> list[Row]:
    """The lines of a table below its header. Raises DataError if a column of `form` is missing."""
    lines = []
    for number, line in enumerate(read_text(task, file, form).splitlines(), 1):
        if line.strip():
            lines.append((number, [cell.strip() for cell in line.split("\t")]))
    header_number, header = lines[0]
    header_row = Row(task, file, header_number, form, header, header)
    columns = [name for name in form.split() if name != "slot"]
    missing = ", ".join(name for name in columns if name not in header)
    shown = "<tab>".join(header)[:60]
    header_row.check(missing == "", f"the header ({shown}) lacks {missing}")
    if "slot" in form:
        columns += slot_names(header)
        header_row.check(len(columns) > 2, "the header has no column for a slot")
    rows = []
    for number, cells in lines[1:]:
        row = Row(task, file, number, form, header, cells)
        row.check(len(cells) <= len(header), f"{len(cells)} cells, but the header has "
                  f"{len(header)}")
        for name in columns:
            row.check(row[name], f"the cell {name} is empty")
        known = row["split"] in ("train", "dev", "test")
        row.check(known, f"the split {row['split']} is none of train, dev and test")
        rows.append(row)
    return rows


def slot_names(header: list[str]) -> list[str]:
    """The columns that are slots of IC."""
    return [name for name in header if name not in ("path", "split", "start", "stop")]


def check_path(row: Row, column: str, root: Path, may_be_missing=False) -> None:
    """Raises DataError if the path in a cell is outside the data folder or does not exist."""
    path = root / row[column]
    inside = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))
    row.check(inside, f"the {column} {row[column]} points outside the data folder")
    row.check(may_be_missing or path.exists(), f"the {column} {row[column]} does not exist")


def class_corpus(task: str, train: list[Row], own: list[Row], root: Path, split: str) -> Corpus:
    """KS, SID, ER: one class per line. IC: one per slot."""
    columns = slot_names(own[0].header) if task == "IC" else ["label"]
    labels = []
    for column in columns:
        labels.append(sorted({row[column] for row in train}))
    utterances = []
    for row in own:
        for column, values in zip(columns, labels):
            row.check(row[column] in values, f"the {column} {row[column]} is in no line for train, "
                      f"which has {', '.join(values[:12])}")
        target = tuple(values.index(row[column]) for column, values in zip(columns, labels))
        reference = [row[column] for column in columns]
        if task == "IC":
            utterances.append(row.utterance(root, target, reference))
        else:
            utterances.append(row.utterance(root, target[0], reference[0]))
    if task == "IC":
        return Corpus(task, utterances, labels)
    if task == "KS":  # no crop to the first second: words of your own may be longer
        return Corpus(task, utterances, labels[0], GAIN, balanced=split == "train")
    crop = SPEAKER_CROP if task == "SID" and split == "train" else None
    return Corpus(task, utterances, labels[0], crop=crop)


def text_corpus(task: str, train: list[Row], own: list[Row], root: Path) -> Corpus:
    """ASR, PR, SF: symbols, and an end of sentence that CTC has to output, as in SUPERB."""
    column = "phonemes" if task == "PR" else "text"
    end = "</s>" if task == "ASR" else "<eos>"
    symbols = set()
    for row in train:
        symbols.update(text_tokens(row, row[column]))
    labels = RESERVED[task] + sorted(symbols - set(RESERVED[task]))
    utterances, unknown = [], {}
    for row in own:
        tokens = text_tokens(row, row[column])
        for token in set(tokens).difference(labels):
            unknown.setdefault(token, row.number)
        reference = "".join(tokens) if task == "SF" else row[column].split()
        utterances.append(row.utterance(root, encode([*tokens, end], labels), reference))
    skipped = []
    for token, number in sorted(unknown.items()):
        skipped.append(f"{token!r} in line {number} of {task}.tsv is in no line for train and "
                       f"{UNKNOWN_SYMBOL}")
    return Corpus(task, utterances, labels, skipped=tuple(skipped))


def text_tokens(row: Row, text: str) -> list[str]:
    """The symbols of a text, without an end of sentence.

    ASR: WIE GEHTS                  -> W I E | G E H T S |
    PR:  HH AH0 L                   -> HH AH0 L
    SF:  PLAY B-artist ABBA E-artist -> P L A Y ` ` `B-artist ` A B B A ` E-artist`"""
    if row.task == "PR":
        return text.split()
    if row.task == "ASR":
        row.check("|" not in text, "the text has the character |, which stands for the space")
        return word_characters(text.split())
    padded = " " + " ".join(text.split()) + " "  # a tag at either end needs its space, too
    tokens = re.findall(r"(?<!\S)B-\S+ | E-\S+|.", padded)
    if tokens[0] == " ":
        tokens = tokens[1:]
    if tokens[-1] == " ":
        tokens = tokens[:-1]
    check_tags(row, [token.strip() for token in tokens if len(token) > 1])
    return tokens


def check_tags(row: Row, tags: list[str]) -> None:
    """Raises DataError unless each tag B-slot is followed by E-slot."""
    opening = ""
    for tag in tags:
        if opening:
            row.check(tag == f"E-{opening[2:]}", f"{opening} is followed by {tag} instead of "
                      f"E-{opening[2:]}")
            opening = ""
        else:
            row.check(tag.startswith("B-"), f"{tag} has no B-{tag[2:]} before it")
            opening = tag
    row.check(opening == "", f"{opening} is not closed by E-{opening[2:]}")


def turns_corpus(train: list[Row], own: list[Row], root: Path) -> tuple[Corpus, dict]:
    """The corpus of SD, and the turns of each utterance.

    The head has an output for each speaker of the train recording with most speakers, at least 2.
    """
    outputs = 2
    for row in train:
        outputs = max(outputs, len({speaker for speaker, _, _ in read_row_turns(row, root)}))
    utterances, turns = [], {}
    for row in own:
        u = row.utterance(root)
        utterances.append(u)
        turns[u.id] = read_row_turns(row, root)
        speakers = len({speaker for speaker, _, _ in turns[u.id]})
        row.check(speakers <= outputs, f"{speakers} speakers, but no line for train has more than "
                  f"{outputs}")
    return Corpus("SD", utterances, [str(column) for column in range(outputs)]), turns


def read_row_turns(row: Row, root: Path) -> list:
    """The turns in the part of a recording that a line uses: a list of [speaker, start, end].

    Times are in seconds from the start of that part."""
    check_path(row, "rttm", root)
    recordings = read_rttm("SD", root / row["rttm"], MAX_SPEAKERS)
    if len(recordings) == 1:  # under any name
        (all_turns,) = recordings.values()
    else:
        all_turns = recordings.get(Path(row["path"]).stem, [])
    u = row.utterance(root)
    stop = u.stop or float("inf")
    turns = clip_turns(all_turns, u.start / SAMPLE_RATE, stop / SAMPLE_RATE)
    row.check(turns, f"the rttm {row['rttm']} has no turn of this recording")
    return turns


def speaker_corpus(train: list[Row], own: list[Row], root: Path, split: str) -> Corpus:
    """ASV: the speakers of train are the classes; dev and test may have others."""
    labels = sorted({row["speaker"] for row in train})
    utterances = []
    for row in own:
        target = labels.index(row["speaker"]) if row["speaker"] in labels else -1
        utterances.append(row.utterance(root, target, row["speaker"]))
    # unlike in SUPERB, recordings of less than 2 s are trained on
    crop = SPEAKER_CROP if split == "train" else None
    return Corpus("ASV", utterances, labels, GAIN, trim=True, crop=crop)


def read_table_trials(root: Path, split: str, ids: set) -> list[tuple[int, str, str]]:
    """The (label, id, id) of ASV.trials.tsv. Raises DataError if an id is not in ASV.tsv.

    The id of a recording is its path. If its line has a start above 0, the id is path@samples, with
    the start in samples at 16 kHz."""
    file = root / "ASV.trials.tsv"
    rows, trials = read_rows("ASV", file, TRIALS), []
    for row in rows:
        row.check(row.header == TRIALS.split(), f"the header is {'<tab>'.join(row.header)}")
        row.check(len(row.cells) == 4, f"{len(row.cells)} cells instead of 4")
        row.check(row["label"] in ("0", "1"), f"the label {row['label']} is neither 0 nor 1")
        if row["split"] == split:
            for name in row.cells[2:]:
                row.check(name in ids, f"the path {name} is in no line for {split} of ASV.tsv "
                          "(one with a start is called path@samples)")
            trials.append((int(row["label"]), *row.cells[2:]))
    return trials
