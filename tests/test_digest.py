"""The digest of a corpus: what decides a result changes it, and nothing else does."""


import os
import shutil

import numpy as np
import pytest
import soundfile
from test_data import AUDIO, READERS, copy, pristine  # noqa: F401 (fixtures)

import data
import engine.measure
from engine.files import DataError
from engine.measure import corpus_digest


@pytest.fixture(autouse=True)
def another_process(monkeypatch):
    """What this process knows of files does not survive a test."""
    monkeypatch.setattr(engine.measure, "PROCESS_DIGESTS", {})


def digests(root, split="train"):
    """{task: digest} of one split."""
    return {task: corpus_digest(read(root, split)) for task, read in READERS.items()}


def test_the_place_of_the_folder_does_not_matter(copy, tmp_path):
    before = digests(copy)
    assert len(set(before.values())) == len(before)
    copied = shutil.copytree(copy, tmp_path / "copied")  # other paths, other times
    for path in copied.rglob("*"):
        os.utime(path, (1, 1))
    assert digests(copied) == before
    assert digests(copy.rename(tmp_path / "moved")) == before


def reversed_lines(file):
    file.write_text("\n".join(reversed(file.read_text().splitlines())) + "\n")


@pytest.mark.parametrize(
    "task, split, path",
    [
        ("PR", "train", "LibriSpeech/train-clean-100/1/2/1-2.trans.txt"),
        ("ASR", "train", "LibriSpeech/train-clean-100/1/2/1-2.trans.txt"),
        ("SID", "train", "VoxCeleb1/iden_split.txt"),
        ("ASV", "test", "VoxCeleb1/veri_test.txt"),
        ("SD", "train", "diarization/train/rttm"),
        ("SF", "train", "SNIPS/all.iob.snips.txt"),
        ("ER", "test", "IEMOCAP/Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"),
        ("IC", "test", "fluent_speech_commands_dataset/data/test_data.csv"),
    ],
)
def test_the_order_of_a_list_does_not_matter(copy, task, split, path):
    before = corpus_digest(READERS[task](copy, split))
    file = copy / path
    if task == "IC":
        header, *rows = file.read_text().splitlines()
        file.write_text("\n".join([header, *reversed(rows)]) + "\n")
    else:
        reversed_lines(file)
    assert corpus_digest(READERS[task](copy, split)) == before


@pytest.mark.parametrize(
    "task, split, path, old, new",
    [
        ("PR", "train", "LibriSpeech/train-clean-100/1/2/1-2.trans.txt", "DAB A", "DAB CAB"),
        ("ASR", "test", "LibriSpeech/test-clean/1/2/1-2.trans.txt", "ZOO", "ZOÖ"),
        ("ASV", "test", "VoxCeleb1/veri_test.txt", "0 id10270/v1", "0 id10270/v2"),
        ("SD", "test", "diarization/test/rttm", "19.0", "19.001"),
        ("SF", "test", "SNIPS/all.iob.snips.txt", "O O artist", "O artist artist"),
        ("IC", "test", "fluent_speech_commands_dataset/data/test_data.csv", "kitchen", "none"),
        ("ER", "test", "IEMOCAP/Session1/dialog/EmoEvaluation/Ses01F_impro01.txt", "sad", "ang"),
    ],
)
def test_a_label_matters(copy, task, split, path, old, new):
    before = corpus_digest(READERS[task](copy, split))
    text = (copy / path).read_text()
    assert old in text
    (copy / path).write_text(text.replace(old, new))
    assert corpus_digest(READERS[task](copy, split)) != before


@pytest.mark.parametrize("task", READERS)
def test_one_changed_sample_matters(copy, task):
    before = corpus_digest(READERS[task](copy, "train"))
    path = copy / AUDIO[task]
    wave, rate = soundfile.read(path, dtype="int16")
    wave[len(wave) // 3] ^= 1
    soundfile.write(path, wave, rate)
    assert corpus_digest(READERS[task](copy, "train")) != before


def test_of_a_large_corpus_three_blocks_of_each_file_are_read(copy, monkeypatch):
    path = copy / AUDIO["IC"]
    soundfile.write(path, np.zeros(40_000), 16_000, subtype="PCM_16")
    corpus, content = data.read_ic(copy, "train"), path.read_bytes()

    def digest_with(offset, **options):
        path.write_bytes(content[:offset] + b"\x01" + content[offset + 1 :])
        os.utime(path, ns=(offset, offset))
        return corpus_digest(corpus, **options)

    small = digest_with(20_000)
    monkeypatch.setattr(engine.measure, "SMALL_CORPUS", 0)
    start, middle, end = 4_095, len(content) // 2, len(content) - 4_096
    assert len({digest_with(k) for k in (start, middle, end, 20_000)}) == 4
    assert digest_with(20_000) == digest_with(30_000) != small
    assert digest_with(20_000, every_byte=True) == small != digest_with(30_000, every_byte=True)


def test_a_file_is_read_once_per_process_and_once_with_a_cache(copy, tmp_path, monkeypatch):
    read = []

    def counting(path, whole):
        read.append(path)
        return "0"

    monkeypatch.setattr(engine.measure, "audio_file_digest", counting)
    pr, asr = data.read_pr(copy, "train"), data.read_asr(copy, "train")
    assert corpus_digest(pr, tmp_path) == corpus_digest(pr, tmp_path)
    corpus_digest(asr, tmp_path)  # of the same recordings, and one more
    assert sorted(read) == sorted({u.path for u in asr.utterances})
    monkeypatch.setattr(engine.measure, "PROCESS_DIGESTS", {})
    corpus_digest(asr, tmp_path)
    assert len(read) == 3
    monkeypatch.setattr(engine.measure, "PROCESS_DIGESTS", {})
    corpus_digest(asr)
    assert len(read) == 6


def test_a_file_that_is_gone_is_one_sentence(copy):
    corpus = data.read_ic(copy, "train")
    (copy / AUDIO["IC"]).unlink()
    with pytest.raises(DataError, match="IC: No such file or directory in .*train0.wav; "):
        corpus_digest(corpus)
