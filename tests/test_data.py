"""Readers, encoders, silence removal, streams and the doctor: worked vectors and brute force, on
data made here."""

import os
import pickle
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import SPLITS, TWO_SPEAKERS, run_main
from torch.utils.data import DataLoader

import corpus as corpora
import data
import engine.measure
from batches import Steps, Stream
from corpus import Corpus, Utterance, load_audio
from engine.files import DataError
from tools import doctor as doctor_program
from tasks import TASKS
from rules import (
    ASR_SYMBOLS,
    EMOTIONS,
    RECEPTIVE_FIELD,
    GAIN,
    KEYWORDS,
    LOUD_POWER,
    PR_SYMBOLS,
    SF_SYMBOLS,
    SPEAKERS,
    VOICES,
    decode_intent,
    decode_label,
    decode_phonemes,
    decode_slots,
    decode_turns,
    decode_words,
    diarization_labels,
    encode,
    keyword_split,
    make_trials,
    slot_tokens,
    voiced_segments,
)

READERS = {name: task.read for name, task in TASKS.items()}

# ---------------------------------------------------------------- text

# slots.txt of Audio SNIPS without its first line, O
SLOTS = """object_name playlist timeRange object_type artist movie_name spatial_relation
    rating_value city entity_name music_item restaurant_type location_name
    party_size_description country state geographic_poi rating_unit playlist_owner
    best_rating party_size_number object_select restaurant_name service movie_type
    object_location_type sort track year album condition_temperature
    condition_description current_location served_dish object_part_of_series_type poi
    cuisine genre facility""".split()
SNIPS = SF_SYMBOLS + [tag for slot in SLOTS for tag in (f"B-{slot} ", f" E-{slot}")]


WORKED_EXAMPLE = (
    "BOS PLAY FOO FIGHTERS IN MY LIST EOS\tO O artist artist O playlist_owner playlist PlayMusic"
)


def collapsed(ids):
    """What head.predict hands to a decoder: without repeats, then without blanks."""
    return [id for k, id in enumerate(ids) if id != 0 and (k == 0 or ids[k - 1] != id)]


def tagged(line):
    """`BOS WORD ... EOS<tab>O SLOT ... INTENT` -> ids."""
    words, slots = (part.split()[1:-1] for part in line.split("\t"))
    return encode(slot_tokens(words, slots), SNIPS)


def test_vocabularies_have_the_sizes_and_places_of_superb():
    assert (len(PR_SYMBOLS), len(ASR_SYMBOLS), len(SF_SYMBOLS), len(SNIPS)) == (74, 32, 31, 109)
    assert (PR_SYMBOLS[73], ASR_SYMBOLS[31], SF_SYMBOLS[30]) == ("ZH", "Z", "'")
    assert (
        PR_SYMBOLS[3:]
        == """SIL SPN AA0 AA1 AA2 AE0 AE1 AE2 AH0 AH1 AH2 AO0 AO1 AO2 AW0 AW1 AW2 AY0 AY1 AY2 B CH
        D DH EH0 EH1 EH2 ER0 ER1 ER2 EY0 EY1 EY2 F G HH IH0 IH1 IH2 IY0 IY1 IY2 JH K
        L M N NG OW0 OW1 OW2 OY0 OY1 OY2 P R S SH T TH UH0 UH1 UH2 UW0 UW1 UW2 V W Y
        Z ZH""".split()
    )
    assert KEYWORDS == "yes no up down left right on off stop go _unknown_ _silence_".split()
    assert (SPEAKERS[0], SPEAKERS[269], SPEAKERS[-1]) == ("id10001", "id10270", "id11251")
    assert len(SPEAKERS) == 1251
    assert EMOTIONS == ["neu", "hap", "ang", "sad"] and list(map(len, VOICES.values())) == [8, 4, 4]
    tags = "B-object_name ", " E-playlist", "B-facility ", " E-facility"
    assert [SNIPS.index(tag) for tag in tags] == [31, 34, 107, 108]


def test_phonemes_and_characters_are_encoded_as_in_the_released_code():
    assert encode("HH AH0 L OW1 <eos>".split(), PR_SYMBOLS) == [38, 11, 47, 52, 1]
    hello = [11, 5, 15, 15, 8, 4, 19, 8, 13, 15, 14, 4, 2]
    assert encode([*"HELLO|WORLD|", "</s>"], ASR_SYMBOLS) == hello
    assert decode_words(ASR_SYMBOLS, collapsed(hello)) == [
        "HELO",
        "WORLD",
    ]  # a double letter needs a blank between
    assert decode_words(ASR_SYMBOLS, collapsed(hello[:3] + [0] + hello[3:])) == ["HELLO", "WORLD"]
    assert encode([*"IT'S|", "</s>"], ASR_SYMBOLS) == [10, 6, 27, 12, 4, 2]
    assert encode(["É"], ASR_SYMBOLS) == [3]


@pytest.mark.parametrize(
    "ids, phonemes",
    [
        ([0, 38, 38, 0, 11, 47, 47, 0, 52, 0, 1, 0], "HH AH0 L OW1"),
        ([26, 40, 59, 0, 59, 15, 50, 0, 1, 1], "DH IH1 S S AO1 NG"),
        ([46, 1, 9, 1, 61], "K AE1 T"),
        ([61, 1, 61, 1], "T T"),
        ([46, 2, 61], "K <unk> T"),
        ([0, 0], ""),
    ],
)
def test_phonemes_are_decoded_as_ctc_means_it(ids, phonemes):
    assert decode_phonemes(PR_SYMBOLS, collapsed(ids)) == phonemes.split()


@pytest.mark.parametrize(
    "ids, words",
    [
        ([0, 11, 11, 0, 5, 15, 0, 15, 8, 4, 4, 0, 4, 0, 7, 4, 2], "HELLO A"),
        ([7, 2, 7, 4], "AA"),
        ([3, 7, 1, 24, 4], "<unk>A<pad>B"),
        ([4, 7, 4], "A"),
        ([], ""),
    ],
)
def test_words_are_decoded_as_in_the_released_code(ids, words):
    assert decode_words(ASR_SYMBOLS, collapsed(ids)) == words.split()


@pytest.mark.parametrize(
    "line, text",
    [
        (
            WORKED_EXAMPLE,
            "PLAY B-artist FOO FIGHTERS E-artist IN B-playlist_owner MY E-playlist_owner "
            "B-playlist LIST E-playlist",
        ),
        ("BOS ADD SONG TO HITS PLEASE ! EOS\tO O O O O O O AddToPlaylist",
         "ADD SONG TO HITS PLEASE "),
        ("BOS PLAY THE BAND . EOS\tO O O O artist PlayMusic", "PLAY THE BAND "),
        ("BOS THE BAND . EOS\tO O artist artist PlayMusic", "THE B-artist BAND "),
        ("BOS R & B , POP EOS\tO genre genre genre genre genre PlayMusic",
         "B-genre R AND B POP E-genre"),
        ("BOS RATE IT 5 STARS EOS\tO O O rating_value rating_unit RateBook",
         "RATE IT B-rating_value <unk> E-rating_value B-rating_unit STARS E-rating_unit"),
    ],
)
def test_slots_become_tags_as_in_the_released_code(line, text):
    assert decode_slots(SNIPS, tagged(line)) == text


def test_slot_ids_of_the_worked_example():
    assert tagged(WORKED_EXAMPLE) == [
        19, 15, 4, 28, 3, 39, 9, 18, 18, 3, 9, 12, 10, 11, 23, 8, 21, 22, 40, 3,
        12, 17, 3, 67, 16, 28, 68, 3, 33, 15, 12, 22, 23, 34, 1,
    ]
    assert 1 not in tagged(
        "BOS HELLO ! EOS\tO O O Greet"
    )  # the released code loses the end with the punctuation


def test_slots_are_decoded_as_ctc_means_it():
    ids = [19, 15, 4, 28, 3, 39, 4, 5, 0, 5, 4, 40, 3, 0, 3, 18, 17, 1]
    assert decode_slots(SNIPS, collapsed(ids)) == "PLAY B-artist ABBA E-artist  ON"
    assert decode_slots(SNIPS, collapsed([11, 8, 15, 0, 15, 18, 1])) == "HELLO"


# ---------------------------------------------------------------- silence


def tone(samples, amplitude=10_000):
    """16-bit samples of a 400 Hz tone."""
    return np.rint(amplitude * np.sin(2 * np.pi * 400 * np.arange(samples) / 16_000))


def removed_by_brute_force(samples):
    """The indices that sox keeps, sample by sample as its C code goes."""
    ring, total, copying, hold, kept = [0] * 320, 0, False, [], []
    for i, sample in enumerate(samples):
        square = round(int(sample) * 65_536 * GAIN) ** 2
        total += square - ring[i % 320]
        ring[i % 320] = square
        if int((total / 320) ** 0.5) / 2_147_483_647 * 100 > 0.1:
            hold.append(i)
            if copying or len(hold) == 1_600:
                kept, hold, copying = kept + hold, [], True
        elif not copying:
            hold = []
        else:
            hold.append(i)
            if len(hold) == 1_600 and all(h == i - 1_599 + k for k, h in enumerate(hold)):
                hold, copying, total, ring = [], False, 0, [0] * 320
    return kept + hold * copying


@pytest.mark.parametrize(
    "parts, kept",
    [
        ([np.zeros(16000), tone(16000), np.zeros(16000)], [(16001, 32319)]),
        ([tone(8000), np.zeros(800), tone(8000)], [(1, 16800)]),
        ([tone(8000), np.zeros(8000), tone(8000)], [(1, 8319), (16001, 24000)]),
        ([np.zeros(8000), tone(800), np.zeros(8000), tone(8000)], [(16801, 24800)]),
        ([np.zeros(16000)], []),
        ([tone(16000, 60)], []),
        ([tone(16000, 70)], [(278, 16000)]),
        ([tone(1440)], []),
        ([tone(8000), np.zeros(800)], [(1, 8800)]),
        ([np.full(8000, 46)], []),
        ([np.full(8000, 47)], [(310, 8000)]),
    ],
    ids=[f"V{k}" for k in range(1, 12)],
)
def test_silence_goes_where_sox_says(parts, kept):
    wave = np.concatenate(parts).astype(np.float32) / 32_768
    assert voiced_segments(wave, GAIN) == kept


def test_silence_goes_as_in_a_simulation_of_sox_sample_by_sample():
    rng = np.random.default_rng(0)
    for _ in range(12):
        parts = [
            rng.choice([0, 20, 46, 47, 60, 70, 300, 10_000]) * rng.standard_normal(length)
            for length in rng.choice(
                [50, 300, 800, 1500, 1599, 1600, 1601, 1900, 2500, 5000], rng.integers(1, 9)
            )
        ]
        samples = np.clip(np.rint(np.concatenate(parts)), -32_768, 32_767)
        kept = [
            i
            for start, stop in voiced_segments(samples.astype(np.float32) / 32_768, GAIN)
            for i in range(start, stop)
        ]
        assert kept == removed_by_brute_force(samples)


def segments_by_a_regular_expression(wave, gain):
    """The same as a pattern over the string of loud and quiet samples."""
    squares = np.minimum(np.rint(wave.astype(np.float64) * (gain * 2**31)) ** 2, LOUD_POWER)
    power = np.cumsum(squares.astype(np.int64))
    power[320:] -= power[:-320].copy()
    levels = bytearray(np.where(power >= LOUD_POWER, b"L", b"q").tobytes())
    part = re.compile(rb"(?<!L)L{1600}(?:L+|q{1,1599}(?!q))*")
    kept, search = [], 0
    while search < len(wave):
        filling = int((np.cumsum(squares[search : search + 320]) < LOUD_POWER).sum())
        levels[search : search + filling] = b"q" * filling  # the window was emptied
        match = part.search(levels, search)
        kept += [match.span()] if match else []
        search = match.end() + 1600 if match else len(wave)
    return kept


def test_silence_goes_as_by_a_regular_expression():
    rng = np.random.default_rng(1)
    levels = [0, 20, 44, 45, 46, 46.3, 47, 60, 70, 300, 10_000, 40_000]
    lengths = [1, 50, 300, 319, 320, 321, 800, 1500, 1599, 1600, 1601, 1900, 2500, 5000]
    for _ in range(300):
        parts = [
            rng.choice(levels) * rng.standard_normal(length)
            for length in rng.choice(lengths, rng.integers(1, 14))
        ]
        steps = np.repeat(rng.choice([0, 46, 47, 100, 5000], 20), rng.integers(1, 3500, 20))
        for samples in (np.concatenate(parts), steps):
            wave = np.clip(np.rint(samples), -32_768, 32_767).astype(np.float32) / 32_768
            assert voiced_segments(wave, GAIN) == segments_by_a_regular_expression(wave, GAIN)


def test_silence_of_waves_beyond_full_scale_or_without_samples():
    assert voiced_segments(np.zeros(0, np.float32)) == []
    assert voiced_segments(np.full(4000, 1e6, np.float32)) == [(0, 4000)]


# ---------------------------------------------------------------- audio


def corpus_of(path, **options):
    """A corpus of one file."""
    info = soundfile.info(path)
    return Corpus("KS", [Utterance("a", str(path), 0, "a", info.frames)], ["a"], **options)


def heard(path, seed=None, **options):
    """load_audio of one file."""
    corpus = corpus_of(path, **options)
    return load_audio(corpus.utterances[0], corpus, seed)


def test_audio_is_resampled_and_mixed_down(tmp_path):
    wave = np.stack([tone(8_000), np.zeros(8_000)], 1) / 32_768
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="PCM_16")
    assert np.allclose(heard(tmp_path / "a.wav"), wave[:, 0] / 2, atol=1e-4)
    soundfile.write(tmp_path / "b.wav", np.sin(np.arange(4_001) / 20), 8_000)
    slow = heard(tmp_path / "b.wav")
    assert slow.dtype == np.float32 and len(slow) == 8_002
    assert np.allclose(slow[200:-200], np.sin(np.arange(8_002) / 40)[200:-200], atol=1e-2)


def test_gain_silence_and_crop_come_in_this_order(tmp_path):
    soundfile.write(
        tmp_path / "a.wav", np.concatenate([np.zeros(8_000), tone(16_000) / 32_768]), 16_000
    )
    loud = heard(tmp_path / "a.wav")
    assert np.allclose(heard(tmp_path / "a.wav", gain=GAIN), loud * 0.7079457843841379, atol=1e-7)
    trimmed = heard(tmp_path / "a.wav", gain=GAIN, trim=True)
    assert np.allclose(trimmed, GAIN * loud[8_001:])
    cut = heard(tmp_path / "a.wav", seed=(3, 7), gain=GAIN, trim=True, crop=1_000)
    start = next(k for k in range(len(trimmed)) if np.array_equal(trimmed[k : k + 1_000], cut))
    assert 0 <= start <= len(trimmed) - 1_000


def test_a_crop_depends_on_its_seed_and_evaluation_takes_the_start(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.linspace(-1, 1, 20_000), 16_000)
    whole = heard(tmp_path / "a.wav")
    cuts = {seed: heard(tmp_path / "a.wav", seed=seed, crop=400) for seed in range(40)}
    assert np.array_equal(cuts[5], heard(tmp_path / "a.wav", seed=5, crop=400))
    assert len({cut[0] for cut in cuts.values()}) > 30
    assert np.array_equal(heard(tmp_path / "a.wav", crop=400), whole[:400])
    assert np.array_equal(heard(tmp_path / "a.wav", seed=5, crop=20_000), whole)


# ---------------------------------------------------------------- diarization


def columns(labels):
    """The two columns as strings of 0 and 1."""
    return ["".join(str(int(x)) for x in column) for column in labels.T]


@pytest.mark.parametrize(
    "turns, samples, expected",
    [
        ([("100", 0.02, 0.08), ("20", 0.05, 0.12)], 3200,
         ["00111111000000000000", "00000111111100000000"]),
        ([("a", 0.005, 0.015), ("b", 0.025, 0.035)], 1600, ["1100000000", "0011000000"]),
        ([("a", 0, 0.06), ("b", 0.06, 0.12)], 2560, ["1111110000000000", "0000001111110000"]),
        ([("a", 0, 0.2)], 3279, ["1" * 20, "0" * 20]),
        ([("a", 0.06, 0.18), ("b", 0, 0.01)], 3200, ["00000011111111111100", "1" + "0" * 19]),
        ([("b", 0.05, 0.09)], 2560, ["0000011110000000", "0" * 16]),
        ([("a", 0.011, 0.014), ("b", 0.006, 0.0149)], 1600, ["0" * 10, "0" * 10]),
    ],
    ids="L1 L2 L5 L6 L7 L9 L10".split(),
)
def test_turns_become_labels_every_10_ms(turns, samples, expected):
    assert columns(diarization_labels(turns, samples)) == expected


def test_a_turn_that_spans_a_whole_chunk_is_kept():
    labels = diarization_labels(
        [("a", 0.01, 0.15), ("b", 0.05, 0.09)], 2560
    )  # L4: the released code loses the middle of a
    chunks = [columns(labels[start : start + 6]) for start in (0, 6, 12)]
    assert chunks == [["011111", "000001"], ["111111", "111000"], ["1110", "0000"]]


@pytest.mark.parametrize(
    "median, threshold, first, second",
    [
        (1, 0.3, "0+5 6+3 11+1", "3+7"),
        (1, 0.5, "0+2 3+2 8+1 11+1", "3+4 8+2"),
        (1, 0.7, "0+2 4+1 8+1", "5+2 8+2"),
        (3, 0.3, "0+9", "3+7"),
        (3, 0.5, "0+5", "3+7"),
        (3, 0.7, "0+2", "5+5"),
        (11, 0.3, "1+8", "3+7"),
        (11, 0.5, "", "4+5"),
        (11, 0.7, "", ""),
    ],
)
def test_probabilities_become_turns_as_in_the_released_code(median, threshold, first, second):
    expected = [
        [str(k), int(start) / 100, (int(start) + int(length)) / 100]
        for k, text in enumerate((first, second))
        for start, length in (turn.split("+") for turn in text.split())
    ]
    assert decode_turns(["0", "1"], TWO_SPEAKERS, threshold, median) == expected
    assert decode_turns(["0", "1"], torch.tensor(TWO_SPEAKERS), threshold, median) == expected


def test_the_median_filter_erodes_the_ends():
    active = np.array([int(c) for c in "11000000000111111010111"])
    turns = decode_turns(["0", "1"], np.stack([active, 0 * active], 1) * 0.9)
    assert turns == [["0", 0.11, 0.21]]  # 00000000000111111111100


# ---------------------------------------------------------------- readers


@pytest.mark.parametrize(
    "name, split",
    [
        ("004ae714", "train"),
        ("0c40e715", "discarded"),
        ("00b01445", "train"),
        ("c1d39ce8", "train"),
        ("00000000", "dev"),
        ("9e3779b1", "dev"),
        ("be1e0823", "discarded"),
    ],
)
def test_keywords_are_split_by_a_hash_of_the_speaker(name, split):
    assert keyword_split(f"{name}_nohash_0.wav") == keyword_split(f"{name}_nohash_17.wav") == split
    assert keyword_split("plain.wav") == "train"


def wav(path, seconds=0.5):
    """A tone that depends on its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.sin(np.arange(int(16_000 * seconds)) / 5 + len(path.name))
    soundfile.write(path, wave, 16_000, subtype="PCM_16")


def text(path, *lines):
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_librispeech(root):
    """Three recordings per split, one of them with a word that no lexicon has."""
    text(root / "LibriSpeech/librispeech-lexicon-200k-g2p.txt", "A\tAH0", "CAB\tK AE1 B", "A\tEY1")
    text(root / "LibriSpeech/librispeech-lexicon-allothers-g2p.txt", "CAB\tS IY1", "DAB\tD AE1 B")
    for split in ("train-clean-100", "dev-clean", "test-clean"):
        text(
            root / f"LibriSpeech/{split}/1/2/1-2.trans.txt",
            "1-2-0000 A CAB",
            "1-2-0001 DAB A",
            "1-2-0002 ZOO",
        )
        for k in range(3):
            wav(root / f"LibriSpeech/{split}/1/2/1-2-000{k}.flac")


def write_speech_commands(root):
    """Two words, three speakers (train, dev, discarded), noise."""
    for word in ("yes", "bed"):
        for speaker in ("004ae714", "9e3779b1", "be1e0823"):
            wav(root / f"speech_commands_v0.01/{word}/{speaker}_nohash_0.wav")
    wav(root / "speech_commands_v0.01/_background_noise_/hum.wav", 3)
    for label in ("yes", "_unknown_", "_silence_"):
        wav(root / f"speech_commands_test_set_v0.01/{label}/x_004ae714_nohash_0.wav.wav")


def write_voxceleb(root):
    """Three speakers for training, two for the test, three recordings of each."""
    split = []
    for part, names in (("dev", ("id10001", "id10002", "id11251")),
                        ("test", ("id10270", "id10271"))):
        for name in names:
            for k in (1, 2, 3):
                wav(
                    root / f"VoxCeleb1/{part}/wav/{name}/v{k}/00001.wav",
                    1.5 if (name, k) == ("id10002", 3) else 2.5,
                )
                split.append(f"{k} {name}/v{k}/00001.wav")
    text(root / "VoxCeleb1/iden_split.txt", *split)
    text(
        root / "VoxCeleb1/veri_test.txt",
        "1 id10270/v1/00001.wav id10270/v2/00001.wav",
        "0 id10270/v1/00001.wav id10271/v1/00001.wav",
    )


def write_libri2mix(root):
    """One recording per split, of two speakers."""
    for split in SPLITS:
        wav(root / f"Libri2Mix/{split}/m.wav", 21.01)
        text(root / f"diarization/{split}/wav.scp", f"m Libri2Mix/{split}/m.wav")
        text(
            root / f"diarization/{split}/rttm",
            *(
                f"SPEAKER\tm\t1\t{start}\t{seconds}\t<NA>\t<NA>\t{speaker}\t<NA>"
                for start, seconds, speaker in ((0.0, 20.5, "7"), (19.0, 2.0, "100"))
            ),
        )


def write_fluent(root):
    """Three intents per split."""
    for split in ("train", "valid", "test"):
        rows = [("increase", "heat", "none"), ("bring", "shoes", "none"),
                ("increase", "heat", "kitchen")]
        text(
            root / f"fluent_speech_commands_dataset/data/{split}_data.csv",
            ",path,speakerId,transcription,action,object,location",
            *(
                f'{k},wavs/{split}{k}.wav,s,"Say, this",{",".join(row)}'
                for k, row in enumerate(rows)
            ),
        )
        for k in range(3):
            wav(root / f"fluent_speech_commands_dataset/wavs/{split}{k}.wav")


def write_snips(root):
    """One sentence per split, and a voice of another split."""
    for split, voice in (("train", "Ivy"), ("valid", "Amy"), ("test", "Emma")):
        wav(root / f"SNIPS/{split}/{voice}-snips-{split}-0.wav", 1)
        voice_of_another_split = "Ivy" if split == "test" else "Brian"
        wav(root / f"SNIPS/{split}/{voice_of_another_split}-snips-none-0.wav")
    text(root / "SNIPS/slots.txt", "O", "artist", "city")
    text(
        root / "SNIPS/all.iob.snips.txt",
        *(
            f"{id} BOS PLAY ABBA EOS\tO O artist PlayMusic"
            for id in ("Ivy-snips-train-0", "Amy-snips-valid-0", "Emma-snips-test-0",
                       "Ivy-snips-train-9")
        ),
    )


def write_iemocap(root):
    """One dialog per session, with seven turns."""
    for session in range(1, 6):
        name = f"Ses0{session}F_impro01"
        turns = [
            f"[1.0 - 2.0]\t{name}_F00{k}\t{emotion}\t[2.5, 2.5, 2.5]"
            for k, emotion in enumerate(("neu", "hap", "exc", "sad", "ang", "fru", "xxx"))
        ]
        folder = f"IEMOCAP/Session{session}/dialog/EmoEvaluation"
        text(
            root / f"{folder}/{name}.txt",
            "% [START_TIME - END_TIME] TURN_NAME",
            "",
            *turns,
            "C-E2:\tNeutral;\t()",
        )
        (root / folder / f"._{name}.txt").write_bytes(b"\xa3\x00")
        for k in range(7):
            wav(root / f"IEMOCAP/Session{session}/sentences/wav/{name}/{name}_F00{k}.wav")


def write_corpus(root):
    """The smallest corpus with all nine tasks."""
    write_librispeech(root)
    write_speech_commands(root)
    write_voxceleb(root)
    write_libri2mix(root)
    write_fluent(root)
    write_snips(root)
    write_iemocap(root)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    """The smallest corpus; not to be changed."""
    root = tmp_path_factory.mktemp("smallest")
    write_corpus(root)
    return root


@pytest.fixture
def copy(pristine, tmp_path, monkeypatch):
    """A copy of the smallest corpus that a test may break."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(pristine, tmp_path / "data")


def test_every_reader_finds_what_is_there(copy):
    counts = {
        "PR": (2, 2, 2),
        "ASR": (3, 3, 3),
        "KS": (3, 3, 3),
        "SID": (5, 5, 5),
        "ASV": (8, 8, 3),
        "SD": (2, 1, 1),
        "IC": (3, 3, 3),
        "SF": (1, 1, 1),
        "ER": (16, 4, 5),
    }
    for task, read in READERS.items():
        for split, count in zip(SPLITS, counts[task]):
            corpus = pickle.loads(
                pickle.dumps(read(str(copy), split))
            )  # the workers of a DataLoader get it this way
            assert len(corpus.utterances) == count, (task, split)
            for utterance in corpus.utterances:
                assert len(load_audio(utterance, corpus)) == min(
                    utterance.samples, corpus.crop or utterance.samples
                )


def test_phonemes_are_the_first_pronunciation_and_unknown_words_are_listed(copy):
    corpus = data.read_pr(copy, "train")
    first, second = (u.reference for u in corpus.utterances)
    assert first == "AH0 K AE1 B".split() and second == "D AE1 B AH0".split()
    assert corpus.skipped == ("1-2-0002: ZOO is not in the lexicon",)
    assert [decode_phonemes(corpus.labels, u.target) for u in corpus.utterances] == [
        u.reference for u in corpus.utterances
    ]
    (copy / "LibriSpeech/librispeech-lexicon-allothers-g2p.txt").unlink()  # one file is enough
    assert [u.id for u in data.read_pr(copy, "train").utterances] == ["1-2-0000"]


def test_words_carry_an_end_and_come_back(copy):
    corpus = data.read_asr(copy, "dev")
    assert corpus.utterances[0].target == encode([*"A|CAB|", "</s>"], ASR_SYMBOLS)
    assert [decode_words(corpus.labels, u.target) for u in corpus.utterances] == [
        ["A", "CAB"],
        ["DAB", "A"],
        ["ZOO"],
    ]


def test_labels_that_ctc_cannot_fit_are_left_out_of_training_only(copy):
    trans = copy / "LibriSpeech/{}/1/2/1-2.trans.txt"
    for split in ("train-clean-100", "dev-clean"):  # 24 frames: LL needs a blank between
        Path(str(trans).format(split)).write_text(
            f"1-2-0000 {'A' * 22}\n1-2-0001 {'AB' * 11}\n1-2-0002 {'AB' * 11}C\n"
        )
    assert [u.id for u in data.read_asr(copy, "train").utterances] == ["1-2-0001"]
    assert (
        len(data.read_asr(copy, "train").skipped) == 2
        and len(data.read_asr(copy, "dev").utterances) == 3
    )


def test_clips_shorter_than_a_frame_are_left_out(copy):
    soundfile.write(
        copy / "fluent_speech_commands_dataset/wavs/train1.wav",
        np.zeros(RECEPTIVE_FIELD - 1),
        16_000,
    )
    corpus = data.read_ic(copy, "train")
    assert len(corpus.utterances) == 2 and "399 samples" in corpus.skipped[0]


def test_keywords_have_superbs_classes_and_noise_is_silence(copy):
    corpus = data.read_ks(copy, "train")
    found = [(u.target, u.reference) for u in corpus.utterances]
    assert found == [(11, "_silence_"), (10, "_unknown_"), (0, "yes")]
    assert corpus.balanced and not data.read_ks(copy, "dev").balanced
    noise = data.read_ks(copy, "dev").utterances[0]
    assert (
        noise.reference == "_silence_"
        and len(load_audio(noise, data.read_ks(copy, "dev"))) == 16_000
    )
    references = [u.reference for u in data.read_ks(copy, "test").utterances]
    assert references == ["_silence_", "_unknown_", "yes"]
    assert decode_label(corpus.labels, 11) == "_silence_" and corpus.classes == 12


def test_voxceleb_may_be_in_one_folder_or_two(copy):
    apart = {
        task: READERS[task](copy, split) for task in ("SID", "ASV") for split in ("train", "test")
    }
    (copy / "VoxCeleb1/wav").mkdir()
    for place in (copy / "VoxCeleb1").glob("*/wav/id*"):
        place.rename(copy / "VoxCeleb1/wav" / place.name)
    for part in ("dev", "test"):
        shutil.rmtree(copy / "VoxCeleb1" / part)
    (copy / "VoxCeleb1/iden_split.txt").rename(copy / "VoxCeleb1/veri_test_class.txt")
    (copy / "VoxCeleb1/veri_test.txt").rename(copy / "VoxCeleb1/voxceleb1_test_v2.txt")
    together = {
        task: READERS[task](copy, split) for task in ("SID", "ASV") for split in ("train", "test")
    }
    for task in apart:
        assert [(u.id, u.target, u.reference) for u in apart[task].utterances] == [
            (u.id, u.target, u.reference) for u in together[task].utterances
        ]


def test_speakers_are_numbered_as_in_superb(copy):
    corpus = data.read_sid(copy, "test")
    assert sorted({(u.target, u.reference) for u in corpus.utterances}) == [
        (0, "id10001"),
        (1, "id10002"),
        (269, "id10270"),
        (270, "id10271"),
        (1250, "id11251"),
    ]
    assert corpus.classes == 1251 and decode_label(corpus.labels, 269) == "id10270"
    assert corpus.crop is None
    assert data.read_sid(copy, "train").crop == 128_000


def test_verification_trains_on_sorted_speakers_with_more_than_two_seconds(copy):
    corpus = data.read_asv(copy, "train")
    assert corpus.classes == 3 and [u.target for u in corpus.utterances] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert len(corpus.skipped) == 1 and corpus.skipped[0].startswith(
        "id10002/v3/00001.wav is too short"
    )
    test = data.read_asv(copy, "test")
    assert test.trials == ((1, "id10270/v1/00001.wav", "id10270/v2/00001.wav"),
                           (0, "id10270/v1/00001.wav", "id10271/v1/00001.wav"))
    assert {u.id for u in test.utterances} == {name for trial in test.trials for name in trial[1:]}
    assert test.classes == 3


def test_verification_dev_speakers_of_a_list_do_not_train(copy):
    assert {
        a.split("/")[0] == b.split("/")[0] for _, a, b in data.read_asv(copy, "dev").trials
    } == {True, False}
    same, other = (("id10001/v1/00001.wav", "id10001/v3/00001.wav"),
                   ("id10001/v1/00001.wav", "id10002/v1/00001.wav"))
    (copy / "VoxCeleb1/veri_dev.txt").write_text(f"1 {' '.join(same)}\n0 {' '.join(other)}\n")
    assert {u.reference for u in data.read_asv(copy, "train").utterances} == {"id11251"}
    assert data.read_asv(copy, "dev").trials == ((1, *same), (0, *other))


def test_dev_trials_never_pair_a_recording_with_itself():
    one, two, many = ["a/1"], ["b/1", "b/2"], [f"c/{k:02}" for k in range(25)]
    assert make_trials([one, two, one]) == [(0, "a/1", "b/1"), (1, "b/1", "b/2"), (0, "b/1", "a/1")]
    trials = make_trials([many, many[::-1], one])
    assert [trial for trial in trials if trial[0]] == [
        *((1, many[k], many[12 + k]) for k in range(10)), (1, many[24], many[12])]
    for label, first, second in trials:
        assert label == 0 or first != second
    assert len(make_trials([two] * 100)) == 40 * 2  # each pair of the first 40 speakers


def test_wav_scp_and_rttm_list_the_same_recordings(copy):
    with open(copy / "diarization/dev/rttm", "a") as file:
        file.write("SPEAKER a 1 0.0 1.0 <NA> <NA> 7 <NA>\n")
    with pytest.raises(DataError, match="SD: a of rttm is missing in .*dev/wav.scp; add it"):
        data.read_sd(copy, "dev")


def no_decoding(patch):
    """Decoding is an error from here on, and the patch is seen to act."""

    def refuse(task, path):
        raise AssertionError(f"{path} was decoded")

    patch.setattr(corpora, "decode_audio", refuse)
    patch.setattr(engine.measure, "decode_audio", refuse)
    with pytest.raises(AssertionError, match="was decoded"):
        load_audio(Utterance("a", "a.wav", 0, "a"), Corpus("KS", [], ["a"]))


def test_files_are_decoded_once_for_their_silence_and_for_skip_broken(copy, tmp_path, monkeypatch):
    def read():
        return [data.read_asv(copy, "train", cache=tmp_path / "cache"),
                data.read_ks(copy, "train", skip_broken=True, cache=tmp_path / "cache")]

    before = read()
    (memory,) = (tmp_path / "cache").iterdir()
    with open(memory, "a") as file:
        file.write("half a li")  # of a process that was killed
    no_decoding(monkeypatch)
    assert read() == before
    assert len(memory.read_text().splitlines()) == 9 + 3 + 1
    assert (
        len(data.read_asv(copy, "train", skip_broken="headers").utterances) == 8
    )  # from lengths with silence
    with pytest.raises(AssertionError, match="was decoded"):
        data.read_asv(copy, "train")  # without a cache


def test_diarization_is_cut_into_20_seconds_for_training_only(copy):
    first, second = data.read_sd(copy, "train").utterances
    assert (first.start, first.stop, second.start, second.stop) == (0, 320_000, 320_000, 336_160)
    assert first.target.shape == (2000, 2) and second.target.shape == (101, 2)
    # "100" sorts before "7"
    assert columns(second.target) == ["1" * 100 + "0", "1" * 50 + "0" * 51]
    assert second.reference == [["7", 0.0, pytest.approx(0.5)], ["100", 0.0, pytest.approx(1.0)]]
    (whole,) = data.read_sd(copy, "test").utterances
    assert whole.target.shape == (2101, 2)
    assert whole.reference == [["7", 0.0, 20.5], ["100", 19.0, 21.0]]


@pytest.mark.parametrize(
    "frames, chunks",
    [
        (1999, [(0, 1999)]),
        (2000, [(0, 2000)]),
        (2001, [(0, 2000)]),
        (2003, [(0, 2000), (2000, 2003)]),
        (4000, [(0, 2000), (2000, 4000)]),
        (6500, [(0, 2000), (2000, 4000), (4000, 6000), (6000, 6500)]),
    ],
)
def test_recordings_are_cut_as_in_the_released_code_but_for_a_rest_below_one_frame(
    copy, frames, chunks
):
    long_wav(copy / "Libri2Mix/train/m.wav", 160 * frames + 159)
    corpus = data.read_sd(copy, "train")
    assert [(u.start // 160, u.stop // 160) for u in corpus.utterances] == chunks
    too_short = ("m@320000 is too short: 160 samples",)
    assert corpus.skipped == (too_short if frames == 2001 else ())


def test_wav_scp_of_another_machine_is_read_below_this_folder(copy):
    here = data.read_sd(copy, "dev")
    for place in ("/home/somebody/Libri2Mix", copy / "Libri2Mix", "../../Libri2Mix",
                  "/x/Libri2Mix/old/Libri2Mix"):
        (copy / "diarization/dev/wav.scp").write_text(f"m {place}/dev/m.wav\n")
        there = data.read_sd(copy, "dev")
        assert [Path(u.path) for u in there.utterances] == [Path(u.path) for u in here.utterances]


def test_intents_are_numbered_by_their_first_appearance_in_train(copy):
    corpus = data.read_ic(copy, "test")
    assert corpus.classes == (2, 2, 2) and [u.target for u in corpus.utterances] == [
        (0, 0, 0),
        (1, 1, 0),
        (0, 0, 1),
    ]
    assert decode_intent(corpus.labels, (1, 0, 1)) == ["bring", "heat", "kitchen"]
    assert decode_intent([["a", "b"], ["c"], ["d"]], [1, 0, 0]) == ["b", "c", "d"]


def test_snips_takes_listed_voices_with_a_sentence(copy):
    corpus = data.read_sf(copy, "train")
    assert [u.id for u in corpus.utterances] == ["Ivy-snips-train-0"] and corpus.classes == 35
    assert (
        corpus.utterances[0].reference
        == decode_slots(corpus.labels, corpus.utterances[0].target)
        == "PLAY B-artist ABBA E-artist"
    )
    shutil.copy(corpus.utterances[0].path, copy / "SNIPS/train/Joey-snips-train-77.wav")
    assert len(data.read_sf(copy, "train").skipped) == 1
    (copy / "SNIPS/slots.txt").write_text("O\nartist\ncity")
    assert data.read_sf(copy, "dev").classes == 35


def test_emotion_folds_are_sessions_and_dev_is_the_draw_of_the_released_code(copy):
    assert {u.id[:5] for u in data.read_er(copy, "test", fold=3).utterances} == {"Ses03"}
    train, dev = (data.read_er(copy, split).utterances for split in ("train", "dev"))
    pool = sorted((*train, *dev), key=lambda u: u.id)
    torch.manual_seed(0)
    split = torch.utils.data.random_split(pool, [16, 4])
    assert [[u.id for u in part] for part in split] == [[u.id for u in train], [u.id for u in dev]]
    assert Counter(u.reference for u in pool) == {"neu": 4, "hap": 8, "sad": 4, "ang": 4}


def test_files_that_a_mac_leaves_behind_are_not_read(copy):
    def found():
        corpora = [read(copy, split) for read in READERS.values() for split in SPLITS]
        return [([u.id for u in corpus.utterances], corpus.skipped) for corpus in corpora]

    before = found()
    for path in [path for path in copy.rglob("*") if path.is_file()]:
        path.with_name("._" + path.name).write_bytes(b"\xa3\x00")
    assert found() == before


@pytest.mark.parametrize("name", ["IEMOCAP_full_release", "IEMOCAP/IEMOCAP_full_release"])
def test_iemocap_may_keep_the_name_of_its_archive(copy, name):
    before = [u.id for u in data.read_er(copy, "dev").utterances]
    (copy / "IEMOCAP").rename(copy / "moved")
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / "moved").rename(copy / name)
    assert [u.id for u in data.read_er(copy, "dev").utterances] == before


def test_the_toy_corpus_is_read_by_every_reader(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for task, read in READERS.items():
        for split in SPLITS:
            corpus = read(root, split)
            assert corpus.utterances and not corpus.skipped, (task, split, corpus.skipped)
            assert len(load_audio(corpus.utterances[0], corpus)) >= RECEPTIVE_FIELD


# ---------------------------------------------------------------- what is wrong is named


def replaced(path, old, new):
    """A way to break a text file."""

    def breaking(root):
        assert old in (root / path).read_text()
        (root / path).write_text((root / path).read_text().replace(old, new))

    return breaking


def removed(path):
    """A way to lose a file or folder."""

    def breaking(root):
        shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()

    return breaking


def blocked(path):
    """A way to have a folder where a text file should be."""

    def breaking(root):
        (root / path).unlink()
        (root / path).mkdir()

    return breaking


def written(path, content):
    """A way to damage a file."""

    def breaking(root):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(content)

    return breaking


def long_wav(path, samples):
    """A wav of zeros, without writing them."""
    soundfile.write(path, np.zeros(0), 16_000, subtype="PCM_16", format="WAV")
    header = bytearray(path.read_bytes())
    header[4:8], header[40:44] = ((size + 2 * samples).to_bytes(4, "little") for size in (36, 0))
    path.write_bytes(header)
    os.truncate(path, 44 + 2 * samples)


def cut_short(path):
    os.truncate(path, path.stat().st_size * 2 // 3)


def noise(rate=16_000, channels=1, seconds=2.5, scale=0.1):
    """A way to replace a sound file."""

    def replacing(path):
        wave = scale * np.random.default_rng(0).standard_normal((int(rate * seconds), channels))
        soundfile.write(path, wave, rate)

    return replacing


AUDIO = {
    "PR": "LibriSpeech/train-clean-100/1/2/1-2-0000.flac",
    "ASR": "LibriSpeech/train-clean-100/1/2/1-2-0001.flac",
    "KS": "speech_commands_v0.01/yes/004ae714_nohash_0.wav",
    "SID": "VoxCeleb1/dev/wav/id10001/v1/00001.wav",
    "ASV": "VoxCeleb1/dev/wav/id10001/v1/00001.wav",
    "SD": "Libri2Mix/train/m.wav",
    "IC": "fluent_speech_commands_dataset/wavs/train0.wav",
    "SF": "SNIPS/train/Ivy-snips-train-0.wav",
    "ER": "IEMOCAP/Session3/sentences/wav/Ses03F_impro01/Ses03F_impro01_F000.wav",
}
FAULTS = {  # what is done to a file, where it shows, and what is said
    "missing": (Path.unlink, "header", "no readable audio .no such file."),
    "empty": (lambda path: path.write_bytes(b""), "header", "no readable audio .an empty file."),
    "cut short": (cut_short, "header", "only a part of the audio"),
    "text": (lambda path: path.write_text("hello\n" * 99), "header",
             "no readable audio .damaged or not audio, it begins with hello"),
    "no samples": (lambda path: soundfile.write(path, np.zeros(0), 16_000), "header", "no "),
    "not a number": (
        lambda path: soundfile.write(path, np.full(40_000, np.nan), 16_000, subtype="FLOAT"),
        "decoding",
        "not finite",
    ),
    "10 ms": (noise(seconds=0.01), "length", "is too short: 1?6?0 samples"),
    "stereo": (noise(channels=2), "", ""),
    "8 kHz": (noise(8_000), "", ""),
    "44.1 kHz": (noise(44_100), "", ""),
    "48 kHz stereo": (noise(48_000, 2), "", ""),
    "all zeros": (noise(scale=0), "", ""),
    "an hour": (lambda path: long_wav(path, 3600 * 16_000), "", ""),
}
NOT_SO = {
    ("missing", "KS"),
    ("missing", "ASV"),
    ("missing", "SF"),  # these readers list what is there
    ("not a number", "PR"),
    ("not a number", "ASR"),
    ("no samples", "PR"),
    ("no samples", "ASR"),
}  # flac cannot


@pytest.mark.parametrize(
    "task, fault",
    [(task, fault) for fault in FAULTS for task in AUDIO if (fault, task) not in NOT_SO],
)
def test_one_bad_file_of_each_dataset_is_named_left_out_or_read(copy, task, fault):
    spoil, where, words = FAULTS[fault]
    turns = "".join(f"SPEAKER m 1 0.{who} 1.0 <NA> <NA> {who} <NA>\n" for who in (1, 2))
    (copy / "diarization/train/rttm").write_text(turns)  # that even a short recording holds
    spoil(copy / AUDIO[task])
    if fault == "cut short" and AUDIO[task].endswith("flac"):
        where, words = "decoding", "damaged audio"
    if fault == "all zeros" and task == "ASV":
        where, words = "length", "is too short: 0 samples"
    if where in ("header", "decoding"):
        assert_named_and_left_out(copy, task, where, words)
    elif where == "length":
        corpus, said, used = read_spoilt(copy, task, skip_broken=False)
        assert re.search(words, said) and not used
    elif fault == "an hour":
        with pytest.MonkeyPatch.context() as patch:
            no_decoding(patch)  # headers are enough
            skip = "headers" if task == "ASV" else False
            corpus, said, used = read_spoilt(copy, task, skip)
        assert sum(u.samples for u in used) == 3600 * 16_000 and not said
        assert len(used) == (180 if task == "SD" else 1)
    else:
        corpus, said, used = read_spoilt(copy, task, skip_broken=False)
        wave = load_audio(used[0], corpus)
        assert len(wave) == min(used[0].samples, corpus.crop or 40_000)
        assert np.isfinite(wave).all() and not said


def read_spoilt(root, task, skip_broken):
    """The corpus, what is said of the spoilt file, and its parts that are used. If there is a
    DataError: the error, its sentence, and nothing."""
    try:
        corpus = READERS[task](root, "train", skip_broken=skip_broken)
    except DataError as error:
        return error, str(error), []
    parts = Path(AUDIO[task]).parts
    names = Path(AUDIO[task]).stem, "/".join(parts[-2:]), "/".join(parts[-3:])
    said = [text for text in corpus.skipped if AUDIO[task] in text or text.startswith(names)]
    used = [u for u in corpus.utterances if u.path == str(root / AUDIO[task])]
    return corpus, " ".join(said), used


def assert_named_and_left_out(root, task, where, words):
    """The spoilt file is left out if asked for; else it is an error, by its header or later."""
    problem = rf".*{words}.*{AUDIO[task]}; replace the file, or go on without it by --skip-broken"
    result, said, used = read_spoilt(root, task, skip_broken=True)
    assert re.search(problem, said) and not used
    # an error only where that file was the only one
    assert task in ("SD", "SF") or isinstance(result, Corpus)
    result, said, used = read_spoilt(root, task, skip_broken=False)
    if where == "header" or task == "ASV":  # ASV has to decode
        assert isinstance(result, DataError)
        assert re.match(f"{task}: {problem}", said) and "\n" not in said
    else:
        with pytest.raises(DataError, match=f"{task}: {problem}"):
            load_audio(used[0], result)


def test_an_mp3_that_is_cut_short_is_found_by_decoding(copy):
    (copy / "SNIPS/train/Ivy-snips-train-0.wav").unlink()
    path = copy / "SNIPS/train/Ivy-snips-train-0.mp3"
    soundfile.write(path, 0.3 * np.sin(np.arange(40_000) / 5), 16_000)
    assert len(data.read_sf(copy, "train", skip_broken=True).utterances) == 1
    cut_short(path)
    with pytest.raises(DataError, match="only a part of the audio in .*Ivy-snips-train-0.mp3"):
        data.read_sf(copy, "train", skip_broken=True)


def test_a_wav_written_into_a_pipe_has_no_size_and_is_whole(copy):
    path = copy / AUDIO["IC"]
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 4 + content[8:40] + b"\xff" * 4 + content[44:])
    assert not data.read_ic(copy, "train", skip_broken=True).skipped


def test_a_file_that_breaks_in_mid_run_is_one_sentence_from_a_worker_too(copy):
    corpus = data.read_ic(copy, "train")
    (copy / AUDIO["IC"]).unlink()
    loader = DataLoader(
        Steps({"IC": Stream(corpus, 3)}), batch_size=None, sampler=range(1), num_workers=1
    )
    with pytest.raises(DataError) as error:
        next(iter(loader))
    sentence = r"IC: no readable audio \(no such file\) in .*wavs/train0.wav; .* by --skip-broken"
    assert re.fullmatch(sentence, str(error.value))


VOX = "VoxCeleb1/"
LEXICON = "LibriSpeech/librispeech-lexicon-200k-g2p.txt"
TRANS = "LibriSpeech/train-clean-100/1/2/1-2.trans.txt"
IDEN, TRIALS = VOX + "iden_split.txt", VOX + "veri_test.txt"
FLUENT = "fluent_speech_commands_dataset/data/train_data.csv"
IEMO = "IEMOCAP/Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
SNIPS_TEXT, SCP, RTTM = "SNIPS/all.iob.snips.txt", "diarization/dev/wav.scp", "diarization/dev/rttm"
TEXTS = [
    ("PR", "train", LEXICON),
    ("PR", "train", TRANS),
    ("ASR", "train", TRANS),
    ("SID", "train", IDEN),
    ("ASV", "dev", VOX + "veri_dev.txt"),
    ("ASV", "test", TRIALS),
    ("SD", "test", "diarization/test/wav.scp"),
    ("SD", "test", "diarization/test/rttm"),
    ("IC", "train", FLUENT),
    ("SF", "train", "SNIPS/slots.txt"),
    ("SF", "train", SNIPS_TEXT),
    ("ER", "test", IEMO),
]
PATHS = [  # (task, split, file, what stands where a part of a path does)
    ("PR", "train", TRANS, "1-2-0000"),
    ("ASR", "train", TRANS, "1-2-0000"),
    ("SID", "train", IDEN, "v1/00001.wav"),
    ("ASV", "test", TRIALS, "v1/00001.wav"),
    ("ASV", "dev", VOX + "veri_dev.txt", "v1/00001.wav"),
    ("SD", "dev", SCP, "Libri2Mix/dev/m.wav"),
    ("SD", "dev", SCP, "dev/m.wav"),
    ("IC", "train", FLUENT, "wavs/train1.wav"),
    ("ER", "test", IEMO, "Ses01F_impro01_F000"),
]


@pytest.mark.parametrize(
    "task, split, breaking, words",
    [
        *(
            (task, split, written(path, b"\xff\xfe\n"), f"no readable UTF-8 .*{path}")
            for task, split, path in TEXTS
        ),
        *(
            (task, split, written(path, b"\n"), f"nothing in .*{path}")
            for task, split, path in TEXTS
        ),
        *(
            (task, split, blocked(path), "no readable UTF-8 text|nothing called")
            for task, split, path in TEXTS
        ),
        *(
            (task, split, replaced(path, name, "../" * 12 + "etc/passwd"),
             "the path .*/etc/passwd.* points outside the data folder")
            for task, split, path, name in PATHS
        ),
        *(
            (task, split, replaced(path, name, "/etc/passwd"),
             "/etc/passwd.* points outside the data folder|malformed|no such file"
             + ("|nothing called Libri2Mix/etc" if task == "SD" else ""))
            for task, split, path, name in PATHS
        ),
        ("PR", "train", removed("LibriSpeech"),
         "nothing called LibriSpeech/librispeech-lexicon-200k-g2p.txt or"),
        ("ASR", "train", removed("LibriSpeech/train-clean-100"),
         "nothing called LibriSpeech/train-clean-100"),
        ("ASR", "train", replaced(TRANS, " A CAB", ""), "line 1 .1-2-0000..* is mal.*trans.txt"),
        ("PR", "train", replaced(TRANS, " A CAB", ""), "line 1 .1-2-0000..* is mal.*trans.txt"),
        ("ASR", "train", replaced(TRANS, "1-2-0001", "1-2-0000"), "1-2-0000 is listed twice"),
        ("PR", "train", replaced(TRANS, "1-2-0001", "1-2-0000"), "1-2-0000 is listed twice"),
        ("PR", "train", replaced(LEXICON, "K AE1", "K QQ"), r"line 2 .CAB\\tK QQ B"),
        ("KS", "train", removed("speech_commands_v0.01"), "nothing called speech_commands_v0.01"),
        ("KS", "test", removed("speech_commands_test_set_v0.01"),
         "nothing called speech_commands_test_set_v0.01"),
        ("KS", "test", written("speech_commands_test_set_v0.01/cat/a.wav", b""),
         "unknown class cat"),
        ("SID", "train", removed(IDEN), "nothing called VoxCeleb1/iden_split.txt or"),
        ("SID", "train", replaced(IDEN, "1 id10001", "4 id10001"), "line 1 .* is malformed"),
        ("SID", "train", replaced(IDEN, "1 id10001", "1 id19999"), "id19999 is not among id10001"),
        ("SID", "train", replaced(IDEN, "1 id10002/v1", "1 id10001/v1"),
         "id10001/v1/00001.wav is listed twice"),
        ("SID", "train", replaced(IDEN, "id10001/v1", "id10001/v9"),
         "no such file. in .*v9/00001.wav"),
        ("SID", "dev", replaced(IDEN, "id10271/v2", "id10271/v9"),
         "in .*test/wav/id10271/v9/00001.wav"),
        ("ASV", "test", removed(TRIALS), "no test trials .veri_test.txt."),
        ("ASV", "test", replaced(TRIALS, "id10271/v1", "id10271/v7"),
         "no such file. in .*id10271/v7/00001.wav"),
        ("ASV", "test", replaced(TRIALS, "0 id", "2 id"), "line 2 .* is malformed"),
        ("ASV", "train", removed(VOX + "dev"), "nothing called VoxCeleb1/dev/wav or VoxCeleb1/wav"),
        ("SD", "dev", removed(RTTM), "nothing called rttm"),
        ("SD", "dev", replaced(RTTM, "19.0", "soon"), "line 2 .* is malformed in .*rttm"),
        ("SD", "dev", replaced(RTTM, "\tm\t", "\tother\t"),
         "m of wav.scp is missing in .*dev/rttm"),
        ("SD", "dev", replaced(RTTM, "\n", "\nSPEAKER m 1 1 1 <NA> <NA> 3 <NA>\n"),
         "m has 3 speakers"),
        ("SD", "dev", replaced(RTTM, "19.0", "99.0"),
         "a turn of m ends at 1.* s, after the recording"),
        ("SD", "dev", written(SCP, b"m Libri2Mix/dev/m.wav\nm Libri2Mix/dev/m.wav\n"),
         "m is listed twice"),
        ("SD", "dev", replaced(SCP, "m.wav", "n.wav"), "no such file. in .*Libri2Mix/dev/n.wav"),
        ("IC", "train", replaced(FLUENT, "action", "deed"),
         "the header line .,path,.*deed.* has no column action in .*train_data.csv"),
        ("IC", "train", replaced(FLUENT, ",heat,none", ",heat"),
         "line 2 has no location in .*train_data.csv"),
        ("IC", "train", replaced(FLUENT, 'this"', "this"), "line 2 has no action in"),
        ("IC", "train", replaced(FLUENT, "wavs/train1", "wavs/train0"),
         "wavs/train0.wav is listed twice"),
        ("IC", "dev", replaced(FLUENT.replace("train", "valid"), "shoes", "socks"),
         "'socks'.* is unknown to train"),
        ("SF", "train", removed("SNIPS/slots.txt"), "nothing called slots.txt"),
        ("SF", "train", replaced("SNIPS/slots.txt", "artist", "painter"),
         "Ivy-snips-train-0 has unknown slots"),
        ("SF", "train", replaced(SNIPS_TEXT, "O O artist", "O artist"), "Ivy-.*not one per word"),
        ("SF", "train", replaced(SNIPS_TEXT, "PLAY ABBA ", ""), "line 1 .* is malformed"),
        ("SF", "train", replaced(SNIPS_TEXT, "train-9", "train-0"),
         "Ivy-snips-train-0 is listed twice in .*.iob"),
        ("SF", "train", written("SNIPS/train/Ivy-snips-train-0.mp3", b""),
         "Ivy-snips-train-0 is listed twice"),
        ("SF", "train", removed("SNIPS/train/Ivy-snips-train-0.wav"),
         "no usable utterance .none is listed."),
        ("ER", "train", removed("IEMOCAP/Session3"),
         "nothing called Session3/dialog/EmoEvaluation"),
        ("ER", "test", replaced(IEMO, "\tneu\t", " neu "), "is malformed"),
        ("ER", "test", replaced(IEMO, "\tneu\t", "\tnue\t"), "is malformed"),
        ("ER", "test", replaced(IEMO, "F001", "F000"), "Ses01F_impro01_F000 is listed twice"),
        ("ER", "test", removed("IEMOCAP/Session1/sentences/wav/Ses01F_impro01/"),
         "no such file. in .*F000.wav"),
    ],
)
def test_broken_data_is_named_in_one_sentence(copy, task, split, breaking, words):
    (copy / "VoxCeleb1/veri_dev.txt").write_text(
        "1 id10001/v1/00001.wav id10001/v2/00001.wav\n0 id10001/v1/00001.wav id10002/v1/00001.wav\n"
    )
    breaking(copy)
    with pytest.raises(DataError, match=rf"^{task}: .*({words}).*; \w+") as error:
        READERS[task](copy, split)
    assert str(copy) in str(error.value) and "\n" not in str(error.value)


def test_what_is_broken_can_be_skipped_and_is_listed_with_the_trials_that_need_it(copy):
    (copy / "LibriSpeech/train-clean-100/1/2/1-2-0001.flac").write_bytes(b"?")
    (copy / "VoxCeleb1/test/wav/id10271/v1/00001.wav").unlink()
    with open(copy / "VoxCeleb1/veri_test.txt", "a") as file:
        file.write("0 id10270/v1/00001.wav id10271/v2/00001.wav\n")
    corpus = data.read_asr(copy, "train", skip_broken=True)
    assert len(corpus.utterances) == 2
    assert "(damaged or not audio, it begins with ?) in" in corpus.skipped[0]
    test = data.read_asv(copy, "test", skip_broken=True)
    assert len(test.trials) == 2 and len(test.skipped) == 2
    dropped = "trial dropped: id10270/v1/00001.wav or id10271/v1/00001.wav is unusable"
    assert test.skipped[1] == dropped
    (copy / "VoxCeleb1/test/wav/id10271/v2/00001.wav").unlink()
    with pytest.raises(DataError, match="no usable test trials of both labels"):
        data.read_asv(copy, "test", skip_broken=True)


def test_labels_that_ctc_cannot_fit_are_listed_by_each_task_that_has_them(copy):
    words = " ".join(["ABBA"] * 30)
    (copy / SNIPS_TEXT).write_text(
        f"Ivy-snips-train-0 BOS {words} EOS\tO {' '.join(['O'] * 30)} PlayMusic\n"
    )
    with pytest.raises(
        DataError, match=r"\(Ivy-snips-train-0 is too short: 16000 samples, \d+ are needed\)"
    ):
        data.read_sf(copy, "train")
    (copy / (TRANS)).write_text(f"1-2-0000 {' '.join(['CAB'] * 30)}\n1-2-0001 A\n1-2-0002 A\n")
    for task in ("PR", "ASR"):
        corpus = READERS[task](copy, "train")
        assert len(corpus.utterances) == 2 and corpus.skipped[0].startswith("1-2-0000 is too short")


def test_recordings_without_a_line_in_the_transcripts_are_listed(copy):
    (copy / (TRANS)).write_text("1-2-0000 A CAB\n")
    for task in ("PR", "ASR"):
        corpus = READERS[task](copy, "train")
        assert len(corpus.utterances) == 1
        assert all(
            text.endswith(f"/1-2-000{k}.flac has no transcript")
            for k, text in enumerate(corpus.skipped, 1)
        )


# ---------------------------------------------------------------- the doctor


def doctor(capsys, *arguments):
    """Exit status and output of `python data.py ARGUMENTS`."""
    return run_main(data.main, *arguments), capsys.readouterr().out


def test_the_doctor_finds_nothing_wrong_with_a_whole_corpus(copy, capsys):
    wrong, text = doctor(capsys, copy, "--decode")
    assert not wrong and "none" not in text and "PR train: 1 left out, as 1-2-0002: ZOO" in text
    assert all(
        f"{count:,}" in text
        for _, *counts in doctor_program.SUPERB.values()
        for count in counts
        if count
    )


def test_the_doctor_says_what_to_get_where_and_under_which_licence(tmp_path, capsys):
    wrong, text = doctor(capsys, tmp_path)
    assert wrong and text.count("none / ") == 26
    for task, source in data.HOW_TO_GET.items():
        found = re.findall(
            rf"^{task}: nothing called .* in {tmp_path}; {re.escape(source)}\.$", text, re.MULTILINE
        )
        assert found and re.search(r"\(.*(CC BY|form|academic|licence).*\)", source)


def test_the_doctor_of_a_folder_that_is_not_there_says_so(tmp_path, refused):
    folder = tmp_path / "not/there"
    refused(run_main, [data.main, folder], f"There is no folder {folder};")


def test_the_doctor_lists_each_broken_file_once_and_goes_on(copy, capsys):
    for path in (AUDIO["PR"], AUDIO["SID"], AUDIO["IC"]):
        (copy / path).unlink()
    cut_short(copy / AUDIO["ER"])
    wrong, text = doctor(capsys, copy)
    lines = text.splitlines()
    assert wrong and lines[-1] == "Problems: 4."
    for task, path in (("PR, ASR", AUDIO["PR"]), ("SID", AUDIO["SID"]), ("IC", AUDIO["IC"]),
                       ("ER", AUDIO["ER"])):
        assert sum(line.startswith(f"{task}: ") and path in line for line in lines) == 1


def test_the_doctor_decodes_only_when_asked(copy, monkeypatch, capsys):
    path = copy / AUDIO["IC"]
    soundfile.write(path, np.full(8_000, np.nan), 16_000, subtype="FLOAT")
    noise(44_100, 2)(copy / "SNIPS/train/Ivy-snips-train-0.wav")
    with monkeypatch.context() as patch:
        no_decoding(patch)
        wrong, text = doctor(capsys, copy)
    assert not wrong and "SF train: 1 not at 16 kHz (convert them to save time), as " in text
    assert text.endswith("Problems: 0.\n")
    wrong, text = doctor(capsys, copy, "--decode")
    assert wrong and f"IC: samples that are not finite in {path}; " in text
