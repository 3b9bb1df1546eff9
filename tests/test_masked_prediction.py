"""HuBERT's own loss beside those of the tasks: masks, labels, the loss, and runs with it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import INPUTS, call_train, fake_run, result, run_main
from test_train import _same
from torchaudio.models import hubert_pretrain_model
from torchaudio.models.wav2vec2 import components

import batches
import evaluate
import masked_prediction
import predict
import train
from batches import Batch
from engine.audio import mfcc_frames
from engine.runs import load_checkpoint
from graphs import find_runs
from masked_prediction import (CLUSTERS, MASKED, SPAN, MaskedPrediction, find_clusters,
                               masked_batch, nearest_cluster, span_mask)
from model import TINY, Hubert
from results import baseline_of, read_results, row_name, table_cells, table_rows
from scenarios import SETTINGS, Run, make_config, vary
from tasks import TASKS

ARGUMENTS = {k: v for k, v in TINY.items() if k.startswith(("extractor_", "encoder_"))}


def torchaudio_model():
    """torchaudio's HuBERT for pretraining, in evaluation mode; tests choose its mask."""
    torch.manual_seed(0)
    channels = dict(mask_channel_prob=0.0, mask_channel_selection="static", mask_channel_other=0.0)
    channels |= dict(mask_channel_length=10, no_mask_channel_overlap=False)
    masks = dict(mask_prob=0.65, mask_selection="static", mask_other=0.0, mask_length=8)
    masks |= dict(no_mask_overlap=False, mask_min_space=1, mask_channel_min_space=1)
    return hubert_pretrain_model(
        **ARGUMENTS, **masks, **channels, skip_masked=False, skip_nomask=True,
        num_classes=CLUSTERS, final_dim=64, feature_grad_mult=None,
    ).eval()  # fmt: skip


def test_the_loss_and_its_gradients_are_those_of_torchaudio(monkeypatch):
    theirs, T = torchaudio_model(), 49
    waves, labels = torch.randn(3, 16_000), torch.randint(CLUSTERS, (3, T))
    mask = torch.rand(3, T) < 0.5
    monkeypatch.setattr(components, "_compute_mask_indices", lambda *args, **kwargs: mask)
    logits, _, _ = theirs(waves, labels)
    expected = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
    expected.backward()

    ours, head = Hubert(TINY).eval(), MaskedPrediction(TINY["encoder_embed_dim"], 64, 0.5)
    ours.load_state_dict(theirs.wav2vec2.state_dict())
    ours.feature_grad_mult = 1.0
    head.mask_vector.data = theirs.mask_generator.mask_embedding.data
    head.embeddings.data = theirs.logit_generator.label_embeddings.data
    head.project.load_state_dict(theirs.logit_generator.final_proj.state_dict())
    targets = list(torch.where(mask, labels, -100))
    loss = head.loss(ours, *ours.project(list(waves)), targets)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * expected.item(), rel=1e-5)
    assert head.num_loss_terms(targets) == len(logits)
    pairs = [(head.mask_vector, theirs.mask_generator.mask_embedding),
             (head.embeddings, theirs.logit_generator.label_embeddings),
             *zip(ours.parameters(), theirs.wav2vec2.parameters())]  # fmt: skip
    for mine, other in pairs:
        torch.testing.assert_close(2 * mine.grad, other.grad, atol=1e-5, rtol=1e-3)


def test_a_mask_consists_of_spans_and_covers_about_half_of_the_frames():
    rng = np.random.default_rng(0)
    for T in (1, 5, 8, 9, 30, 499):
        mask = span_mask(T, rng)
        assert mask.shape == (T,) and mask.any()
        runs = "".join("#" if masked else " " for masked in mask).split()
        assert all(len(run) >= min(SPAN, T) for run in runs)
    share = torch.stack([span_mask(200, rng) for _ in range(200)]).float().mean(0)
    assert 0.45 < share.mean() < 0.52  # spans overlap: 1 - (1 - 1 / T) ^ (0.65 T)
    assert share[20:-20].min() > 0.35 and share[20:-20].max() < 0.62


@pytest.fixture
def heard():
    """A batch of two waves of other lengths, and clusters of their MFCCs."""
    torch.manual_seed(0)
    waves, lengths = torch.randn(2, 20_000), torch.tensor([20_000, 9_000])
    frames = [mfcc_frames(wave[:n]) for wave, n in zip(waves, lengths.tolist())]
    clusters = find_clusters(torch.cat(frames), torch.Generator().manual_seed(0))
    return {"any": Batch(waves, lengths, [0, 0], ["a", "b"])}, frames, clusters


def test_labels_are_the_nearest_clusters_of_the_very_audio_of_the_step(heard):
    audio, frames, clusters = heard
    found = masked_batch(audio, (3, 0), 7, clusters, False)[MASKED]
    assert found.ids == ["a", "b"]
    for labels, own in zip(found.targets, frames):
        normal = (own - clusters[0]) / clusters[1]
        nearest = (normal[:, None] - clusters[None, 2:]).square().sum(2).argmin(1)
        masked = labels >= 0
        assert torch.equal(labels[masked], nearest[masked]) and not masked.all()
        assert (labels[~masked] == -100).all()


def test_masks_follow_from_seed_step_and_share(heard):
    audio, _, clusters = heard

    def mask(seed, step, share):
        targets = masked_batch(audio, (step, share), seed, clusters, False)[MASKED].targets
        return torch.cat(targets).ge(0).tolist()

    assert mask(7, 3, 0) == mask(7, 3, 0)
    others = [mask(7, 3, 0), mask(8, 3, 0), mask(7, 4, 0), mask(7, 3, 1)]
    assert all(others[0] != other for other in others[1:])


def test_shuffled_labels_are_the_labels_of_other_frames(heard, monkeypatch):
    audio, _, clusters = heard
    all_masked = lambda T, rng: torch.ones(T, dtype=torch.bool)
    monkeypatch.setattr(masked_prediction, "span_mask", all_masked)
    true, shuffled = (
        torch.cat(masked_batch(audio, (0, 0), 0, clusters, control)[MASKED].targets)
        for control in (False, True)
    )
    assert torch.equal(true.sort().values, shuffled.sort().values)
    assert (true == shuffled).float().mean() < 0.2


def test_clusters_are_the_means_of_their_frames():
    torch.manual_seed(0)
    frames = 3 + 5 * torch.randn(2_000, 39)
    clusters = find_clusters(frames, torch.Generator().manual_seed(0))
    labels, normal = nearest_cluster(frames, clusters), (frames - frames.mean(0)) / frames.std(0)
    off = [clusters[2 + k] - normal[labels == k].mean(0) for k in labels.unique()]
    assert torch.stack(off).norm(dim=1).mean() < 0.1  # 20 rounds nearly converge


# Runs

FRESH = ("--heads", "fresh", "--tasks", "KS,IC")


@pytest.fixture(scope="module")
def masked_runs(root, tmp_path_factory):
    """(b-1) without and with masked prediction, and with shuffled labels, two steps each."""
    runs = tmp_path_factory.mktemp("masked") / "runs"
    for flags in ((), ("--masked-weight", 0.5), ("--masked-weight", 0.5, "--masked-labels",
                                                 "shuffled")):  # fmt: skip
        flags += ("--affinity-every", 1, "--data", root, "--runs", runs)
        call_train("--scenario", "mtl", *FRESH, *flags)
    return runs


def logged(folder, key):
    """The values of a key in the log of a run, such as the losses of each step."""
    rows = [json.loads(line) for line in open(folder / "log.jsonl")]
    return [row[key] for row in rows if key in row]


def test_a_run_with_masked_prediction_has_a_folder_and_a_warm_up_of_its_own(masked_runs):
    assert {path.parent.name for path in masked_runs.glob("*/result.json")} == {
        "mtl-IC+KS",
        "mtl-IC+KS-masked-0.5",
        "mtl-IC+KS-masked-0.5-shuffled",
        "ssl-masked-IC+KS",
        "ssl-masked-IC+KS-shuffled",
    }
    warm = load_checkpoint(masked_runs / "ssl-masked-IC+KS")["model"]
    tuned = load_checkpoint(masked_runs / "mtl-IC+KS-masked-0.5")["model"]
    assert (warm["heads.masked.clusters"] == tuned["heads.masked.clusters"]).all()
    distance = (warm["heads.masked.mask_vector"] - tuned["heads.masked.mask_vector"]).abs().max()
    assert 0 < distance < 0.01  # one step of Adam at 1e-3, so it began there


def test_weight_and_labels_are_a_variant_whose_warm_up_has_only_the_labels():
    setting = replace(SETTINGS["tiny"], masked_weight=0.1, masked_labels="shuffled",
                      interpolate=0.5, select="dev", mtl_evaluate_every=50)  # fmt: skip
    run = vary(Run("transfer", ("KS",), "KS"), setting)
    config = make_config(run, setting, INPUTS)
    assert config.run == run and run.name == "transfer-KS-select-dev-masked-0.1-shuffled-A0.5"
    assert row_name(config) == "(c) transfer, select dev, masked 0.1, shuffled, A = 0.5"
    assert baseline_of(row_name(config)) == "(b-1) MTL all, select dev, masked 0.1, shuffled"
    assert baseline_of("(a+) SSL, more steps of IC+KS") == "(b-1) MTL of IC+KS"
    assert config.encoder_run == "leave-one-out-KS-select-dev-masked-0.1-shuffled"
    assert "ssl-masked-KS-shuffled" in config.built_on[config.encoder_run]["built_on"]
    assert vary(Run("ssl", ("KS",)), setting) == Run("ssl", ("KS",))


def test_weight_0_is_no_flag(masked_runs, run_train):
    folder = masked_runs / "mtl-IC+KS"
    before = folder.stat().st_mtime_ns, (folder / "checkpoint.pt").stat().st_mtime_ns
    run_train(masked_runs, "--scenario", "mtl", *FRESH, "--masked-weight", "0")  # finds the run
    assert before == (folder.stat().st_mtime_ns, (folder / "checkpoint.pt").stat().st_mtime_ns)


def test_the_random_numbers_of_the_tasks_stay_what_they_were(masked_runs):
    """The rate of the first step is 0, so two steps see the same weights."""
    folders = [masked_runs / "mtl-IC+KS", masked_runs / "mtl-IC+KS-masked-0.5"]
    plain, masked = (logged(folder, "losses") for folder in folders)
    assert [list(row) for row in masked] == [["IC", "KS", "masked"]] * 2
    assert [{k: v for k, v in row.items() if k != "masked"} for row in masked] == plain
    plain, masked = (logged(folder, "affinity") for folder in folders)
    assert masked == plain and len(plain) == 2, "cosines are those of the tasks alone"


def test_the_table_compares_rows_with_masked_prediction_among_themselves(tmp_path):
    pairs = [[0.9, 1]] * 10
    both = {"KS": {"acc": pairs}, "PR": {"per": pairs}}
    for weight, labels in ((0.0, "clusters"), (0.1, "clusters"), (0.1, "shuffled")):
        mtl = Run("mtl", tuple(TASKS), masked_weight=weight, masked_labels=labels)
        fake_run(tmp_path, mtl, both)
        if labels == "clusters":
            without = {"PR": {"per": [[0.9 - weight, 1]] * 10}}
            fake_run(tmp_path, mtl.leave_one_out("KS"), without)
    rows = table_rows(table_cells(read_results(tmp_path)), ["PR", "KS"])
    assert [(row[0], row[1]) for row in rows[1:]] == [
        ("(b-1) MTL all", "90.00 "),
        ("(b-1) MTL all, masked 0.1", "90.00 "),
        ("(b-1) MTL all, masked 0.1, shuffled", "90.00 "),
        ("(b-2) all but KS", "90.00 "),
        ("(b-2) all but KS, masked 0.1", "80.00+"),
    ]
    found = find_runs(tmp_path, [0], tuple(TASKS))
    assert len(found["mtl-all"]) == 1, "Fig. 2 compares runs without masked prediction"


def test_the_audio_of_the_left_out_task_is_never_heard(run_train, tmp_path, monkeypatch):
    heard, load = set(), batches.load_audio

    def listen(utterance, corpus, seed=None):
        heard.add(corpus.task)
        return load(utterance, corpus, seed)

    monkeypatch.setattr(batches, "load_audio", listen)
    command = ("--task", "KS", "--heads", "fresh", "--tasks", "KS,IC,ER", "--masked-weight", "1")
    run_train(tmp_path, "--scenario", "leave-one-out", *command)
    assert heard == {"ER", "IC"}
    run_train(tmp_path, "--scenario", "transfer", *command)
    config = json.loads((tmp_path / "transfer-KS-of-ER+IC+KS-masked-1" / "config.json").read_text())
    encoder_run = config["built_on"]["leave-one-out-KS-of-ER+IC+KS-masked-1"]
    assert config["encoder_run"] in config["built_on"] and list(config["hidden"]) == ["KS"]
    assert encoder_run["built_on"]["ssl-masked-KS-of-ER+IC+KS"]["tasks"] == ["ER", "IC"]


def test_an_interrupted_run_resumes_to_the_same_bits(run_train, tmp_path, monkeypatch):
    command = ("--scenario", "mtl", *FRESH, "--ssl-steps", 4, "--mtl-steps", 4)
    command += ("--masked-weight", "1")
    run_train(tmp_path / "whole", *command)
    due = train.evaluation_is_due

    def stop(step, config):
        if step == 3 and not stopped.get(config.scenario):
            stopped[config.scenario] = True
            raise KeyboardInterrupt("after step 2 was saved")
        return due(step, config)

    stopped = {}
    monkeypatch.setattr(train, "evaluation_is_due", stop)
    for _ in range(2):
        with pytest.raises(SystemExit):
            run_train(tmp_path / "broken", *command)
    run_train(tmp_path / "broken", *command)
    for name in ("ssl-masked-IC+KS", "mtl-IC+KS-masked-1"):
        assert _same(tmp_path / "whole" / name, tmp_path / "broken" / name)


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--scenario control --masked-weight 1", "control does not"),
        ("--scenario ssl --task KS --masked-weight 1", "ssl does not"),
        ("--scenario mtl --masked-weight 1 --weighting uncertainty", "--weighting uncertainty"),
        ("--scenario mtl --masked-weight 1 --weighting pcgrad", "--weighting pcgrad"),
        ("--scenario mtl --masked-labels shuffled", "needs a --masked-weight"),
    ],
)
def test_a_flag_without_effect_is_an_error(run_train, tmp_path, refused, flags, words):
    refused(run_train, [tmp_path, *flags.split()], words)


def test_a_masked_loss_that_is_not_finite_names_the_utterances(run_train, tmp_path, refused):
    command = ("--scenario", "mtl", *FRESH, "--masked-weight", 1, "--ssl-lr", 1e30)
    words = ("ssl-masked-IC+KS: the ", "is not finite at step", "(")
    refused(run_train, [tmp_path, *command, "--ssl-steps", 6], *words, alone=False)


def test_a_warm_up_has_nothing_to_score_and_no_answers(masked_runs, output_of, refused, root):
    folder = masked_runs / "ssl-masked-IC+KS"
    assert result(masked_runs, folder.name)["metrics"] == {}
    refused(run_main, [evaluate.main, "--run", folder], "has no head of a task")
    clip = min(root.glob("speech_commands_v0.01/yes/*.wav"))
    refused(run_main, [predict.main, clip, "--run", folder], "has no head of a task")
    tuned = masked_runs / "mtl-IC+KS-masked-0.5"
    assert "KS" in output_of(run_main, predict.main, clip, "--run", tuned)
    flags = ("--table", "--layers", "--curves", "--runs", masked_runs, "--out", masked_runs / "f")
    printed = output_of(run_main, evaluate.main, *flags)
    assert ", masked 0.5" in printed and "masked prediction" not in printed


def test_a_dry_run_tries_masked_prediction(run_train, tmp_path, output_of):
    command = ("--scenario", "mtl", *FRESH, "--masked-weight", "1", "--dry-run")
    printed = output_of(run_train, tmp_path, *command)
    assert "all, masked" in printed and "2 runs to make" in printed
