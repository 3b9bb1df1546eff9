"""predict.py: its answers are those of evaluation; any format, long recordings, clear errors."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import resample

import engine.audio
import engine.recording
import predict
from conftest import result, run_main
from engine.audio import decode_audio
from engine.recording import FixedNorm, channel_statistics, encode_recording
from metrics import eer_threshold
from model import TINY, MultiTask, frame_count, load_encoder, random_encoder
from rules import loud_samples
from tasks import TASKS

RATE = 16_000


def run_predict(*arguments) -> None:
    """predict.py in this process."""
    run_main(predict.main, *arguments)


@pytest.fixture
def call(output_of):
    """call("a.wav", "--run", ...): what predict.py prints; with --json, as objects."""

    def run(*arguments):
        printed = output_of(run_predict, *arguments)
        return json.loads(printed) if "--json" in arguments else printed

    return run


def stored(folder, task: str) -> dict:
    """{id: prediction} of a run's test set."""
    lines = (folder / "predictions" / f"{task}.jsonl").read_text().splitlines()
    return {row["id"]: row["prediction"] for row in map(json.loads, lines)}


def keyword(root):
    """A keyword of the test set of KS."""
    return sorted((root / "speech_commands_test_set_v0.01").glob("[a-z]*/*.wav"))[0]


def speech(root, seconds: float) -> np.ndarray:
    """Recordings of LibriSpeech, one after the other: (n,) at 16 kHz."""
    paths = sorted(root.glob("LibriSpeech/*/*/*/*.flac"))
    waves = [soundfile.read(path, dtype="float32")[0] for path in paths]
    repeats = int(seconds * RATE / sum(map(len, waves))) + 1
    return np.concatenate(waves * repeats)[: int(seconds * RATE)]


# The answers


@pytest.mark.parametrize("scenario", ["mtl", "ssl", "transfer"])
@pytest.mark.parametrize("task", TASKS)
def test_an_answer_is_the_one_that_evaluation_stored(runs, root, call, scenario, task):
    folder = runs / ("mtl-all" if scenario == "mtl" else f"{scenario}-{task}")
    corpus, expected = TASKS[task].read(str(root), "test"), stored(folder, task)
    path_of = {u.id: u.path for u in corpus.utterances}
    files = [*path_of.values()][:2] + [*path_of.values()][-2:]
    rows = call(*files, "--run", folder, "--task", task, "--json")
    assert [row["file"] for row in rows] == list(dict.fromkeys(files))
    answers = {row["file"]: row["answer"] for row in rows}
    compared = 0
    for trial in corpus.trials:
        one, other = (path_of[name] for name in trial[1:])
        if one in answers and other in answers:
            cosine = next(row for row in rows if row["file"] == one)["cosines"][other]
            assert cosine == pytest.approx(expected[f"{trial[1]} {trial[2]}"], abs=1e-5)
            compared += 1
    if not corpus.trials:
        for name, path in path_of.items():
            if path in answers:
                assert answers[path] == expected[name]
                compared += 1
    assert compared > 0


def test_how_sure_a_head_is_has_a_form_for_each_kind_of_answer(runs, root, call):
    rows = call(keyword(root), "--run", runs / "mtl-all", "--json")
    assert [row["task"] for row in rows] == list(TASKS)
    found = {row["task"]: (row["certainty_name"], row["certainty"]) for row in rows}
    for task in ("KS", "SID", "ER", "IC"):
        name, numbers = found[task]
        assert name == "probability" and len(numbers) == (3 if task == "IC" else 1)
        assert all(0 < number <= 1 for number in numbers)
    for task in ("PR", "ASR", "SF"):
        name, [number] = found[task]
        assert name == "mean log probability per token" and number < 0
    name, [number] = found["SD"]
    assert name == "mean probability of a decision" and 0.5 <= number <= 1
    assert found["ASV"] == ("", [])


def test_the_text_has_a_block_per_file_and_a_line_per_head(runs, root, call):
    files = sorted(root.glob("VoxCeleb1/test/wav/*/*/*.wav"))[:2]
    lines = call(*files, "--run", runs / "mtl-all").splitlines()
    assert len(lines) == 2 * (1 + len(TASKS)) + 2
    assert lines[0] == str(files[0]) and lines[10] == str(files[1])
    assert lines[1].startswith("  mtl-all  ASR ") and "per token -" in lines[1]
    assert "an embedding of 128 numbers" in lines[8]
    threshold = result(runs, "mtl-all")["thresholds"]["ASV"]
    for line, path in zip(lines[-2:], files):
        assert "1.000*" in line and str(path) in line and f"{threshold:.3f} or more" in line
    assert len(call(files[0], "--run", runs / "mtl-all").splitlines()) == 1 + len(TASKS)


def test_turns_and_slots_are_shown_in_words():
    turns = {"answer": [["0", 0.0, 1.5], ["1", 1.0, 2.25]], "certainty": [0.9]}
    turns["certainty_name"] = "x"
    assert predict.answer_text(turns) == "speaker 0 0.00-1.50 s, speaker 1 1.00-2.25 s  (x 0.90)"
    slots = {"answer": ["on", "lamp"], "certainty": [0.5, 1.0], "certainty_name": "probability"}
    assert predict.answer_text(slots) == "on lamp  (probability 0.50 1.00)"
    assert predict.answer_text(slots | {"answer": []}) == "  (probability 0.50 1.00)"


def test_several_runs_answer_side_by_side(runs, root, call):
    several = call(keyword(root), "--run", runs / "ssl-KS", "--run", runs / "ssl-IC", "--json")
    assert [(row["run"], row["task"]) for row in several] == [("ssl-KS", "KS"), ("ssl-IC", "IC")]
    some = call(keyword(root), "--run", runs / "mtl-all", "--task", "ks,ic", "SD", "--json")
    assert [row["task"] for row in some] == ["SD", "IC", "KS"]


# The threshold


def test_a_run_stores_the_cosine_where_errors_on_dev_are_equal(runs, root, call):
    dev = TASKS["ASV"].read(str(root), "dev")
    path_of = {u.id: u.path for u in dev.utterances}
    for name in ("ssl-ASV", "mtl-all", "transfer-ASV"):
        rows = call(*path_of.values(), "--run", runs / name, "--task", "ASV", "--json")
        cosines = {row["file"]: row["cosines"] for row in rows}
        scores = [cosines[path_of[one]][path_of[other]] for _, one, other in dev.trials]
        expected = eer_threshold([label for label, _, _ in dev.trials], scores)
        thresholds = result(runs, name)["thresholds"]
        assert thresholds == {"ASV": pytest.approx(expected, abs=1e-5)}
        for row in rows:
            passed = [p for p, cosine in row["cosines"].items() if cosine >= thresholds["ASV"]]
            assert row["same_speaker"] == passed
    assert result(runs, "ssl-KS")["thresholds"] == {}
    assert result(runs, "leave-one-out-ASV")["thresholds"] == {}


# Formats and lengths


@pytest.mark.parametrize("name", ["stereo.wav", "stereo.flac", "stereo.ogg", "stereo.mp3"])
def test_other_rates_channels_and_formats_give_roughly_the_same(runs, root, tmp_path, call, name):
    wave = soundfile.read(sorted(root.glob("fluent*/wavs/*/*/*.wav"))[0], dtype="float32")[0]
    soundfile.write(tmp_path / "mono.wav", wave, RATE)
    wide = resample(torch.from_numpy(wave), RATE, 44_100).numpy()
    soundfile.write(tmp_path / name, np.stack([wide, wide], 1), 44_100)
    rows = call(tmp_path / "mono.wav", tmp_path / name, "--run", runs / "mtl-all", "--json")
    mono, other = rows[: len(TASKS)], rows[len(TASKS) :]
    for one, two in zip(mono, other):
        if one["task"] in ("KS", "SID", "ER", "IC"):
            assert two["answer"] == one["answer"], one["task"]
            assert two["certainty"] == pytest.approx(one["certainty"], abs=0.05)
    cosines = next(row for row in rows if "cosines" in row)["cosines"]
    assert cosines[str(tmp_path / name)] > 0.99


def test_tasks_that_load_audio_alike_share_the_encoding(runs, root, call, monkeypatch):
    encoded = []

    def counting(model, wave, title):
        encoded.append(len(wave))
        return encode_recording(model, wave, title)

    monkeypatch.setattr(engine.recording, "encode_recording", counting)
    path = sorted(root.glob("LibriSpeech/test-clean/*/*/*.flac"))[0]
    samples = soundfile.info(path).frames
    call(path, "--run", runs / "mtl-all")
    whole, keyword_part, voiced = encoded  # in the order of the table of tasks
    assert whole == samples > RATE == keyword_part and voiced <= samples


@pytest.mark.parametrize("normalized", [False, True])
def test_windows_give_nearly_the_features_of_the_whole_recording(root, monkeypatch, normalized):
    encoder = random_encoder(TINY | {"normalize_waveform": normalized})
    model = MultiTask(encoder, {}, False).eval()
    wave = torch.from_numpy(speech(root, 73.21))
    wave[10 * RATE : 45 * RATE] *= 0.001  # a window of near silence
    norm, config = encoder.feature_extractor.conv_layers[0].layer_norm, encoder.config
    with torch.no_grad():
        windows = encode_recording(model, wave, "")
        monkeypatch.setattr(engine.recording, "WINDOWED_FROM", len(wave) + 1)
        whole = encode_recording(model, wave, "")
    assert windows.shape == whole.shape == (frame_count(len(wave)), TINY["encoder_embed_dim"])
    difference = (windows - whole).norm(dim=1) / whole.norm(dim=1)
    assert 0 < difference.mean() < 0.02 and difference.max() < 0.06
    assert encoder.feature_extractor.conv_layers[0].layer_norm is norm
    assert encoder.config is config


def test_windows_cover_each_frame_once(root, monkeypatch):
    encoder = load_encoder("tiny")
    model = MultiTask(encoder, {}, False).eval()
    wave = torch.from_numpy(speech(root, 12.345))
    with torch.no_grad():
        whole = encode_recording(model, wave, "")
        monkeypatch.setattr(engine.recording, "WINDOWED_FROM", 0)
        monkeypatch.setattr(engine.recording, "WINDOW", 100)
        monkeypatch.setattr(engine.recording, "CONTEXT", 1000)  # each window sees everything
        windows = encode_recording(model, wave, "")
    torch.testing.assert_close(windows, whole, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_fixed_statistics_are_those_of_group_norm_over_the_whole_recording(root):
    block = random_encoder(TINY).feature_extractor.conv_layers[0]
    wave = torch.from_numpy(speech(root, 61.3))
    x = block.conv(wave[None, None])
    fixed = FixedNorm(block.layer_norm, *channel_statistics(block.conv, wave))
    torch.testing.assert_close(fixed(x), block.layer_norm(x), atol=1e-4, rtol=1e-4)


def test_a_long_file_is_decoded_in_blocks_to_the_same_samples(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).normal(0, 0.1, (22_050 * 13 + 7, 2))
    path = str(tmp_path / "noise.flac")
    soundfile.write(path, noise, 22_050)
    whole = decode_audio("KS", path)
    read = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda *a, **k: read.append(1) or original(*a, **k)
    )
    monkeypatch.setattr(engine.audio, "BLOCK_SECONDS", 4)
    blocks = decode_audio("KS", path)
    assert len(read) == 5 and len(blocks) == len(whole) == -(-len(noise) * 160 // 220.5)
    np.testing.assert_allclose(blocks, whole, atol=1e-6)


def test_loud_samples_do_not_depend_on_the_blocks(root):
    wave = speech(root, 3.3)
    for block in (321, 1000, 7 * RATE):
        assert (loud_samples(wave, 0.7, block) == loud_samples(wave, 0.7)).all()


# What a prediction needs, and what goes wrong


def test_a_prediction_needs_no_data_and_no_pretrained_encoder_of_a_finetuned_run(
    runs, root, tmp_path, call
):
    clip = shutil.copy(keyword(root), tmp_path / "clip.wav")
    shutil.copytree(runs / "mtl-all", tmp_path / "mtl-all")
    config = tmp_path / "mtl-all" / "config.json"
    saved = json.loads(config.read_text())
    saved["recorded"] |= {"data": "/nowhere", "encoder": "/nowhere/encoder.pt"}
    config.write_text(json.dumps(saved))
    expected = call(clip, "--run", runs / "mtl-all", "--json")
    assert call(clip, "--run", tmp_path / "mtl-all", "--json") == expected


def test_a_file_that_is_no_usable_audio_is_one_sentence(runs, root, tmp_path, refused):
    here = ["--run", runs / "mtl-all"]
    (tmp_path / "text.wav").write_text("no audio")
    refused(run_predict, [tmp_path / "text.wav", *here], "text.wav", "not audio")
    refused(run_predict, [tmp_path / "gone.wav", *here], "gone.wav", "no such file")
    refused(run_predict, [tmp_path, *here], str(tmp_path), "not audio")
    soundfile.write(tmp_path / "short.wav", np.zeros(399), RATE)
    refused(run_predict, [tmp_path / "short.wav", *here], "short.wav has 399 samples", "needs 400")
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
    refused(run_predict, [tmp_path / "silence.wav", *here], "has 0 samples without silence",
            "ASV", "--task")
    cut = keyword(root).read_bytes()
    (tmp_path / "cut.wav").write_bytes(cut[: len(cut) // 2])
    refused(run_predict, [tmp_path / "cut.wav", *here], "only a part of the audio", "cut.wav")


def test_a_run_that_cannot_answer_is_one_sentence(runs, root, tmp_path, refused):
    clip = keyword(root)
    refused(run_predict, [clip, "--run", tmp_path / "mtl-all"], "there is no run", "mtl-all")
    shutil.copytree(runs / "ssl-KS", tmp_path / "ssl-KS")
    (tmp_path / "ssl-KS" / "result.json").unlink()
    refused(run_predict, [clip, "--run", tmp_path / "ssl-KS"], "ssl-KS is not finished")
    refused(run_predict, [clip, "--run", runs / "ssl-KS", "--task", "IC"], "--task",
            "heads for KS only")
    shutil.copytree(runs / "transfer-KS", tmp_path / "transfer-KS")
    refused(run_predict, [clip, "--run", tmp_path / "transfer-KS"], "leave-one-out-KS")


def test_an_encoder_that_changed_is_one_sentence(run_train, runs, root, tmp_path, refused):
    file, clip = tmp_path / "encoder.pt", keyword(root)
    torch.save(random_encoder(TINY, seed=1).checkpoint(), file)
    run_train(tmp_path, "--scenario", "ssl", "--task", "KS", "--encoder", file)
    torch.save(random_encoder(TINY, seed=2).checkpoint(), file)
    refused(run_predict, [clip, "--run", tmp_path / "ssl-KS"], "the weights of", "encoder.pt",
            "changed")
    for name in ("transfer-KS", "leave-one-out-KS"):
        shutil.copytree(runs / name, tmp_path / name)
    path = tmp_path / "leave-one-out-KS" / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    next(iter(saved["encoder"]["state_dict"].values())).add_(1)
    torch.save(saved, path)
    refused(run_predict, [clip, "--run", tmp_path / "transfer-KS"],
            "leave-one-out-KS changed since")
