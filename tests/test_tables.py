"""Own data in tables: one corpus per task from a few lines of text, and wrong lines are named."""


import pickle
import re
import unicodedata

import numpy as np
import pytest
import soundfile
import torch
from conftest import SPLITS, result
from test_data import copy, doctor, pristine  # noqa: F401 (fixtures)

from batches import collate
from corpus import load_audio
from engine.files import DataError
from engine.measure import corpus_digest
from heads import DiarizationHead
from rules import RECEPTIVE_FIELD
from tables import FORMS, has_table, read_table
from tasks import TASKS, read_split, score, summarise

RTTM = "SPEAKER r 1 {} {} <NA> <NA> {} <NA>\n"


def wav(path, seconds=1.0, seed=0):
    """Noise, which nothing takes for silence."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(seed).standard_normal(int(16_000 * seconds))
    soundfile.write(path, noise, 16_000, subtype="PCM_16")


def lines(root, task, *rows, header=None, name=None):
    """Write a table: cells are separated by |."""
    header = header or FORMS[task].replace(" ", "|")
    text = "\n".join(row.replace("|", "\t") for row in (header, *rows)) + "\n"
    (root / f"{name or task}.tsv").write_text(text)


@pytest.fixture
def own(tmp_path):
    """A data folder with recordings and a table for each of the nine tasks."""
    for split in SPLITS:
        for k in range(4):
            wav(tmp_path / f"{split}/{k}.wav", 1 + k / 2, seed=k)
        (tmp_path / f"{split}/turns.rttm").write_text(
            RTTM.format(0, 0.7, "zoe") + RTTM.format(0.5, 0.5, "bob") + RTTM.format(0.9, 0.1, "ann")
        )

    def rows(*cells):
        return [f"{split}/{k}.wav|{split}|{cell}" for split in SPLITS
                for k, cell in enumerate(cells)]

    lines(tmp_path, "KS", *rows("ja", "nein", "halt", "ja"))
    lines(tmp_path, "SID", *rows("zoe", "bob", "zoe", "bob"))
    lines(tmp_path, "ER", *rows("froh", "froh", "müde", "müde"))
    lines(tmp_path, "IC", *rows("an|licht", "aus|licht", "an|ofen", "aus|ofen"),
          header="path|split|was|wo")
    lines(tmp_path, "ASR", *rows("wie geht es", "Größe äß", "ja", "wie geht"))
    lines(tmp_path, "PR", *rows("v iː", "ɡ eː t", "ʔ ɛ s", "ja ː"))
    lines(tmp_path, "SF", *rows("spiel B-artist ABBA E-artist", "B-city Köln E-city", "halt",
                                "B-artist A E-artist B-city B E-city"))
    lines(tmp_path, "SD", *rows(*[f"{SPLITS[0]}/turns.rttm"] * 4))
    lines(tmp_path, "ASV", *rows("zoe", "bob", "zoe", "bob"))
    trials = [f"{split}|{label}|{split}/{a}.wav|{split}/{b}.wav" for split in ("dev", "test")
              for label, a, b in ((1, 0, 2), (0, 0, 1), (1, 1, 3))]
    lines(tmp_path, "ASV", *trials, header="split|label|path|path", name="ASV.trials")
    return tmp_path


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("name", TASKS)
def test_a_table_goes_from_file_to_score(own, name):
    """As a dataset does: audio, targets, a head, a decoder and the metrics fit together."""
    task = TASKS[name]
    for split in SPLITS:
        corpus = pickle.loads(pickle.dumps(read_split(name, own, split)))
        assert len(corpus.utterances) == 4 and not corpus.skipped and corpus.task == name
        for u in corpus.utterances:
            assert len(load_audio(u, corpus)) == u.samples >= RECEPTIVE_FIELD
        assert corpus.labels == read_split(name, own, "train").labels
    batch = collate(corpus, [(k, None) for k in range(4)])
    head = task.head(8, corpus.classes, 16)
    frames = torch.tensor([49, 74, 99, 124])
    features = torch.randn(4, 124, 8)
    train = read_split(name, own, "train")
    targets = [u.target for u in train.utterances]
    assert torch.isfinite(head.loss(features, frames, targets))
    outputs = head.predict(features, frames)
    predictions = {}
    for utterance, output in zip(batch.ids, outputs):
        predictions[utterance] = task.decode(corpus.labels, output)
    metrics = summarise(task, score(task, corpus, predictions))
    assert list(metrics) == [metric.name for metric in task.metrics]
    if not corpus.trials:
        answers = {u.id: u.reference for u in corpus.utterances}
        perfect = summarise(task, score(task, corpus, answers))
        for metric in task.metrics:
            assert perfect[metric.name] == pytest.approx(0 if metric.lower_is_better else 100)


@pytest.mark.parametrize("name", ["KS", "IC", "SF", "SD", "ASV"])
def test_a_table_is_trained_on_like_a_dataset(own, run_train, name):
    if name == "IC":  # one slot
        rows = (own / "IC.tsv").read_text().splitlines()
        (own / "IC.tsv").write_text("".join(row.rpartition("\t")[0] + "\n" for row in rows))
    run_train(own / "runs", "--scenario", "ssl", "--task", name, "--data", own)
    metrics = result(own / "runs", f"ssl-{name}")["metrics"][name]
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("name", TASKS)
def test_targets_decode_to_references(own, name):
    corpus, task = read_split(name, own, "train"), TASKS[name]
    for u in corpus.utterances:
        if name == "SD":
            turns = task.decode(corpus.labels, u.target, median=1)
            assert len(turns) == len(u.reference)
        elif name != "ASV":
            assert task.decode(corpus.labels, u.target) == u.reference


def test_classes_and_symbols_are_those_of_train_sorted(own):
    assert read_split("KS", own, "test").labels == ["halt", "ja", "nein"]
    assert read_split("IC", own, "dev").labels == [["an", "aus"], ["licht", "ofen"]]
    assert read_split("IC", own, "dev").classes == (2, 2)
    assert read_split("ASR", own, "dev").labels == [
        "<s>", "<pad>", "</s>", "<unk>", "|", *sorted(set("wiegehtesGrößeäßja"))]
    phonemes = set("v iː ɡ eː t ʔ ɛ s ja ː".split())
    assert read_split("PR", own, "dev").labels[3:] == sorted(phonemes)
    assert {"B-artist ", " E-artist", "B-city ", " E-city", "ö"} < set(
        read_split("SF", own, "dev").labels)
    assert read_split("SD", own, "dev").labels == ["0", "1", "2"]  # three speakers
    assert read_split("ASV", own, "dev").labels == ["bob", "zoe"]


def test_german_text_keeps_its_letters(own):
    corpus = read_split("ASR", own, "train")
    assert corpus.utterances[1].reference == ["Größe", "äß"]
    apart = unicodedata.normalize("NFD", (own / "ASR.tsv").read_text())
    assert apart != (own / "ASR.tsv").read_text()
    (own / "ASR.tsv").write_text(apart)  # a + two dots is the same letter
    assert read_split("ASR", own, "train") == corpus
    slots = read_split("SF", own, "train").utterances[1].reference
    assert slots == "B-city Köln E-city"


def test_a_table_goes_before_the_folders_of_the_dataset(copy):
    assert not has_table("KS", copy)
    before = read_split("KS", copy, "train").labels
    path = "speech_commands_v0.01/bed/004ae714_nohash_0.wav"
    lines(copy, "KS", f"{path}|train|bed", f"{path}|dev|bed")
    assert has_table("KS", copy) and read_split("KS", copy, "dev").labels == ["bed"] != before


def test_a_table_has_no_folds(own):
    assert read_split("ER", own, "train", fold=1).labels == ["froh", "müde"]
    with pytest.raises(DataError, match="ER: no folds in .*ER.tsv; leave out --fold"):
        read_split("ER", own, "train", fold=2)


def test_a_part_of_a_file_is_used_from_start_to_stop(own):
    rows = [f"train/3.wav|train|{word}|{start}|{stop}" for word, start, stop in
            (("ja", "", "0.5"), ("nein", "0.5", "1.25"), ("ja", "1.25", ""))]
    lines(own, "KS", *rows, header="path|split|label|start|stop")
    corpus = read_split("KS", own, "train", skip_broken=True)
    assert [u.id for u in corpus.utterances] == ["train/3.wav", "train/3.wav@8000",
                                                 "train/3.wav@20000"]
    assert [u.samples for u in corpus.utterances] == [8_000, 12_000, 20_000]
    whole, _ = soundfile.read(own / "train/3.wav", dtype="float32")
    heard = np.concatenate([load_audio(u, corpus) for u in corpus.utterances])
    assert np.allclose(heard, whole * np.float32(corpus.gain))
    asv = [row.replace("ja", "zoe") for row in rows]
    lines(own, "ASV", *asv, header="path|split|speaker|start|stop")
    corpus = read_split("ASV", own, "train")
    assert [len(load_audio(u, corpus)) for u in corpus.utterances] == [
        u.samples for u in corpus.utterances]


def test_a_trial_names_a_recording_with_a_start_by_its_path_and_samples(own):
    table, trials = own / "ASV.tsv", own / "ASV.trials.tsv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([f"{header}\tstart", *(f"{row}\t0.25" for row in rows)]))
    with pytest.raises(DataError, match="dev/0.wav is in no line .*called path@samples"):
        read_table("ASV", own, "dev")
    trials.write_text(trials.read_text().replace(".wav", ".wav@4000"))
    corpus = read_table("ASV", own, "dev")
    assert corpus.trials[0][1:] == ("dev/0.wav@4000", "dev/2.wav@4000")


def test_turns_of_a_part_begin_with_it(own):
    lines(own, "SD", "train/3.wav|train|train/turns.rttm|0.6|0.95",
          header="path|split|rttm|start|stop")
    (u,) = read_split("SD", own, "train").utterances
    assert [[speaker, round(on, 3), round(off, 3)] for speaker, on, off in u.reference] == [
        ["zoe", 0.0, 0.1], ["bob", 0.0, 0.35], ["ann", 0.3, 0.35]]
    assert u.target.shape == (35, 3) and (u.start, u.stop) == (9_600, 15_200)
    assert u.target.sum(0).tolist() == [5, 35, 10]  # ann, bob, zoe


def test_an_rttm_may_hold_several_recordings(own):
    text = "".join(RTTM.replace("SPEAKER r", f"SPEAKER {k}").format(0, 0.5, f"s{k}")
                   for k in range(4))
    (own / "train/turns.rttm").write_text(text)
    corpus = read_split("SD", own, "train")
    assert [u.reference[0][0] for u in corpus.utterances] == ["s0", "s1", "s2", "s3"]
    assert corpus.classes == 2


def test_a_symbol_that_train_lacks_is_told(own):
    text = (own / "ASR.tsv").read_text().replace("dev\tja", "dev\tjx")
    (own / "ASR.tsv").write_text(text)
    corpus = read_split("ASR", own, "dev")
    assert len(corpus.utterances) == 4 and corpus.utterances[2].reference == ["jx"]
    assert corpus.skipped == ("'x' in line 8 of ASR.tsv is in no line for train and cannot be "
                              "recognised",)


def test_short_recordings_of_own_speakers_train(own):
    assert [u.samples for u in read_split("ASV", own, "train").utterances][0] < 2 * 16_000


def test_the_order_of_lines_does_not_change_the_digest(own):
    for name in TASKS:
        before = corpus_digest(read_split(name, own, "test"))
        header, *rows = (own / f"{name}.tsv").read_text().splitlines()
        (own / f"{name}.tsv").write_text("\n".join([header, *reversed(rows)]))
        assert corpus_digest(read_split(name, own, "test")) == before


# ---------------------------------------------------------------- what is wrong is named


def replaced(task, old, new):
    """A way to break a table."""

    def breaking(root):
        text = (root / f"{task}.tsv").read_text()
        assert old in text
        (root / f"{task}.tsv").write_text(text.replace(old, new, 1))

    return breaking


def emptied(task):
    return lambda root: (root / f"{task}.tsv").write_text("")


@pytest.mark.parametrize(
    "task, split, breaking, words",
    [
        ("KS", "train", emptied("KS"), "nothing in .*KS.tsv"),
        ("KS", "train", replaced("KS", "\tlabel", ""), "line 1: the header .path<tab>split. "
         r"lacks label \(.*KS.tsv\); expected: path<tab>split<tab>label$"),
        ("KS", "train", replaced("KS", "path\tsplit\tlabel", "path,split,label"),
         "line 1: the header .path,split,label. lacks path, split, label "),
        ("KS", "train", replaced("KS", "\tja", ""),
         r"line 2: the cell label is empty \(.*KS.tsv\); expected: "),
        ("KS", "train", replaced("KS", "\tja", "\tja\tnein"),
         "line 2: 4 cells, but the header has 3 "),
        ("KS", "train", replaced("KS", "\ttrain", "\tvalid"),
         "line 2: the split valid is none of train, dev and test "),
        ("KS", "dev", replaced("KS", "dev\tja", "dev\tjo"),
         "line 6: the label jo is in no line for train, which has halt, ja, nein "),
        ("KS", "dev", replaced("KS", "dev/0.wav", "dev/9.wav"),
         r"line 6: the path dev/9.wav does not exist \("),
        ("KS", "dev", replaced("KS", "dev/0.wav", "../dev/0.wav"),
         r"line 6: the path ../dev/0.wav points outside the data folder \("),
        ("KS", "dev", replaced("KS", "dev/0.wav", "/etc/passwd"),
         "line 6: the path /etc/passwd points outside"),
        ("KS", "dev", replaced("KS", "dev/1.wav", "dev/0.wav"),
         "line 7: the same part of a file is in line 6 "),
        ("IC", "test", replaced("IC", "test\tan", "test\tauf"),
         "line 10: the was auf is in no line for train, which has an, aus "),
        ("IC", "test", replaced("IC", "\twas\two", ""),
         "line 1: the header has no column for a slot"),
        ("IC", "test", replaced("IC", "test\tan\tlicht", "test\tan"),
         "line 10: the cell wo is empty"),
        ("ASR", "train", replaced("ASR", "wie geht", "wie|geht"),
         r"line 2: the text has the character \|"),
        ("SF", "train", replaced("SF", " E-artist", ""),
         "line 2: B-artist is not closed by E-artist "),
        ("SF", "train", replaced("SF", "E-artist", "E-city"),
         "line 2: B-artist is followed by E-city instead of E-artist "),
        ("SF", "train", replaced("SF", "B-artist ABBA ", ""),
         "line 2: E-artist has no B-artist before it "),
        ("SD", "train", replaced("SD", "turns.rttm", "other.rttm"),
         "line 2: the rttm train/other.rttm does not exist"),
        ("SD", "train", replaced("SD", "train/turns", "../turns"),
         "line 2: the rttm ../turns.rttm points outside"),
        ("ASV", "dev", replaced("ASV.trials", "dev/0.wav", "dev/9.wav"),
         "line 2: the path dev/9.wav is in no line for dev of ASV.tsv .*ASV.trials.tsv.; expected: "
         "split<tab>label<tab>path<tab>path"),
        ("ASV", "dev", replaced("ASV.trials", "dev\t1", "dev\tyes"),
         "line 2: the label yes is neither 0 nor 1 "),
        ("ASV", "dev", replaced("ASV.trials", "split\tlabel", "label\tsplit"),
         "line 2: the split 1 is none of "),
        ("ASV", "dev", lambda root: lines(root, "ASV", "1|dev|dev/0.wav|dev/2.wav",
                                          header="label|split|path|path", name="ASV.trials"),
         "line 2: the header is label<tab>split<tab>path<tab>path .*expected: split<tab>label<"),
        ("ASV", "dev", replaced("ASV.trials", "\tdev/2.wav", ""), "line 2: 3 cells instead of 4 "),
        ("ASV", "dev", lambda root: (root / "ASV.trials.tsv").unlink(), "No such file .*trials"),
        ("ASV", "dev", replaced("ASV.trials", "dev\t0", "test\t0"),
         "no usable dev trials of both labels in .*ASV.trials.tsv"),
    ],
)
def test_a_wrong_line_is_named(own, task, split, breaking, words):
    breaking(own)
    with pytest.raises(DataError, match=f"^{task}: .*{words}") as error:
        read_split(task, own, split)
    assert str(own) in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize("task", TASKS)
def test_a_split_without_lines_is_named(own, task):
    text = (own / f"{task}.tsv").read_text()
    (own / f"{task}.tsv").write_text(re.sub(r"(?m)^dev/.*\n", "", text))
    with pytest.raises(DataError, match=f"^{task}: no line for dev in .*{task}.tsv; add some"):
        read_split(task, own, "dev")
    read_split(task, own, "train")


@pytest.mark.parametrize(
    "start, stop, words",
    [
        ("soon", "", "line 2: the start soon is not a number of seconds "),
        ("-1", "", "line 2: the start -1 is not a number of seconds "),
        ("0.5", "0.5", "line 2: the stop is not after the start "),
        ("0", "9", "ends after the recording, which has 1.00 s"),
        ("1.0", "", "ends after the recording"),
    ],
)
def test_a_part_that_cannot_be_is_named(own, start, stop, words):
    lines(own, "KS", f"train/0.wav|train|ja|{start}|{stop}", "dev/0.wav|dev|ja",
          header="path|split|label|start|stop")
    with pytest.raises(DataError, match=f"^KS: .*{words}"):
        read_split("KS", own, "train")


@pytest.mark.parametrize("text", [";; nobody\n", RTTM.format(0, 1, "a").replace("R r", "R x")
                                  + RTTM.format(0, 1, "a").replace("R r", "R y")])
def test_an_rttm_without_turns_of_the_recording_is_named(own, text):
    (own / "train/turns.rttm").write_text(text)
    with pytest.raises(DataError, match="SD: line 2: the rttm train/turns.rttm has no turn of this "
                       "recording .*SD.tsv.; expected: path<tab>split<tab>rttm"):
        read_split("SD", own, "train")


def test_more_speakers_than_the_head_has_outputs_are_named(own):
    text = "".join(RTTM.format(0, 1, f"s{k}") for k in range(4))
    (own / "train/four.rttm").write_text(text)
    broken = (own / "SD.tsv").read_text().replace("dev\ttrain/turns", "dev\ttrain/four", 1)
    (own / "SD.tsv").write_text(broken)
    with pytest.raises(DataError, match="SD: line 6: 4 speakers, but no line for train has more "
                       "than 3 .*SD.tsv.; expected: path<tab>split<tab>rttm"):
        read_split("SD", own, "dev")
    more = "".join(RTTM.format(0, 1, f"t{k}") for k in range(3))
    (own / "train/four.rttm").write_text(text + more)
    with pytest.raises(DataError, match="SD: r has 7 speakers in .*four.rttm; keep at most 6"):
        read_split("SD", own, "dev")


def test_broken_files_of_a_table_can_be_skipped(own):
    (own / "train/0.wav").unlink()
    (own / "train/1.wav").write_bytes(b"?")
    corpus = read_split("KS", own, "train", skip_broken=True)
    assert [u.id for u in corpus.utterances] == ["train/2.wav", "train/3.wav"]
    assert "(no such file)" in corpus.skipped[0] and "not audio" in corpus.skipped[1]


def test_keywords_without_a_table_are_told_to_use_one(copy):
    for place in ("speech_commands_v0.01", "speech_commands_test_set_v0.01"):
        (copy / place / "yes").rename(copy / place / "hallo")
    for split in SPLITS:
        with pytest.raises(DataError, match="KS: .*KS.tsv: path<tab>split<tab>label"):
            TASKS["KS"].read(copy, split)


def test_the_doctor_shows_tables_like_datasets(own, capsys):
    wrong, text = doctor(capsys, own)
    assert not wrong
    for task in TASKS:
        assert re.search(rf"^{task} +{task}\.tsv +4 +4 +4$|^ASV +ASV\.tsv +4 +3 +3$", text, re.M)
    replaced("ER", "dev\tfroh", "dev\twütend")(own)
    wrong, text = doctor(capsys, own, "--task", "ER")
    assert wrong and "ER: line 6: the label wütend is in no line" in text and "KS" not in text


def test_a_table_of_more_speakers_makes_a_larger_head(own):
    head = DiarizationHead(8, read_table("SD", own, "train").classes, 4)
    assert head.output.out_features == 3
