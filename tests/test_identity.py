"""A run is what it says: what decides a result is kept and compared (DESIGN.md, section 5)."""

import csv
import json
import shutil

import pytest
import torch

import evaluate
from conftest import ENCODER, call_train, result, run_main
from engine.runs import FORMAT, differences
from model import TINY, encoder_digest, random_encoder
from options import task_names
from scenarios import is_small


@pytest.fixture
def ssl_run(run_train, tmp_path):
    """A folder with the finished run ssl-KS and a copy of nothing else."""
    run_train(tmp_path / "runs", "--scenario", "ssl", "--task", "KS")
    return tmp_path / "runs"


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--mtl-lr 1e-4", ["leave-one-out-IC.lr was 0.001 and is 0.0001"]),
        ("--mtl-steps 3", ["leave-one-out-IC.steps was 2 and is 3"]),
        ("--weighting uncertainty", ["leave-one-out-IC.weighting was sum and is uncertainty"]),
        ("--ssl-steps 3", ["ssl-IC.steps was 2 and is 3"]),
        ("--feature-grad-mult 0.5", ["feature_grad_mult was 0.0 and is 0.5"]),
        ("--encoder tiny", ["encoder was", f"--encoder was {ENCODER} and is tiny"]),
        ("--precision bf16", ["precision was fp32 and is bf16"]),
        ("--heads fresh", ["heads was ssl and is fresh"]),
        ("--transfer-lr 1e-4", ["lr was 0.002 and is 0.0001"]),
        ("--time-mask-width 9", ["time_mask_width was 0 and is 9"]),
    ],
)
def test_a_finished_transfer_is_refused_with_other_settings_of_any_prerequisite(
    run_train, runs, refused, flags, words
):
    command = ("--scenario", "transfer", "--task", "IC", *flags.split())
    refused(run_train, [runs, *command], "transfer-IC", "--runs", *words)


@pytest.mark.parametrize("flags", ["--ssl-lr 0.5", "--ssl-steps 3", "--ssl-batch 3"])
def test_a_finished_leave_one_out_run_is_refused_with_other_heads(run_train, runs, refused, flags):
    command = ("--scenario", "leave-one-out", "--task", "IC", *flags.split())
    refused(run_train, [runs, *command], "leave-one-out-IC", "built_on.ssl-")


def test_a_deleted_prerequisite_is_ignored(run_train, runs, tmp_path, capsys, refused):
    for name in ("transfer-IC", "cache"):
        shutil.copytree(runs / name, tmp_path / name)
    run_train(tmp_path, "--scenario", "transfer", "--task", "IC")
    assert "(c) transfer" in capsys.readouterr().out
    command = ("--scenario", "transfer", "--task", "IC", "--mtl-steps", "3")
    refused(run_train, [tmp_path, *command], "leave-one-out-IC.steps")


def test_an_encoder_file_that_was_replaced_is_noticed(run_train, tmp_path, refused):
    file = tmp_path / "enc.pt"
    command = ("--scenario", "ssl", "--task", "KS", "--encoder", file)
    torch.save(random_encoder(TINY, seed=1).checkpoint(), file)
    run_train(tmp_path / "runs", *command)
    file.rename(tmp_path / "other name.pt")  # the name does not matter, the content does
    run_train(tmp_path / "runs", *command[:-1], tmp_path / "other name.pt")
    torch.save(random_encoder(TINY, seed=2).checkpoint(), file)
    refused(run_train, [tmp_path / "runs", *command], "ssl-KS", "encoder was")
    (tmp_path / "runs" / "ssl-KS" / "result.json").unlink()  # as if it had been interrupted
    refused(run_train, [tmp_path / "runs", *command], "ssl-KS", "encoder was")


def test_another_number_of_attention_heads_is_another_encoder():
    few, many = (random_encoder(TINY | {"encoder_num_heads": heads}) for heads in (4, 8))
    many.load_state_dict(few.state_dict())
    assert encoder_digest(few) != encoder_digest(many)
    assert encoder_digest(few) == encoder_digest(random_encoder(TINY))


def test_data_may_move_but_not_change(ssl_run, root, tmp_path, refused):
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved)
    command = ("--scenario", "ssl", "--task", "KS", "--runs", ssl_run, "--data", moved)
    call_train(*command)  # the same content in another place
    clip = sorted(moved.glob("speech_commands_v0.01/yes/*.wav"))[0]
    clip.write_bytes(clip.read_bytes()[:-2] + b"\1\2")  # one sample
    refused(call_train, command, "ssl-KS", "data.KS.", " was ")


def test_evaluation_finds_moved_data_and_says_how(ssl_run, root, tmp_path, output_of, refused):
    config = ssl_run / "ssl-KS" / "config.json"
    saved = json.loads(config.read_text())
    saved["recorded"]["data"] = str(tmp_path / "gone")
    config.write_text(json.dumps(saved))
    again = (evaluate.main, "--run", ssl_run / "ssl-KS")
    refused(run_main, again, "--data", "gone")
    printed = output_of(run_main, *again, "--data", root)
    assert json.loads(printed) == result(ssl_run, "ssl-KS")["metrics"]


def test_the_order_of_the_lines_of_a_table_changes_no_score(
    run_train, root, tmp_path, output_of
):
    run_train(tmp_path / "runs", "--scenario", "ssl", "--task", "IC", "--ssl-steps", "30")
    shuffled = tmp_path / "shuffled"
    shutil.copytree(root, shuffled)
    table = shuffled / "fluent_speech_commands_dataset/data/train_data.csv"
    heading, *lines = table.read_text().splitlines()
    table.write_text("\n".join([heading, *reversed(lines)]) + "\n")
    assert list(csv.reader(table.open()))
    folder = tmp_path / "runs" / "ssl-IC"
    printed = output_of(run_main, evaluate.main, "--run", folder, "--data", shuffled)
    found = json.loads(printed[printed.index("{") :])
    assert found == result(tmp_path / "runs", "ssl-IC")["metrics"]


@pytest.mark.parametrize("name", ["config.json", "log.jsonl", "inputs.json"])
def test_a_run_keeps_what_it_is_made_of(runs, name):
    assert (runs / "transfer-IC" / name).stat().st_size > 0


def test_an_older_format_is_one_sentence(ssl_run, run_train, refused):
    config = ssl_run / "ssl-KS" / "config.json"
    saved = json.loads(config.read_text())
    del saved["format"]
    config.write_text(json.dumps(saved))
    command = ("--scenario", "ssl", "--task", "KS")
    refused(run_train, [ssl_run, *command], "format 1", f"format {FORMAT}", "new --runs")


def test_differences_name_the_way_down():
    saved = {"a": 1, "b": {"c": 2, "d": 3}, "e": [1]}
    assert differences(saved, {"a": 1, "b": {"c": 5}, "e": [1]}, set()) == [
        "b.c was 2 and is 5",
        "b.d was 3 and is not there",
    ]
    assert differences(saved, {"b": {"c": 5, "d": 3}}, {"c"}) == []


# The cache of features


def test_a_flipped_byte_in_the_cache_is_noticed_and_mended(ssl_run, run_train, capsys):
    shutil.rmtree(ssl_run / "ssl-KS")

    for file in (ssl_run / "cache").glob("*.f32"):
        numbers = bytearray(file.read_bytes())
        numbers[len(numbers) // 2] ^= 1
        file.write_bytes(numbers)
    command = ("--scenario", "ssl", "--task", "KS", "--ssl-steps", "20")
    for _ in range(4):  # at most three files
        try:
            run_train(ssl_run, *command)
            break
        except SystemExit as stop:
            error = capsys.readouterr().err
            assert stop.code == 2 and "damaged and was deleted" in error
    expected = result(ssl_run, "ssl-KS")["metrics"]
    shutil.rmtree(ssl_run)
    run_train(ssl_run, *command)
    assert result(ssl_run, "ssl-KS")["metrics"] == expected


# Numbers and names on the command line


@pytest.mark.parametrize(
    "flag",
    """--steps 0; --lr 0; --lr nan; --ssl-steps -4; --mtl-warmup -2; --time-mask-width -4;
    --feature-grad-mult -1; --jobs -3; --seed -1; --mtl-lr inf; --cache-gb -1; --workers -1;
    --ssl-batch 0; --save-every 0; --evaluate-every 0; --mtl-steps 1.5""".split(
        ";"
    ),
)
def test_a_number_out_of_range_is_refused_by_its_name(run_train, tmp_path, refused, flag):
    command = ("--scenario", "transfer", "--task", "IC", *flag.split())
    refused(run_train, [tmp_path, *command], flag.split()[0], alone=False)


@pytest.mark.parametrize("text", ["ic", "IC", "ic,", " IC "])
def test_a_task_may_be_spelled_in_small_letters(text):
    assert task_names(text) == ["IC"]


def test_lists_of_tasks_are_sets_in_the_order_of_the_table(run_train, tmp_path, refused):
    for names in (["PR,ASR"], ["ASR", "pr"], ["asr,PR", "ASR"]):
        flags = ("--scenario", "mtl", "--tasks", *names, "--heads", "fresh")
        run_train(tmp_path, *flags)
    assert [path.parent.name for path in tmp_path.glob("*/result.json")] == ["mtl-ASR+PR"]
    command = ("--scenario", "mtl", "--tasks", "KS,KS")
    refused(run_train, [tmp_path, *command], "two tasks", alone=False)
    command = ("--scenario", "ssl", "--task", "X")
    refused(run_train, [tmp_path, *command], "no task X", alone=False)


def test_a_small_encoder_is_small_by_its_width_and_not_by_its_name(tmp_path):
    (tmp_path / "tiny").mkdir()
    for name, width in (("narrow.pt", 128), ("tiny/wide.pt", 256)):
        encoder = random_encoder(TINY | {"encoder_embed_dim": width, "encoder_num_layers": 1})
        torch.save(encoder.checkpoint(), tmp_path / name)
    assert is_small(str(tmp_path / "narrow.pt")) and not is_small(str(tmp_path / "tiny/wide.pt"))
    assert is_small("tiny") and not is_small("hubert_base")
