"""The toy corpus: its sound, its labels, its folders, two processes at a time; and pretraining."""

import errno
import filecmp
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import wave
from collections import Counter, defaultdict
from hashlib import blake2b, sha1
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, run_main

import toy
from engine.runs import locked
from model import frame_count, load_encoder
from toy import pretrain, synthesis, voice

# s3prl's downstream/ctc/vocab/phoneme.txt, without SIL and SPN
SUPERB_PHONES = set(
    """AA0 AA1 AA2 AE0 AE1 AE2 AH0 AH1 AH2 AO0 AO1 AO2 AW0 AW1 AW2 AY0 AY1 AY2 B CH D DH EH0 EH1
    EH2 ER0 ER1 ER2 EY0 EY1 EY2 F G HH IH0 IH1 IH2 IY0 IY1 IY2 JH K L M N NG OW0 OW1 OW2 OY0 OY1
    OY2 P R S SH T TH UH0 UH1 UH2 UW0 UW1 UW2 V W Y Z ZH""".split()
)
KEYWORDS = set("yes no up down left right on off stop go".split())
MAN = voice.Speaker(
    pitch=0.0,
    pitch_range=0.3,
    rate=0.5,
    level=0.0,
    breath=0.02,
    tilt=1.0,
    formant_scales=[1.0] * 5,
)
WOMAN = MAN._replace(pitch=8.0, formant_scales=[1.2, 1.15, 1.18, 1.1, 1.1])


@pytest.fixture(scope="module")
def full():
    """(clips, texts) of the whole corpus, as planned, without sound."""
    plan = synthesis.plan_corpus(seed=0)
    return plan.clips, plan.texts


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A corpus on the disk, fifty times smaller."""
    root = tmp_path_factory.mktemp("toy") / "corpus"
    toy.write_corpus(root, seed=0, scale=0.02)
    return root


def middle_of(phone, word, speaker):
    """The samples of the middle half of a phone in a word."""
    start = 0
    for name, _, frames in voice.timing(word, speaker, 1):
        if name == phone:
            break
        start += frames
    return voice.speak(word, speaker, 1)[
        160 * (start + frames // 4) : 160 * (start + frames - frames // 4)
    ]


def formants_of(samples, order=18):
    """Frequencies in Hz of the sharp poles of linear prediction: the formants."""
    samples = np.append(samples[0], samples[1:] - 0.95 * samples[:-1]) * np.hamming(len(samples))
    r = np.correlate(samples, samples, "full")[len(samples) - 1 :][: order + 1]
    toeplitz = r[abs(np.subtract.outer(np.arange(order), np.arange(order)))]
    poles = np.roots(np.append(1, -np.linalg.solve(toeplitz, r[1:])))
    poles = poles[(poles.imag > 0) & (-np.log(abs(poles)) * 16000 / np.pi < 500)]
    return np.sort(np.angle(poles)) * 16000 / (2 * np.pi)


@pytest.mark.parametrize("speaker", [MAN, WOMAN], ids=["man", "woman"])
@pytest.mark.parametrize(
    "phone, word",
    [
        ("AE1", "cat"),
        ("EH1", "bed"),
        ("IY1", "heat"),
        ("AA1", "stop"),
        ("ER1", "turn"),
        ("UW1", "shoes"),
        ("AH1", "up"),
        ("IH1", "fish"),
        ("UH1", "book"),
    ],
)
def test_the_formants_of_a_vowel_are_where_the_table_and_the_speaker_put_them(phone, word, speaker):
    found = formants_of(middle_of(phone, word, speaker))
    for k in range(2):
        wanted = voice.PHONEMES[phone][0, 1 + k] * speaker.formant_scales[k]
        assert min(abs(found - wanted)) < max(0.1 * wanted, 70), (
            f"F{k + 1}: {wanted:.0f} Hz, found {found.round()}"
        )


def test_the_pitch_is_the_speakers():
    for pitch in (0.0, 12.0):
        samples = middle_of("AA1", "stop", MAN._replace(pitch=pitch, pitch_range=0.0))
        r = np.correlate(samples, samples, "full")[len(samples) - 1 :]
        period = 40 + np.argmax(r[40:250])
        assert (
            abs(16000 / period / (100 * 2 ** (pitch / 12)) - 1) < 0.12
        )  # utterances wander, by some 0.7 semitones


def test_emotions_differ_in_energy_and_pitch_and_rate():
    def average(emotion):
        rng = np.random.default_rng(0)
        levels, seconds = [], []
        for seed in range(30):
            samples = voice.speak(
                "the old dog saw a fish",
                voice.with_emotion(voice.random_speaker(rng), emotion),
                seed,
            )
            levels.append(10 * np.log10(np.mean(samples**2)))
            seconds.append(len(samples) / 16000)
        return np.mean(levels), np.mean(seconds)

    (neutral, slow), (angry, quick), (sad, slowest), (happy, _) = map(
        average, ("neu", "ang", "sad", "hap")
    )
    assert sad + 3 < neutral < neutral + 1 < happy and neutral + 4 < angry
    assert quick < slow < slowest
    pitch = {name: voice.with_emotion(MAN, name).pitch for name in voice.EMOTIONS}
    assert pitch["sad"] < pitch["neu"] < pitch["ang"] < pitch["hap"]


def test_timing_tells_where_the_words_are():
    words = "stop , go"
    samples, parts = voice.speak(words, MAN, 3), voice.timing(words, MAN, 3)
    assert [
        phone for phone, *_ in parts if phone != "sil"
    ] == "S S T T AA1 P P G G OW1 OW1".split()[1:]
    assert len(samples) == 160 * sum(frames for *_, frames in parts)
    silent = np.concatenate([[phone == "sil"] * frames for phone, _, frames in parts])
    inner = ~np.convolve(~silent, np.ones(7), "same").astype(
        bool
    )  # three frames away from any phone
    energy = (samples.reshape(-1, 160) ** 2).mean(1)
    assert inner.sum() > 5 and energy[inner].max() < 1e-4 * energy[~silent].mean()


def test_a_room_adds_noise_at_its_signal_to_noise_ratio():
    for snr in (15, 30):
        room = voice.Room(gain=6.0, snr=snr, noise_slope=0.7, channel_slope=0.0)
        samples = voice.render(voice.Clip("", (), room, 0, 2.0))
        assert len(samples) == 32000 and samples.dtype == np.float32
        assert abs(20 * np.log10(samples.std() / 0.025) - 6 + snr) < 0.3


def test_unlabelled_speech_is_long_enough_and_repeatable():
    waves = synthesis.unlabelled(20, seed=3)
    assert 20 * 16000 <= sum(map(len, waves)) < 26 * 16000
    assert all(x.dtype == np.float32 and abs(x).max() <= 1 for x in waves)
    assert all(np.array_equal(a, b) for a, b in zip(waves, synthesis.unlabelled(20, seed=3)))
    assert not np.array_equal(waves[0][:4000], synthesis.unlabelled(1, seed=4)[0][:4000])


def test_every_word_has_a_pronunciation_in_superbs_phones():
    assert set(chain(*voice.LEXICON.values())) <= SUPERB_PHONES <= set(voice.PHONEMES)
    assert len(set(chain(*voice.LEXICON.values()))) >= 50
    tokens = set(chain(*chain(*synthesis.GRAMMAR.values())))
    assert {token for token in tokens if token[0] != "<"} <= set(voice.LEXICON) | {","}
    assert {token[1:-1] for token in tokens if token[0] == "<"} <= set(synthesis.GRAMMAR)
    pronunciations = Counter(map(tuple, voice.LEXICON.values()))
    assert max(pronunciations.values()) == 1  # no two words sound alike


def test_the_corpus_has_its_sizes(full):
    clips, texts = full
    count = Counter("/".join(clip.path.split("/")[:2]) for clip in clips)
    assert [
        count[f"LibriSpeech/{name}"] for name in ("train-clean-100", "dev-clean", "test-clean")
    ] == [600, 100, 250]
    assert [count[f"SNIPS/{split}"] for split in ("train", "valid", "test")] == [704, 120, 300]
    assert [
        len(texts[f"fluent_speech_commands_dataset/data/{split}_data.csv"]) - 1
        for split in ("train", "valid", "test")
    ] == [704, 120, 504]
    assert [len(texts[f"diarization/{split}/wav.scp"]) for split in ("train", "dev", "test")] == [
        300,
        60,
        150,
    ]
    assert Counter(line[0] for line in texts["VoxCeleb1/iden_split.txt"]) == {
        "1": 640,
        "2": 160,
        "3": 520,
    }
    assert Counter(line[0] for line in texts["VoxCeleb1/veri_test.txt"]) == {"0": 1000, "1": 1000}
    assert Counter(line[0] for line in texts["VoxCeleb1/veri_dev.txt"]) == {"0": 300, "1": 300}
    test = Counter(
        clip.path.split("/")[1]
        for clip in clips
        if clip.path.startswith("speech_commands_test_set")
    )
    assert set(test) == KEYWORDS | {"_unknown_", "_silence_"} and set(test.values()) == {42}
    assert len({clip.path for clip in clips}) == len(clips) and len(
        {clip.seed for clip in clips}
    ) == len(clips)


def test_the_keyword_hash_puts_every_clip_into_the_split_meant(full):
    clips, texts = full
    listed = {
        split: set(texts[f"speech_commands_v0.01/{split}_list.txt"])
        for split in ("validation", "testing")
    }
    words = defaultdict(set)
    for clip in clips:
        root, word, file = clip.path.split("/")[:3]
        if root == "speech_commands_v0.01" and word != "_background_noise_":
            percent = (
                int(sha1(re.sub("_nohash_.*$", "", file).encode()).hexdigest(), 16)
                % 2**27
                * 100
                / (2**27 - 1)
            )
            split = "validation" if percent < 10 else "testing" if percent < 20 else "train"
            assert all((f"{word}/{file}" in listed[name]) == (name == split) for name in listed)
            words[split].add(word)
    assert len(listed["validation"]) == 121 and KEYWORDS < words["train"] & words["validation"]


def test_no_snips_sentence_is_said_twice_and_every_slot_is_in_every_split(full):
    _, texts = full
    sentences, labels = Counter(), defaultdict(set)
    for line in texts["SNIPS/all.iob.snips.txt"]:
        name, said = line.split("\t")[0].split(" ", 1)
        slots = line.split("\t")[1].split()
        assert said.startswith("BOS ") and said.endswith(" EOS") and len(said.split()) == len(slots)
        assert set(slots[:-1]) <= set(texts["SNIPS/slots.txt"]) and slots[-1] in synthesis.INTENTS
        sentences[said] += 1
        labels[name.split("-")[2]] |= set(slots[:-1])
    assert max(sentences.values()) == 1
    assert labels["train"] == labels["valid"] == labels["test"] == set(texts["SNIPS/slots.txt"])
    assert texts["SNIPS/slots.txt"][0] == "O" and {"playlist", "playlist_owner"} < labels["test"]


def test_trials_are_of_speakers_that_no_training_set_has(full):
    clips, texts = full
    people = {
        file: {path[:7] for line in texts[f"VoxCeleb1/{file}.txt"] for path in line.split()[1:]}
        for file in ("iden_split", "veri_dev", "veri_test")
    }
    assert not people["iden_split"] & people["veri_dev"]
    assert not people["veri_test"] & (people["iden_split"] | people["veri_dev"])
    folders = {
        clip.path.split("/")[3] for clip in clips if clip.path.startswith("VoxCeleb1/dev/wav")
    }
    assert len(folders) == 88 and people["iden_split"] | people["veri_dev"] < folders
    assert all(int(name[2:]) - 10001 in range(1251) for name in people["iden_split"])
    for file in ("veri_dev", "veri_test"):
        for label, a, b in map(str.split, texts[f"VoxCeleb1/{file}.txt"]):
            assert (a[:7] == b[:7]) == (label == "1") and a != b
    assert texts["VoxCeleb1/veri_test.txt"] == texts["VoxCeleb1/voxceleb1_test_v2.txt"]


def test_no_voice_is_in_two_splits(full):
    tables = {
        line.split(",")[1]: split
        for split in ("train", "valid", "test")
        for line in full[1][f"fluent_speech_commands_dataset/data/{split}_data.csv"]
    }
    splits = defaultdict(set)
    for clip in full[0]:
        dataset, path = clip.path.split("/", 1)
        split = {
            "LibriSpeech": path.split("/")[0],
            "SNIPS": path.split("/")[0],
            "IEMOCAP": path.split("/")[0],
            "Libri2Mix": path[:20],
            "VoxCeleb1": path[:13],
            "fluent_speech_commands_dataset": tables.get(path),
        }
        for _, speaker, _ in clip.lines:
            splits[tuple(speaker.formant_scales)].add((dataset, split.get(dataset)))
    assert len(splits) > 1000 and all(len(found) == 1 for found in splits.values())


def test_every_intent_occurs_in_training(full):
    rows = {
        split: [
            line.split(",")
            for line in full[1][f"fluent_speech_commands_dataset/data/{split}_data.csv"]
        ]
        for split in ("train", "test")
    }
    assert rows["train"][0] == [
        "",
        "path",
        "speakerId",
        "transcription",
        "action",
        "object",
        "location",
    ]
    intents = {tuple(row[4:]) for row in rows["train"][1:]}
    assert len(intents) == 31 and {tuple(row[4:]) for row in rows["test"][1:]} == intents
    assert [len(set(column)) for column in zip(*intents)] == [6, 14, 4]


def test_vox_clips_are_longer_than_asv_wants(full):
    seconds = [
        sum(frames for *_, frames in voice.timing(*clip.lines[0])) / 100
        for clip in full[0]
        if clip.path.startswith("VoxCeleb1/dev")
    ]
    assert 2.05 < min(seconds) and np.mean(seconds) < 3


def test_mixtures_have_silence_one_voice_and_overlap(full):
    _, texts = full
    for split in ("train", "dev", "test"):
        length = dict(map(str.split, texts[f"diarization/{split}/reco2dur"]))
        count = defaultdict(lambda: np.zeros(600, int))
        for name, mix, start, stop in map(str.split, texts[f"diarization/{split}/segments"]):
            count[mix][round(100 * float(start)) : round(100 * float(stop))] += 1
        share = sum(
            np.bincount(frames[: round(100 * float(length[mix]))], minlength=3)
            for mix, frames in count.items()
        )
        share = share / share.sum()
        assert (
            len(count) == len(length)
            and 0.03 < share[0] < 0.3
            and share[1] > 0.3
            and share[2] > 0.2
        ), share


def test_rttm_and_segments_agree_with_the_sound(small):
    folder = small / "diarization" / "test"
    segments = {
        name: (mix, float(start), float(stop))
        for name, mix, start, stop in map(str.split, (folder / "segments").read_text().splitlines())
    }
    speaker = dict(map(str.split, (folder / "utt2spk").read_text().splitlines()))
    rttm = [line.split("\t") for line in (folder / "rttm").read_text().splitlines()]
    assert [
        (mix, speaker[name], start, round(stop - start, 2))
        for name, (mix, start, stop) in segments.items()
    ] == [(row[1], row[7], float(row[3]), float(row[4])) for row in rttm]
    for mix, path in map(str.split, (folder / "wav.scp").read_text().splitlines()):
        samples, _ = soundfile.read(small / path)
        spoken = np.zeros(len(samples) // 160, bool)
        for start, stop in [found[1:] for found in segments.values() if found[0] == mix]:
            assert abs(100 * start - round(100 * start)) < 1e-6 and stop * 16000 <= len(samples)
            spoken[round(100 * start) : round(100 * stop)] = True
        energy = (samples.reshape(-1, 160) ** 2).mean(1)
        assert energy[spoken].mean() > 5 * np.median(energy[~spoken])


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(small, tmp_path):
    toy.write_corpus(tmp_path / "again", seed=0, scale=0.02)
    files = [path.relative_to(small) for path in small.rglob("*") if path.is_file()]
    assert len(files) == sum(path.is_file() for path in (tmp_path / "again").rglob("*")) > 300
    assert filecmp.cmpfiles(small, tmp_path / "again", files, shallow=False)[0] == files
    one, other = synthesis.plan_corpus(0, 0.02), synthesis.plan_corpus(1, 0.02)
    assert (one.clips, one.texts) != (other.clips, other.texts)
    assert [path.name for path in tmp_path.iterdir()] == [
        "again"
    ]  # nothing unfinished is left beside it


def test_files_are_16_khz_mono_16_bit_and_of_the_real_formats(small):
    sounds = [path for path in small.rglob("*") if path.suffix in (".wav", ".flac")]
    assert {path.suffix for path in (small / "LibriSpeech").rglob("*.*")} == {".flac", ".txt"}
    for path in sounds:
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert (info.format == "FLAC") == ("LibriSpeech" in path.parts)
        if (
            path.relative_to(small).parts[0].startswith("speech_commands")
            and path.parent.name != "_background_noise_"
        ):
            assert 0.6 <= info.duration <= 1.0
    with wave.open(str(next((small / "SNIPS").rglob("*.wav")))) as file:
        assert file.getparams()[:3] == (1, 2, 16000)


def test_the_layouts_are_complete_even_when_small(small):
    for pattern in """LibriSpeech/train-clean-100/*/*/*.trans.txt LibriSpeech/dev-clean/*/*/*.flac
            LibriSpeech/test-clean/*/*/*.flac LibriSpeech/librispeech-lexicon-200k-g2p.txt
            LibriSpeech/librispeech-lexicon-allothers-g2p.txt
            speech_commands_v0.01/*/*_nohash_0.wav speech_commands_v0.01/_background_noise_/*.wav
            speech_commands_v0.01/validation_list.txt speech_commands_v0.01/testing_list.txt
            speech_commands_test_set_v0.01/_unknown_/*.wav
            speech_commands_test_set_v0.01/_silence_/*.wav
            VoxCeleb1/dev/wav/id*/*/*.wav VoxCeleb1/test/wav/id*/*/*.wav
            VoxCeleb1/iden_split.txt VoxCeleb1/veri_test.txt
            VoxCeleb1/voxceleb1_test_v2.txt VoxCeleb1/veri_dev.txt
            Libri2Mix/wav16k/max/train-100/mix_both/*.wav Libri2Mix/wav16k/max/dev/mix_both/*.wav
            Libri2Mix/wav16k/max/test/mix_both/*.wav
            diarization/train/spk2utt diarization/dev/reco2dur
            fluent_speech_commands_dataset/data/valid_data.csv SNIPS/valid/Aditi-snips-valid-*.wav
            SNIPS/all.iob.snips.txt SNIPS/slots.txt
            IEMOCAP/Session5/dialog/EmoEvaluation/*.txt""".split():
        assert list(small.glob(pattern)), pattern
    assert not (small / "SNIPS/slots.txt").read_text().endswith("\n")
    for table in (small / "fluent_speech_commands_dataset/data").glob("*.csv"):
        assert all(
            (table.parents[1] / line.split(",")[1]).is_file()
            for line in table.read_text().splitlines()[1:]
        )
    for line in (small / "VoxCeleb1/iden_split.txt").read_text().splitlines():
        assert (small / "VoxCeleb1/dev/wav" / line.split()[1]).is_file()
    labels = Counter()
    for file in small.glob("IEMOCAP/Session*/dialog/EmoEvaluation/*.txt"):
        for row in re.findall(
            r"^\[[\d.]+ - [\d.]+\]\t(\S+)\t(\w+)\t\[[\d., ]+\]$", file.read_text(), re.M
        ):
            labels[row[1]] += 1
            assert Path(file.parents[2], "sentences/wav", file.stem, f"{row[0]}.wav").is_file()
    assert {"neu", "hap", "exc", "ang", "sad"} < set(labels) and labels["fru"] + labels["xxx"] > 0


def test_an_existing_folder_is_never_overwritten(small):
    with pytest.raises(FileExistsError, match="not empty"):
        toy.write_corpus(small, scale=0.02)


def test_the_corpus_of_seed_0_never_changes(full):
    # Its texts decide every number that README shows, and the sound decides them nearly.
    clips, texts = full
    digest = blake2b(digest_size=16)
    for path in sorted(texts):
        digest.update("\n".join([path, *texts[path]]).encode())
    assert digest.hexdigest() == "79ed218812d29dea78cc95ba1c109fd0" and len(clips) == 8486
    expected = {0: (24320, 0.025093192), 3000: (39840, 0.023073519), -1: (23520, 0.021003175)}
    for number, (length, rms) in expected.items():
        samples = voice.render(clips[number]).astype(float)
        assert len(samples) == length
        assert np.sqrt(np.mean(samples**2)) == pytest.approx(rms, rel=1e-5)


def test_turns_are_the_intervals_between_silences():
    segments = voice.timing("stop , go", MAN, 3)
    found = voice.turns(segments)
    spoken = np.concatenate([[part.phoneme != "sil"] * part.frames for part in segments])
    rebuilt = np.zeros(len(spoken), bool)
    for start, stop in found:
        rebuilt[round(100 * start) : round(100 * stop)] = True
    assert len(found) == 2 and np.array_equal(spoken, rebuilt)


def test_silence_and_hh_have_the_formants_of_the_phoneme_that_follows():
    segments = voice.timing("he", MAN, 0)
    assert [part.phoneme for part in segments] == ["sil", "HH", "IY1", "sil"]
    formants = voice._with_formants(segments)[:, voice.FORMANTS]
    assert (formants == formants[2]).all() and formants[2, 0] == 270
    assert voice.PHONEMES["HH"][0, 1] == 0  # the table itself is unchanged


def start_writing(root: Path, name: str) -> subprocess.Popen:
    """A process that writes a small corpus as soon as the file `go` exists; `name` says ready."""
    program = f"""
import pathlib, time, toy.synthesis
root = pathlib.Path({str(root)!r})
root.with_name({name!r}).touch()
while not root.with_name("go").exists():
    time.sleep(0.001)
toy.write_corpus(root, seed=0, scale=0.02)
"""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=pipe, stderr=pipe, text=True
    )


def wait_for(condition) -> None:
    """Returns once the condition is true."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def has_same_files(root: Path, other: Path) -> bool:
    """Do both folders hold the same files with the same bytes?"""
    files = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    others = [path.relative_to(other) for path in other.rglob("*") if path.is_file()]
    same, _, _ = filecmp.cmpfiles(root, other, files, shallow=False)
    return sorted(files) == sorted(others) and same == files


def test_two_processes_at_once_make_one_corpus(small, tmp_path):
    root = tmp_path / "corpus"
    processes = [start_writing(root, name) for name in ("one", "two")]
    wait_for(lambda: (tmp_path / "one").exists() and (tmp_path / "two").exists())
    (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    waited = [text for text, _ in outputs if "waiting for another process" in text]
    assert len(waited) == 1
    assert has_same_files(root, small)
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "one", "two", "go"}


def test_a_killed_process_leaves_no_corpus_and_stops_nobody(small, tmp_path):
    root = tmp_path / "corpus"
    (tmp_path / "go").touch()
    killed = start_writing(root, "one")
    wait_for(lambda: list(tmp_path.glob("corpus.partial/LibriSpeech/*/*/*/*.flac")))
    killed.kill()
    killed.communicate()
    assert not root.exists()
    # had the killed process's workers lived on, they would hold the lock forever
    again = start_writing(root, "two")
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert has_same_files(root, small)
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "one", "two", "go"}


def test_a_waiting_process_accepts_only_the_corpus_that_it_would_write(
    small, tmp_path, monkeypatch
):
    root = tmp_path / "corpus"
    arrived, outcomes = [], {}

    def note_and_lock(path):
        arrived.append(path)
        return locked(path)

    def write(seed):
        try:
            outcomes[seed] = toy.write_corpus(root, seed=seed, scale=0.02)
        except FileExistsError as error:
            outcomes[seed] = str(error)

    monkeypatch.setattr(synthesis, "locked", note_and_lock)
    threads = [threading.Thread(target=write, args=(seed,)) for seed in (0, 1)]
    with locked(root):
        for thread in threads:
            thread.start()
        wait_for(lambda: len(arrived) == 2)
        shutil.copytree(small, root)  # seed 0, finished while both wait
    for thread in threads:
        thread.join()
    assert outcomes[0] is None
    assert "not empty" in outcomes[1]
    assert has_same_files(root, small)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def write_bytes(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write_bytes)  # the workers are forked, so it acts
    with pytest.raises(OSError, match="^cannot write .*corpus .No space left on device.; make "):
        toy.write_corpus(tmp_path / "corpus", scale=0.02)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.lock"]


def test_control_c_ends_in_one_sentence(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "toy.synthesis", "--out", str(tmp_path / "corpus")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: list(tmp_path.glob("corpus.partial/LibriSpeech/*/*/*/*.flac")))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped" in errors and "Traceback" not in errors and "Warning" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.lock"]


@pytest.mark.parametrize("module", [synthesis, pretrain], ids=lambda module: module.__name__)
def test_an_out_that_cannot_be_written_is_one_sentence(module, tmp_path, refused):
    (tmp_path / "file").touch()
    error = refused(run_main, [module.main, "--out", tmp_path / "file" / "out"])
    assert re.fullmatch(r"error: cannot write .*/file/out \(.*\); make room or .*", error)


def test_a_file_is_not_a_folder_for_a_corpus(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="not a folder"):
        toy.write_corpus(tmp_path / "file", scale=0.02)


def test_mfccs_have_the_frames_of_the_encoder():
    for samples in (4000, 16000, 16039, 16040, 16239):
        frames = pretrain.mfcc_frames(torch.randn(samples))
        assert frames.shape == (frame_count(samples), 39)


def test_pretraining_has_the_losses_that_it_always_had(tmp_path):
    out = tmp_path / "new" / "tiny.pt"
    flags = ["--hours", "0.01", "--steps", "3", "--batch", "2", "--out", out]
    run_main(pretrain.main, *flags)
    curve = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert [point["step"] for point in curve] == [3]
    assert curve[0]["loss"] == pytest.approx(4.6563, abs=2e-3)
    assert curve[0]["masked_accuracy"] == pytest.approx(0.0385, abs=1e-2)
    assert load_encoder(str(out)).config == load_encoder("tiny").config


@pytest.mark.parametrize("module", [pretrain, synthesis])
def test_a_seed_below_zero_is_refused(module, refused):
    refused(run_main, [module.main, "--seed", "-1"], "-1 is out of range", alone=False)


def test_too_little_speech_to_pretrain_on_is_one_sentence(tmp_path, refused):
    flags = ["--hours", "0.001", "--out", tmp_path / "tiny.pt"]
    error = refused(run_main, [pretrain.main, *flags])
    assert error.endswith("too few for --batch 8; take more --hours")
