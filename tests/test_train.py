"""The loop and the four scenarios: what a run leaves, exact resumption, several processes."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import masked_prediction
import train
from batches import Steps, Stream, collate
from conftest import ENCODER, INPUTS, NARROW, ROOT, SMALL, result
from engine.frozen import cache_states
from engine.runs import load_checkpoint, save_result
from masked_prediction import CLUSTERS, MASKED, MaskedPrediction
from model import TINY, MultiTask, load_encoder, random_encoder
from scenarios import (SETTINGS, Run, in_stages, make_config, more_targets, scenario_runs,
                       with_prerequisites)
from tasks import TASKS
from tools import dryrun
from weighting import backward, measure_affinity, pcgrad_backward



@pytest.mark.parametrize(
    "step, lr",
    [
        (1, 0.0),
        (2, 2e-9),
        (100, 1.98e-7),
        (2501, 5e-6),
        (5000, 9.998e-6),
        (5001, 1e-5),
        (5002, 9.9999487179e-6),
        (102501, 5e-6),
        (150000, 2.5641538462e-6),
        (199999, 1.0256410256e-10),
        (200000, 5.1282051282e-11),
    ],
)
def test_the_schedule_has_the_values_of_the_released_code(step, lr):
    assert 1e-5 * train.lr_scale(step - 1, 5_000, 200_000) == pytest.approx(lr, rel=1e-9, abs=1e-20)


def test_the_paper_setting_is_the_papers():
    paper = SETTINGS["paper"]
    assert (paper.mtl_lr, paper.mtl_steps, paper.mtl_warmup, paper.mtl_batch) == (
        1e-5,
        200_000,
        5_000,
        2,
    )
    assert (
        paper.transfer_lr,
        paper.transfer_steps,
        paper.transfer_warmup,
        paper.transfer_batch,
    ) == (1e-5, 200_000, 5_000, 8)


@pytest.mark.parametrize("name", TASKS)
def test_ssl_ends_with_a_result_for_every_task(runs, name):
    found = result(runs, f"ssl-{name}")
    assert (found["scenario"], found["task"], found["left_out"], found["steps"]) == (
        "ssl",
        name,
        None,
        2,
    )
    assert list(found["metrics"][name]) == [metric.name for metric in TASKS[name].metrics]
    rows = [
        json.loads(line) for line in open(runs / f"ssl-{name}" / "predictions" / f"{name}.jsonl")
    ]
    for metric in TASKS[name].metrics:  # the stored rows add up to the stored number
        assert 100 * metric.reduce([row[metric.name] for row in rows]) == pytest.approx(
            found["metrics"][name][metric.name]
        )


@pytest.mark.parametrize("name", TASKS)
def test_transfer_has_the_leave_one_out_run_that_it_needs(runs, name):
    left_out, transfer = result(runs, f"leave-one-out-{name}"), result(runs, f"transfer-{name}")
    assert (
        sorted(left_out["metrics"]) == sorted(set(TASKS) - {name}) and left_out["left_out"] == name
    )
    assert list(transfer["metrics"]) == [name] and transfer["left_out"] == name
    assert not (runs / f"transfer-{name}" / "cache").exists()


def test_mtl_trains_all_nine_and_a_second_call_reuses_it(run_train, runs, capsys):
    assert sorted(result(runs, "mtl-all")["metrics"]) == sorted(TASKS)
    began, stamp = time.time(), (runs / "mtl-all" / "checkpoint.pt").stat().st_mtime_ns
    run_train(runs, "--scenario", "mtl")
    assert (
        time.time() - began < 3 and (runs / "mtl-all" / "checkpoint.pt").stat().st_mtime_ns == stamp
    )
    assert "(b-1) MTL all" in capsys.readouterr().out


def test_the_encoder_moves_in_mtl_and_stays_in_the_control_run(run_train, tmp_path):
    flags = "--tasks KS,IC --weighting uncertainty --mtl-steps 4 --feature-grad-mult 0.1"
    run_train(tmp_path, "--scenario", "mtl", *flags.split())
    run_train(tmp_path, "--scenario", "control", *flags.split())
    assert "encoder" not in load_checkpoint(tmp_path / "control-IC+KS")
    saved = load_checkpoint(tmp_path / "mtl-IC+KS")
    start = load_encoder(ENCODER).state_dict()
    trained = saved["encoder"]["state_dict"]
    moved = [name for name, tensor in trained.items() if not torch.equal(tensor, start[name])]
    still = set(start) - set(moved)
    # the bias of a key cancels in the softmax
    assert all(name.endswith("k_proj.bias") for name in still), still
    assert (saved["model"]["log_sigma"] != 0).all(), "each learned weight of the losses moves"


def test_the_first_steps_have_their_known_losses(run_train, tmp_path):
    """Changes when initial weights, batches, crops, dropout or the network change."""
    flags = "--scenario mtl --tasks IC,PR,SD --heads fresh --encoder tiny".split()
    run_train(tmp_path, *flags)
    rows = (tmp_path / "mtl-PR+SD+IC" / "log.jsonl").read_text().splitlines()
    first, second = (json.loads(row)["losses"] for row in rows)
    assert first == pytest.approx({"PR": 15.22548, "SD": 0.677853, "IC": 5.853426}, rel=1e-4)
    assert second == pytest.approx({"PR": 12.72566, "SD": 0.672023, "IC": 5.731847}, rel=1e-3)


def test_cached_features_are_those_of_the_encoder_without_dropout(run_train, root, tmp_path):
    """A frozen encoder in training mode once filled the cache with dropped-out states."""
    run_train(tmp_path, "--scenario", "ssl", "--task", "IC", "--encoder", "tiny")
    corpus, encoder = TASKS["IC"].read(root, "test"), load_encoder("tiny")
    features = cache_states(encoder, corpus, False, True, tmp_path / "cache", 50.0, quiet=True)
    assert len(list((tmp_path / "cache").glob("*.f32"))) == 3  # nothing was encoded again
    for i, utterance in enumerate(corpus.utterances):
        (wave,) = collate(corpus, [(i, None)]).waves
        mean = encoder.encode([wave])[0].mean(1)  # (S, D)
        cached = features.batch([(i, None)]).states[:, 0, 0]
        torch.testing.assert_close(cached, mean, atol=1e-4, rtol=1e-4, msg=utterance.id)


@pytest.mark.parametrize("task", ["ASV", "IC"])
def test_a_loss_that_is_not_finite_is_named_before_dev_is_scored(
    run_train, tmp_path, refused, task
):
    command = ("--scenario", "ssl", "--task", task, "--ssl-lr", 1e30, "--steps", 6)
    words = (f"ssl-{task}: the ", "is not finite at step")
    refused(run_train, [tmp_path, *command], *words, alone=False)
    assert not (tmp_path / f"ssl-{task}" / "result.json").exists()


def test_all_makes_the_28_runs_of_table_1():
    everything = tuple(TASKS)
    runs = with_prerequisites(scenario_runs("all", everything, everything), "ssl")
    assert [len(stage) for stage in in_stages(runs)] == [9, 10, 9]
    transfer = scenario_runs("transfer", ("IC",), everything)
    others = tuple(name for name in TASKS if name != "IC")
    needed = in_stages(with_prerequisites(transfer, "ssl"))
    assert needed[1] == [Run("leave-one-out", others, "IC")] and len(needed[0]) == 9


def test_changed_settings_stop_a_run_with_a_list_of_them(run_train, runs, refused):
    command = ("--scenario", "ssl", "--task", "KS", "--ssl-lr", "0.5")
    refused(run_train, [runs, *command], "lr was 0.01 and is 0.5")


def test_a_run_is_out_of_date_when_what_it_was_built_on_was_made_anew(
    run_train, runs, tmp_path, refused
):
    shutil.copytree(runs, tmp_path / "runs")
    path = tmp_path / "runs" / "leave-one-out-IC" / "result.json"
    remade = json.loads(path.read_text())
    remade["weights"] = "0" * 32  # the same scores, other weights
    del remade["checksum"]
    save_result(path.parent, remade)
    command = ("--scenario", "transfer", "--task", "IC")
    refused(run_train, [tmp_path / "runs", *command], "weights of leave-one-out-IC was")


@pytest.mark.parametrize(
    "flags",
    [
        "--scenario all --task IC",
        "--scenario mtl --task IC",
        "--scenario mtl --tasks IC",
        "--scenario ssl --task IC --tasks KS,SF",
    ],
)
def test_a_flag_that_would_be_ignored_is_an_error(run_train, tmp_path, refused, flags):
    refused(run_train, [tmp_path, *flags.split()], "--task", alone=False)


def test_what_is_left_out_is_counted_and_listed(run_train, root, tmp_path, refused, output_of):
    shutil.copytree(root, tmp_path / "toy")
    clips = sorted((tmp_path / "toy").glob("fluent_speech_commands_dataset/wavs/*/*/*.wav"))[:2]
    for clip in clips:
        clip.write_bytes(clip.read_bytes()[:500])
    runs = tmp_path / "runs"
    command = (runs, "--scenario", "ssl", "--task", "IC", "--data", tmp_path / "toy")
    refused(run_train, command, "--skip-broken")
    printed = output_of(run_train, *command, "--skip-broken")
    listed = (runs / "ssl-IC" / "skipped.txt").read_text()
    assert all(str(clip) in listed for clip in clips) and "left out" in printed


@pytest.mark.parametrize("name, content", [("config.json", "{"), ("checkpoint.pt", "no weights")])
def test_a_damaged_file_of_a_run_is_one_sentence(run_train, tmp_path, refused, name, content):
    run_train(tmp_path, "--scenario", "ssl", "--task", "KS")
    (tmp_path / "ssl-KS" / "result.json").unlink()
    (tmp_path / "ssl-KS" / name).write_text(content)
    command = ("--scenario", "ssl", "--task", "KS")
    error = refused(run_train, [tmp_path, *command], name, "train again")
    assert "Traceback" not in error


@pytest.mark.parametrize("flag", ["--log-every", "--mtl-batch", "--transfer-steps"])
def test_a_count_below_one_is_an_error(run_train, tmp_path, refused, flag):
    command = ("--scenario", "transfer", "--task", "IC", flag, "0")
    refused(run_train, [tmp_path, *command], flag, alone=False)


def test_a_large_rate_for_a_real_encoder_asks_for_confirmation(run_train, tmp_path, refused):
    command = ("--scenario", "mtl", "--encoder", "hubert_base", "--mtl-lr", "1e-3")
    refused(run_train, [tmp_path, *command], "--yes-i-mean-it")


def _shell(runs: Path, root: Path, *flags: str, processes: int = 1) -> subprocess.Popen:
    """train.py in a process (or several) of its own."""
    launch = [sys.executable] + (
        []
        if processes == 1
        else [
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            str(processes),
            "--master_port",
            "29511",
        ]
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launch, "train.py", "--data", str(root), "--runs", str(runs), *SMALL, *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _same(a: Path, b: Path) -> bool:
    """Whether the weights, the log (without its clock) and the results of two runs are equal."""

    def flat(state, prefix=""):
        for key, value in state.items():
            yield from (
                flat(value, f"{prefix}{key}.")
                if isinstance(value, dict)
                else [(prefix + str(key), value)]
            )

    ours, theirs = (
        dict(flat({k: v for k, v in load_checkpoint(run).items() if k != "seconds"}))
        for run in (a, b)
    )
    weights = all(
        torch.equal(v, theirs[k]) if isinstance(v, torch.Tensor) else v == theirs[k]
        for k, v in ours.items()
    )
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in open(run / "log.jsonl")
        ]
        for run in (a, b)
    ]
    scores = [json.loads((run / "result.json").read_text())["metrics"] for run in (a, b)]
    return (
        weights and ours.keys() == theirs.keys() and logs[0] == logs[1] and scores[0] == scores[1]
    )


def test_a_killed_run_resumes_to_the_same_bits(run_train, root, tmp_path):
    flags = ("--scenario", "mtl", "--tasks", "KS,PR,SD", "--heads", "fresh", "--mtl-steps", "30")
    run_train(tmp_path / "whole", *flags)
    luck, checkpoint = random.Random(0), tmp_path / "broken" / "mtl-PR+SD+KS" / "checkpoint.pt"
    for how in (
        signal.SIGKILL,
        signal.SIGINT,
    ):  # without a chance to tidy up; then by Ctrl-C, which saves
        process = _shell(tmp_path / "broken", root, *flags)
        before, began = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0, time.time()
        while time.time() - began < 30 and not (
            checkpoint.exists() and checkpoint.stat().st_mtime_ns > before
        ):
            time.sleep(0.01)
        time.sleep(luck.uniform(0, 0.3))
        process.send_signal(how)
        said = process.communicate()[0]
    assert (
        process.returncode == 130
        and "the same command continues" in said
        and "Traceback" not in said
    )
    run_train(tmp_path / "broken", *flags)
    assert _same(tmp_path / "whole" / "mtl-PR+SD+KS", tmp_path / "broken" / "mtl-PR+SD+KS")


def test_a_run_with_checkpointed_activations_is_the_same(run_train, tmp_path):
    flags = ("--scenario", "mtl", "--tasks", "KS,SD", "--heads", "fresh")
    run_train(tmp_path / "kept", *flags)
    run_train(tmp_path / "again", *flags, "--checkpoint-activations")
    assert _same(tmp_path / "kept" / "mtl-SD+KS", tmp_path / "again" / "mtl-SD+KS")


def _gradients(rank: int, world: int, parts: int, port: int, root: str, out: str) -> None:
    """One process of `world`: the gradient of one update over all processes, without dropout.

    Each process reads its share in `parts` parts. The cases are MTL, MTL of two tasks with masked
    prediction, and each task with a frozen encoder. The affinities of MTL come first, which must
    leave no trace in its gradient.
    """
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group("gloo")
    corpora, found = {name: TASKS[name].read(root, "train") for name in TASKS}, {}
    masked_prediction.span_mask = lambda T, rng: torch.arange(T) % 50 < 20  # shares are unequal
    for case in ("MTL", MASKED, *TASKS):
        names = {"MTL": list(TASKS), MASKED: ["PR", "IC"]}.get(case, [case])
        torch.manual_seed(0)
        encoder = random_encoder(NARROW, seed=0).requires_grad_(case in ("MTL", MASKED))
        heads = {name: TASKS[name].head(encoder.dim, corpora[name].classes, 16) for name in names}
        if case == MASKED:
            heads[MASKED] = MaskedPrediction(encoder.dim, 64, weight=2.0)
            heads[MASKED].clusters[2:] = torch.randn(CLUSTERS, 39)
        model = MultiTask(encoder, heads, augment=False).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        net = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
        streams = {name: Stream(corpora[name], 4, 0) for name in names}
        run = Run("mtl", tuple(names), masked_weight=2.0 if case == MASKED else 0.0)
        config = make_config(run, SETTINGS["tiny"], INPUTS)
        batches = Steps(streams, rank, world, parts, more_targets(config, model))[1]
        if case == "MTL":
            found["affinity"] = measure_affinity(model, config, 1, batches)
        backward(net, model, config, 1, batches)
        found[case] = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    if rank == 0:
        torch.save(found, out)
    if world > 1:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def gradients(root, tmp_path_factory):
    """{(processes, parts): gradients of a batch of four that they share}."""
    folder, found = tmp_path_factory.mktemp("gradients"), {}
    for world, parts in ((1, 1), (2, 1), (1, 4), (2, 2)):
        out = folder / f"{world}-{parts}.pt"
        arguments = world, parts, 29_600 + os.getpid() % 300, str(root), str(out)
        torch.multiprocessing.spawn(_gradients, arguments, nprocs=world)
        found[world, parts] = torch.load(out)
    return found


@pytest.mark.parametrize("case", ["MTL", MASKED, *TASKS])
@pytest.mark.parametrize("processes, parts", [(2, 1), (1, 4), (2, 2)])
def test_processes_and_parts_that_share_a_batch_have_the_gradient_of_the_whole(
    gradients, case, processes, parts
):
    whole, shared = gradients[1, 1][case], gradients[processes, parts][case]
    assert whole.keys() == shared.keys() and whole
    largest = max(gradient.abs().max() for gradient in whole.values())
    for key in whole:
        assert (whole[key] - shared[key]).abs().max() <= 2e-6 * largest, key


@pytest.mark.parametrize("processes, parts", [(2, 1), (1, 4), (2, 2)])
def test_processes_and_parts_have_the_affinities_of_the_whole(gradients, processes, parts):
    whole, shared = gradients[1, 1]["affinity"], gradients[processes, parts]["affinity"]
    assert whole.keys() == set(TASKS)
    for task, cosines in whole.items():
        assert cosines[task] == 1 and shared[task] == pytest.approx(cosines, abs=2e-4)


def test_gradient_surgery_leaves_no_conflict_of_two_tasks(root):
    """The two gradients come from a common forward pass here, and from one per task in train.py."""
    corpora = {name: TASKS[name].read(str(root), "train") for name in ("KS", "PR")}
    torch.manual_seed(0)
    # The encoder's dropout masks depend on which tasks are in a forward pass; other masks do not.
    no_dropout = {"encoder_dropout": 0.0, "encoder_projection_dropout": 0.0}
    encoder = random_encoder(TINY | no_dropout)
    model = MultiTask(
        encoder,
        {name: TASKS[name].head(encoder.dim, c.classes, 16) for name, c in corpora.items()},
        time_mask_width=3,
    )
    forward = partial(model, random_key=(0, 1, 0))
    batches = {name: collate(corpus, [(0, 0), (1, 1)]) for name, corpus in corpora.items()}
    shared = [p for p in (*encoder.parameters(), *model.layer_sum.parameters())]

    def gradient(loss):
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True)]
        )

    g, h = (gradient(loss) for loss in forward(batches).values())
    if g @ h > 0:  # make a conflict, if the two tasks happen to agree
        model.heads["PR"].output.weight.data *= -1
        g, h = (gradient(loss) for loss in forward(batches).values())
    expected = g + h if g @ h > 0 else g - (g @ h) / (h @ h) * h + h - (g @ h) / (g @ g) * g
    pcgrad_backward(forward, batches, model, key=0)
    found = torch.cat([p.grad.flatten() for p in shared])
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-3)
    assert all(p.grad is not None for p in model.heads.parameters())


# A dry run


def dry_rows(output: str) -> dict:
    """{what: {column: value}} of the table that a dry run prints."""
    lines = output[output.index("what ") :].split("\n\n")[0].splitlines()
    heading, *rows = [
        re.split(r"\s{2,}", line.strip()) for line in lines if not line.startswith("--")
    ]
    return {row[0]: dict(zip(heading, row)) for row in rows if len(row) == len(heading)}


def test_a_dry_run_makes_no_run_and_has_a_row_for_each_kind(run_train, tmp_path, capsys):
    run_train(tmp_path / "runs", "--scenario", "transfer", "--task", "IC", "--dry-run")
    output = capsys.readouterr().out
    assert set(dry_rows(output)) == {
        "IC, ssl",
        "IC, transfer",
        *(f"{name}, ssl" for name in TASKS if name != "IC"),
    }
    assert (
        "all at once" in output and "11 runs to make" in output and not (tmp_path / "runs").exists()
    )


def test_a_dry_run_says_where_the_encoder_runs_at_each_step(run_train, tmp_path, capsys):
    run_train(
        tmp_path / "runs",
        "--scenario",
        "ssl",
        "--task",
        "KS",
        "PR",
        "--dry-run",
        "--cache-gb",
        "0.00005",
    )
    rows = dry_rows(capsys.readouterr().out)
    assert rows["PR, ssl"]["encode h"] == "each step" and rows["KS, ssl"]["encode h"] != "each step"


def test_a_dry_run_counts_the_encoding_of_a_cache_that_seeds_share_once(monkeypatch, capsys):
    def estimate(what, run, config, options):
        """An hour of encoding and no training."""
        return dryrun.Estimate(["1"] * 8, 0.0, 1, 1.0, {run.tasks[0]: 0.0}, 0)

    monkeypatch.setattr(dryrun, "estimate", estimate)
    monkeypatch.setattr(dryrun, "default_jobs", lambda *_: 1)
    for scenario, hours in (("ssl", "60.0 minutes"), ("transfer", "4.0 hours")):
        runs = [Run(scenario, ("IC",), "IC" if scenario == "transfer" else None, seed=seed)
                for seed in range(4)]
        monkeypatch.setattr(dryrun, "with_prerequisites", lambda runs, *_: runs)
        dryrun.dry_run(runs, SETTINGS["tiny"], INPUTS, train.Options(runs=Path("none")))
        assert hours in capsys.readouterr().out


def test_a_dry_run_of_the_control_run_trains_heads_on_cached_features(run_train, tmp_path, capsys):
    run_train(tmp_path / "runs", "--scenario", "control", "--dry-run")
    assert "all, frozen" in capsys.readouterr().out
