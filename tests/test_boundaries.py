"""Where a user's files meet the readers: folders in another place, other suffixes, odd names,
damaged files. Each sentence names its own cause."""


import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SPLITS, run_main
from test_data import AUDIO, READERS, copy, doctor, no_decoding, pristine  # noqa: F401

import data
from corpus import Corpus, Utterance, load_audio
from engine.audio import header_samples
from engine.files import NOT_READ, DataError, list_unread, printable, read_rttm
from engine.measure import FileMemory, corpus_digest, measure_corpus
from tasks import read_split



def error_of(task, root, split="train", **options):
    """The sentence of the DataError of a reader."""
    with pytest.raises(DataError) as error:
        READERS[task](root, split, **options)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{task}: ")
    return str(error.value)


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("task, folder", [("PR", "LibriSpeech"), ("ASR", "LibriSpeech"),
                                          ("KS", "speech_commands_v0.01"), ("SID", "VoxCeleb1"),
                                          ("ASV", "VoxCeleb1"), ("SD", "diarization"),
                                          ("IC", "fluent_speech_commands_dataset"),
                                          ("SF", "SNIPS"), ("ER", "IEMOCAP")])
class TestAFolderInAnotherPlace:
    """The data is there: the sentence says where, instead of how to download it."""

    def test_one_folder_too_deep(self, copy, task, folder):
        said = error_of(task, copy / folder)
        assert f"this folder is {folder} itself: name the folder above it, {copy}" in said

    def test_one_folder_too_high(self, copy, task, folder):
        said = error_of(task, copy.parent)
        assert f"{copy} contains it: name that folder" in said

    def test_unpacked_twice(self, copy, task, folder):
        (copy / folder).rename(copy / "inner")
        (copy / folder).mkdir()
        (copy / "inner").rename(copy / folder / folder)
        said = error_of(task, copy)
        assert f"{folder}/{folder}" in said and "http" not in said

    def test_in_lower_or_upper_case(self, copy, task, folder):
        other = folder.upper() if folder.islower() else folder.lower()
        (copy / folder).rename(copy / other)
        said = error_of(task, copy)
        assert f"{copy / other}" in said and "is there: rename it" in said


@pytest.mark.parametrize("task, name", [("KS", "speech_commands_v0.01"), ("ASR", "LibriSpeech"),
                                        ("SID", "VoxCeleb1/iden_split.txt")])
def test_a_broken_link_says_where_it_leads(copy, task, name):
    (copy / name).rename(copy / "elsewhere")
    (copy / name).symlink_to("/mnt/disk/x")
    said = error_of(task, copy)
    assert f"{copy / name} is a link to /mnt/disk/x, which does not exist; mount" in said


def test_a_broken_link_to_a_table_is_not_taken_for_no_table(copy):
    (copy / "KS.tsv").symlink_to("/mnt/disk/KS.tsv")
    with pytest.raises(DataError, match=r"No such file or directory\) in .*KS.tsv"):
        read_split("KS", copy, "train")


@pytest.mark.parametrize("task, inside", [("PR", "LibriSpeech/dev-clean"), ("SF", "SNIPS/test"),
                                          ("SID", "VoxCeleb1/dev/wav")])
def test_two_or_three_folders_too_deep(copy, task, inside):
    assert f"{copy} contains it: name that folder" in error_of(task, copy / inside)


def test_folders_of_speech_commands_that_lie_in_the_data_folder_itself(copy):
    for place in (copy / "speech_commands_v0.01").iterdir():
        place.rename(copy / place.name)
    (copy / "speech_commands_v0.01").rmdir()
    assert f"move them into {copy}/speech_commands_v0.01" in error_of("KS", copy)


@pytest.mark.parametrize("task, folder", [
    ("IC", "fluent_speech_commands_dataset/wavs"), ("SD", "Libri2Mix")])
def test_audio_in_a_renamed_folder_is_not_called_missing_files(copy, task, folder):
    (copy / folder).rename(copy / f"{folder}-old")
    name, said = folder.split("/")[-1], error_of(task, copy, skip_broken=True)
    assert f"nothing called {name}" in said and f"{name}-old" in said


def test_the_most_similar_name_is_shown_first(copy):
    (copy / "speech_commands_v0.01").rename(copy / "speech_commands_v0.02")
    assert "holds speech_commands_v0.02, " in error_of("KS", copy)


@pytest.mark.parametrize("place", ["VoxCeleb1/dev", "VoxCeleb1", "VoxCeleb1/vox1_dev_wav/wav"])
def test_speakers_of_voxceleb_in_another_folder_are_found(copy, place):
    shutil.rmtree(copy / "VoxCeleb1/test")
    (copy / place).mkdir(exist_ok=True, parents=True)
    for speaker in (copy / "VoxCeleb1/dev/wav").iterdir():
        speaker.rename(copy / place / speaker.name)
    said = error_of("SID", copy)
    assert f"move all of {copy / place} into {copy}/VoxCeleb1/dev/wav" in said


def test_one_missing_part_of_voxceleb_is_no_reason_to_move_the_other(copy):
    shutil.rmtree(copy / "VoxCeleb1/test")
    said = error_of("ASV", copy, "test")
    assert "no such file" in said and "move" not in said


def test_a_missing_recording_is_said_before_audio_that_is_not_read(tmp_path):
    utterances = [Utterance("a", str(tmp_path / "a.wav"), 0, "x")]
    corpus = Corpus("KS", utterances, ["x"], skipped=(f"3 .mp3 files {NOT_READ}",))
    with pytest.raises(DataError, match=r"no usable utterance \(.*a.wav"):
        measure_corpus(corpus, tmp_path, skip_broken=True)


def test_a_folder_under_another_name_is_listed(copy):
    (copy / "speech_commands_v0.01").rename(copy / "speech_commands_v0.02")
    said = error_of("KS", copy)
    assert f"({copy} holds " in said and "download.tensorflow.org" in said
    (copy / "VoxCeleb1/dev").rename(copy / "VoxCeleb1/vox1_dev_wav")
    assert f"({copy}/VoxCeleb1 holds iden_split.txt, test, veri_test.txt" in error_of("ASV", copy)


@pytest.mark.parametrize("task", READERS)
def test_a_folder_that_does_not_exist_is_named(task, tmp_path, monkeypatch):
    assert error_of(task, tmp_path / "nowhere").startswith(
        f"{task}: there is no folder {tmp_path}/nowhere; "
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"there is no folder {tmp_path}/nowhere-at-all; " in error_of(task, "~/nowhere-at-all")


@pytest.mark.parametrize("task", READERS)
def test_a_tilde_is_the_home_folder(copy, task, monkeypatch):
    monkeypatch.setenv("HOME", str(copy.parent))
    here, there = READERS[task]("~/data", "dev"), READERS[task](copy, "dev")
    assert [u.path for u in here.utterances] == [u.path for u in there.utterances]


def forbid(path):
    """Nobody may read this file or folder; tests that run as root give up their rights."""
    path.chmod(0)
    if os.geteuid() == 0:
        for place in path.parents:
            place.chmod(place.stat().st_mode | 0o055)
        os.seteuid(65534)


@pytest.fixture
def rights():
    """Give rights back after a test."""
    user = os.geteuid()
    yield
    os.seteuid(user)


@pytest.mark.parametrize(
    "task, path",
    [
        ("KS", AUDIO["KS"]),
        ("KS", "speech_commands_v0.01/yes"),
        ("ASR", "LibriSpeech/train-clean-100/1/2/1-2.trans.txt"),
        ("ASR", "LibriSpeech/train-clean-100"),
        ("IC", "fluent_speech_commands_dataset/data/train_data.csv"),
        ("SF", "SNIPS/train"),
        ("ER", AUDIO["ER"]),
    ],
)
def test_what_may_not_be_read_is_said_so(copy, rights, task, path):
    forbid(copy / path)
    said = error_of(task, copy)
    assert re.search("permission denied", said, re.I) and str(copy / path) in said


# ---------------------------------------------------------------- audio files


@pytest.mark.parametrize("task", READERS)
def test_audio_of_other_kinds_is_counted_and_never_dropped_in_silence(copy, task, monkeypatch,
                                                                     capsys):
    beside = copy / AUDIO[task]
    for k, suffix in enumerate((".m4a", ".opus", ".m4a")):
        beside.with_name(f"other{k}{suffix}").write_bytes(b"?")
    beside.with_name("._other.m4a").write_bytes(b"?")  # what a Mac leaves behind
    corpus = READERS[task](copy, "train")
    said = [text for text in corpus.skipped if "are not read" in text]
    assert len(said) == 2 and said[0].startswith("2 .m4a files in ")
    assert said[0].endswith(f"such as {beside.with_name('other0.m4a')}")
    assert said[1].startswith("1 .opus file in ")
    wrong, text = doctor(capsys, copy, "--task", task)
    assert not wrong and f"{task} train: {said[0]}." in text.splitlines()


def test_audio_at_another_depth_is_counted(copy):
    deep = copy / "speech_commands_v0.01/yes/more"
    deep.mkdir()
    shutil.copy(copy / AUDIO["KS"], deep / "a_nohash_0.wav")
    (said,) = data.read_ks(copy, "train").skipped
    assert said.startswith("1 .wav file in ")
    assert said.endswith("such as " + str(deep / "a_nohash_0.wav"))


@pytest.mark.parametrize("task", ["KS", "ASV", "SF"])
def test_a_suffix_in_capitals_is_read_where_files_are_listed_by_their_names(copy, task):
    before = READERS[task](copy, "train")
    path = copy / AUDIO[task]
    path.rename(path.with_suffix(".WAV"))
    after = READERS[task](copy, "train")
    assert [u.target for u in after.utterances] == [u.target for u in before.utterances]
    assert str(path.with_suffix(".WAV")) in [u.path for u in after.utterances]
    assert not [text for text in after.skipped if "are not read" in text]


@pytest.mark.parametrize("task", ["PR", "ASR", "SID", "SD", "IC", "ER"])
def test_a_listed_file_with_another_suffix_is_pointed_at(copy, task):
    path = copy / AUDIO[task]
    other = path.with_suffix(".WAV" if path.suffix == ".wav" else ".wav")
    path.rename(other)
    said = error_of(task, copy)
    assert f"(no such file, but {other.name} lies beside it) in {path}" in said


def test_the_file_with_another_suffix_is_also_found_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.flac").touch()
    with pytest.raises(DataError, match="but my.flac lies beside it"):
        header_samples("IC", "my.wav")


def folder_in_place(path):
    path.unlink()
    path.mkdir()


def dangling(path):
    path.unlink()
    path.symlink_to("/nowhere/a.wav")


def git_lfs_pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def flac_from_a_pipe(path):
    """A flac whose header has no number of samples."""
    soundfile.write(path, 0.1 * np.sin(np.arange(40_000) / 5), 16_000, format="FLAC")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (folder_in_place, "(it is a folder, not audio)"),
        (dangling, "(a link to /nowhere/a.wav, which does not exist)"),
        (lambda path: path.write_bytes(b""), "(an empty file)"),
        (git_lfs_pointer, "(damaged or not audio, it begins with version https://git-lfs.)"),
        (lambda path: path.write_bytes(b"\x1b[2J\xff" * 9), r"begins with \x1b[2J\xff\x1b[2J"),
        (flac_from_a_pipe, "no true length in the header"),
    ],
)
def test_a_file_that_is_no_audio_is_described(copy, spoil, words):
    path = copy / AUDIO["IC"]
    spoil(path)
    said = error_of("IC", copy)
    assert words in said and str(path) in said and said.isprintable()
    assert len(data.read_ic(copy, "train", skip_broken=True).utterances) == 2


def test_a_fifo_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(DataError, match="it is not a regular file"):
        header_samples("KS", str(tmp_path / "a.wav"))


# ---------------------------------------------------------------- names that are not UTF-8


@pytest.mark.parametrize("task", ["KS", "ASV", "SF"])
def test_a_name_that_is_not_utf8_is_read(copy, task, tmp_path):
    before = READERS[task](copy, "train")
    digest = corpus_digest(before)
    path = copy / AUDIO[task]
    if task == "ASV":
        os.rename(path.parent, os.fsencode(path.parent.parent) + b"/caf\xe9")
    else:
        os.rename(path, os.fsencode(path).replace(path.suffix.encode(), b"\xe9.wav"))
    if task == "SF":
        lines = (copy / "SNIPS/all.iob.snips.txt").read_bytes()
        assert error_of("SF", copy).isprintable()
        (copy / "SNIPS/all.iob.snips.txt").write_bytes(lines.replace(b"train-0", b"train-0\xe9"))
        assert "(byte 0xe9 in line 1)" in error_of("SF", copy)
        return
    after = READERS[task](copy, "train", skip_broken=True, cache=tmp_path / "cache")
    assert sorted(u.target for u in after.utterances) == sorted(u.target for u in before.utterances)
    assert any("\udce9" in u.path for u in after.utterances)
    for u in after.utterances:
        assert len(load_audio(u, after)) > 0 and json.dumps(u.id).encode()
    assert corpus_digest(after) != digest  # an id has changed


def test_sentences_about_odd_names_are_printable(copy, capsys):
    folder = os.fsencode(copy / "speech_commands_test_set_v0.01/yes")
    for name in (b"\xe9_nohash_0.wav", b"a\n\x1b[31m_nohash_0.wav", b"\xe9.m4a"):
        with open(folder + b"/" + name, "wb") as file:
            file.write(b"?")
    said = error_of("KS", copy, "test")
    assert said.isprintable() and said.encode()
    skipped = data.read_ks(copy, "test", skip_broken=True).skipped
    assert len(skipped) == 3 and all(text.isprintable() and text.encode() for text in skipped)
    wrong, text = doctor(capsys, copy, "--task", "KS")
    assert wrong and text.encode() and all(line.isprintable() for line in text.splitlines())
    assert printable("caf\udce9\t") == "caf\\udce9\\t"


# ---------------------------------------------------------------- text files


def test_rttm_may_have_comments_and_lines_of_other_types(copy):
    before = data.read_sd(copy, "dev").utterances[0].reference
    file = copy / "diarization/dev/rttm"
    comments = ";; made by a tool\nSPKR-INFO m 1 <NA> <NA> <NA> unknown 7 <NA>\n"
    comments += "NOSCORE m 1 0 0.5 <NA> <NA> <NA> <NA>\nNON-SPEECH m 1 1 2 <NA> noise <NA> <NA>\n"
    file.write_text(comments + file.read_text())
    assert data.read_sd(copy, "dev").utterances[0].reference == before


def test_the_turns_of_rttm_may_have_a_subtype_and_a_confidence(tmp_path):
    file = tmp_path / "rttm"
    file.write_text("SPEAKER m 1 .5 1e+00 <NA> adult a 0.95 <NA>\n"
                    "SPEAKER m 1 2.5 5.E-01 hello <NA> b 0.5\n")
    assert read_rttm("SD", file, 2) == {"m": [["a", 0.5, 1.5], ["b", 2.5, 3.0]]}
    file.write_text("SPEAKER m 1 0.5 1.0 <NA> a <NA> <NA>\n")  # a field is missing
    with pytest.raises(DataError, match="line 1 .* is malformed"):
        read_rttm("SD", file, 2)


def test_a_stray_quote_in_a_csv_file_does_not_join_lines(copy):
    file = copy / "fluent_speech_commands_dataset/data/train_data.csv"
    header, *rows = file.read_text().replace('"Say, this"', "Say this").splitlines()
    stray = [rows[0], rows[1].replace("Say", '"Say'), rows[2].replace("Say", '"Say')]
    file.write_text("\n".join([header, *stray]))
    said = error_of("IC", copy)
    assert "IC: line 3 has no action" in said and str(file) in said
    file.write_text("\n".join([header, rows[0], rows[1].replace("Say", "Say, it is"), rows[2]]))
    assert "line 3 has 8 cells and the header has 7" in error_of("IC", copy)
    file.write_text("\n".join([header, *(row + "," for row in rows)]))  # an empty cell at the end
    assert len(data.read_ic(copy, "train").utterances) == 3


def test_a_malformed_line_is_shown_beside_the_form_that_is_expected(copy):
    file = copy / "diarization/train/rttm"
    file.write_text(file.read_text().replace("m\t1\t", "m\t0\t"))
    said = error_of("SD", copy)
    assert "line 1 (SPEAKER\\tm\\t0\\t0.0" in said and "should read: SPEAKER <recording> 1 " in said
    for file in copy.glob("IEMOCAP/**/EmoEvaluation/[!.]*.txt"):
        file.write_text(file.read_text().replace("\t", "  "))
    assert "should read: [<times>]<tab><id><tab>" in error_of("ER", copy)
    file = copy / "fluent_speech_commands_dataset/data/train_data.csv"
    content = file.read_text()
    file.write_text(content.replace(",", ";"))
    said = error_of("IC", copy)
    assert "the header line (;path;speakerId" in said and "separated by commas" in said
    file.write_text(content.splitlines()[0])
    assert "no line below the header" in error_of("IC", copy)
    file.write_bytes(content.encode("utf-16"))
    assert "(byte 0xff in line 1)" in error_of("IC", copy)


# ---------------------------------------------------------------- the memory of lengths


def memory_file(folder):
    (file,) = folder.iterdir()
    return file


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"\xff\xfe\n" + file.read_bytes()),
        lambda file: file.write_bytes(file.read_bytes()[:-7]),
        lambda file: file.write_bytes(re.sub(rb"\t\d", b"\t9", file.read_bytes())),
        lambda file: file.write_bytes(bytes(99)),
        folder_in_place,
    ],
)
def test_a_damaged_memory_costs_time_and_changes_nothing(copy, tmp_path, damage):
    before = data.read_asv(copy, "train", cache=tmp_path / "cache")
    damage(memory_file(tmp_path / "cache"))
    assert data.read_asv(copy, "train", cache=tmp_path / "cache") == before


def test_a_folder_that_cannot_be_written_is_no_memory(copy, tmp_path):
    (tmp_path / "file").write_text("")
    before = data.read_asv(copy, "train")
    assert data.read_asv(copy, "train", cache=tmp_path / "file/cache") == before


def test_nothing_is_written_without_a_cache(copy):
    before = sorted(copy.parent.rglob("*"))
    data.read_asv(copy, "train")
    assert sorted(copy.parent.rglob("*")) == before


def test_a_length_is_measured_again_when_the_rule_or_the_file_changes(copy, tmp_path, monkeypatch):
    data.read_asv(copy, "train", cache=tmp_path)
    no_decoding(monkeypatch)
    data.read_asv(copy, "train", cache=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("engine.measure.LENGTH_RULE", "another")
        with pytest.raises(AssertionError, match="was decoded"):
            data.read_asv(copy, "train", cache=tmp_path)
    os.utime(copy / AUDIO["ASV"], ns=(1, 1))
    with pytest.raises(AssertionError, match="was decoded"):
        data.read_asv(copy, "train", cache=tmp_path)


def test_a_memory_keeps_what_was_stored(tmp_path):
    FileMemory(tmp_path / "deep/folder").store("0" * 32, 17)
    assert FileMemory(tmp_path / "deep/folder").facts == {"0" * 32: "17"}


# ---------------------------------------------------------------- the doctor


def test_the_doctor_can_be_asked_about_some_tasks(copy, capsys, refused):
    shutil.rmtree(copy / "VoxCeleb1")
    wrong, text = doctor(capsys, copy, "--task", "ks", "ASR")
    rows = [line.split()[0] for line in text.splitlines()[1:3]]
    assert not wrong and rows == ["KS", "ASR"] and "VoxCeleb" not in text
    refused(run_main, [data.main, copy, "--task", "XYZ"], "XYZ", alone=False)


def test_the_doctor_prints_a_digest_per_split_when_it_decodes(copy, capsys):
    _, text = doctor(capsys, copy, "--decode")
    for task in READERS:
        for split in SPLITS:
            line = rf"^{task} {split}: the digest of its content is \w{{32}}\.$"
            assert re.search(line, text, re.M)


def test_list_unread_of_a_folder_that_does_not_exist_is_empty(tmp_path):
    assert list_unread("KS", Path(tmp_path, "none"), (".wav",)) == []
