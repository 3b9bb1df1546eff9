"""tools/superb.py: published heads, with random weights in the layout of Hugging Face."""

import json

import pytest
import torch
from conftest import run_main
from encoder_tools import alone, huggingface, speech, write_safetensors
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from batches import Batch, collate
from corpus import Corpus
from engine.files import DataError
from evaluate import predict_and_score
from model import TINY, load_encoder, random_encoder
from rules import KEYWORDS
from tasks import read_corpus
from tools import superb

HIDDEN = 24
OTHERS = ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]


def output_names(labels: list) -> list[str]:
    """The labels of a corpus in another order; those of IC slot by slot."""
    if not isinstance(labels[0], list):
        return labels[::-1]
    return [name for slot in labels for name in slot[::-1]]


def write_checkpoint(folder, names, wave, **changed):
    """A folder as superb/hubert-base-superb-ks, with random weights; -> its head's tensors.

    The outputs for the first half of `wave` are 0, so that predictions vary."""
    torch.manual_seed(0)
    encoder = random_encoder(TINY, seed=3)
    projector, classifier = nn.Linear(128, HIDDEN), nn.Linear(HIDDEN, len(names))
    head = {"layer_weights": torch.randn(TINY["encoder_num_layers"] + 1)}
    for name, layer in (("projector", projector), ("classifier", classifier)):
        head |= {f"{name}.weight": layer.weight.data, f"{name}.bias": layer.bias.data}
    head["classifier.bias"] -= plain_logits(encoder, head, wave[: len(wave) // 2])
    head |= changed
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "model.safetensors", huggingface(encoder.state_dict()) | head)
    config = {"model_type": "hubert", "num_attention_heads": 4, "use_weighted_layer_sum": True,
              "id2label": {str(number): name for number, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    return head


@torch.no_grad()
def plain_logits(encoder, head, wave):
    """What HubertForSequenceClassification computes for one utterance (n,) without padding: (C,)"""
    states = alone(encoder, wave)  # (L+1, T, D)
    weights = head["layer_weights"].softmax(0)
    features = (states * weights[:, None, None]).sum(0)
    projected = features @ head["projector.weight"].T + head["projector.bias"]
    return projected.mean(0) @ head["classifier.weight"].T + head["classifier.bias"]


def wave_of(corpus, index: int):
    """The audio of one utterance: (n,)."""
    return collate(corpus, [(index, None)]).waves[0]


def run_superb(folder, task, root) -> None:
    """tools/superb.py in this process."""
    run_main(superb.main, folder, "--task", task, "--data", root)


def test_the_tasks_are_those_of_the_published_heads():
    assert sorted(superb.CLASSIFIERS) == ["ER", "IC", "KS", "SID"]


@pytest.mark.parametrize("task", ["KS", "IC", "SID", "ER"])
def test_answers_and_score_are_those_of_each_utterance_alone(task, root, tmp_path, output_of):
    corpus = read_corpus(task, root, "test")
    names = output_names(corpus.labels)
    head = write_checkpoint(tmp_path / "it", names, wave_of(corpus, 0))
    encoder = load_encoder(str(tmp_path / "it"))
    expected = {}
    for index, utterance in enumerate(corpus.utterances):
        logits = plain_logits(encoder, head, wave_of(corpus, index))
        if task == "IC":
            answer, start = [], 0
            for slot in corpus.labels:
                answer.append(names[start + int(logits[start:start + len(slot)].argmax())])
                start += len(slot)
        else:
            answer = names[int(logits.argmax())]
        expected[utterance.id] = answer
    assert len({str(answer) for answer in expected.values()}) > 1

    model, matched = superb.load_published(tmp_path / "it", corpus)
    rows = predict_and_score(model, {task: matched}, {}, quiet=True)[task]
    assert {row["id"]: row["prediction"] for row in rows} == expected
    right = [expected[u.id] == u.reference for u in corpus.utterances]
    printed = output_of(run_superb, tmp_path / "it", task, root)
    percent = 100 * sum(right) / len(right)
    assert printed == f"{task} test: acc {percent:.2f} ({len(right):,} utterances)\n"


def test_the_order_of_the_labels_does_not_change_the_score(root, tmp_path):
    corpus = read_corpus("KS", root, "test")
    names, wave = output_names(corpus.labels), wave_of(corpus, 0)
    head = write_checkpoint(tmp_path / "one", names, wave)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(1))
    permuted = {name: head[name][order] for name in ("classifier.weight", "classifier.bias")}
    write_checkpoint(tmp_path / "two", [names[k] for k in order.tolist()], wave, **permuted)
    rows = []
    for folder in ("one", "two"):
        model, matched = superb.load_published(tmp_path / folder, corpus)
        rows.append(predict_and_score(model, {"KS": matched}, {}, quiet=True))
    assert rows[0] == rows[1]


def test_a_name_may_occur_in_two_slots_but_a_slot_keeps_its_own_outputs():
    labels = [["on", "off"], ["none", "lamp"], ["none", "hall"]]
    corpus = Corpus("IC", [], labels)
    names = ["off", "on", "lamp", "none", "none", "hall"]
    expected = [["off", "on"], ["lamp", "none"], ["none", "hall"]]
    assert superb.match_labels(names, corpus, "it") == expected
    with pytest.raises(DataError, match="slot 2.*only it has hall, only the data have lamp"):
        superb.match_labels(["off", "on", "hall", "none", "none", "lamp"], corpus, "it")
    with pytest.raises(DataError, match="slot 3.*only it has attic"):
        superb.match_labels([*names, "attic"], corpus, "it")
    with pytest.raises(DataError, match="slot 3.*only it has nothing, only the data have hall"):
        superb.match_labels(names[:-1], corpus, "it")


def test_labels_that_do_not_match_are_named(root, tmp_path, refused):
    corpus = read_corpus("ER", root, "test")
    wave, labels = wave_of(corpus, 0), corpus.labels
    for names, words in (
        (OTHERS, ["only", "has LABEL_0, LABEL_1, LABEL_2 and 1 more", "data have neu, hap, ang"]),
        ([*labels, "fru"], ["has fru, only the data have nothing"]),
        (labels[1:], ["has nothing, only the data have neu"]),
        ([*labels, "neu"], ["has neu, only the data have nothing"]),
    ):
        write_checkpoint(tmp_path / "it", names, wave)
        refused(run_superb, [tmp_path / "it", "ER", root], "ER: the labels do not match",
                str(tmp_path), *words)


def test_a_head_that_does_not_fit_is_refused(root, tmp_path, refused):
    corpus = read_corpus("ER", root, "test")
    wave, folder = wave_of(corpus, 0), tmp_path / "it"
    for changed, words in (
        ({"classifier.weight": torch.zeros(3, HIDDEN)}, "has shape (3, 24), not (4, 24)"),
        ({"layer_weights": torch.zeros(4)}, "has shape (4,), not (5,)"),
        ({"projector.weight": torch.full((HIDDEN, 128), torch.nan)}, "holds NaN or infinity"),
    ):
        write_checkpoint(folder, corpus.labels, wave, **changed)
        refused(run_superb, [folder, "ER", root], next(iter(changed)), words)
    encoder = random_encoder(TINY)
    write_safetensors(folder / "model.safetensors", huggingface(encoder.state_dict()))
    refused(run_superb, [folder, "ER", root], "use_weighted_layer_sum",
            "no layer_weights, projector.weight, projector.bias and 2 more")


def test_a_folder_without_labels_is_refused(root, tmp_path, refused):
    corpus = read_corpus("ER", root, "test")
    folder = tmp_path / "it"
    write_checkpoint(folder, corpus.labels, wave_of(corpus, 0))
    (folder / "config.json").write_text('{"id2label": {"1": "neu"}}')
    refused(run_superb, [folder, "ER", root], "id2label",
            "should number the labels from 0, but it has 1")
    (folder / "config.json").write_text("{}")
    refused(run_superb, [folder, "ER", root], "id2label", "it has nothing")
    (folder / "config.json").unlink()
    refused(run_superb, [folder, "ER", root], "has no config.json with the labels")
    refused(run_superb, [tmp_path / "none", "ER", root], "there is no folder", "none")
    refused(run_superb, ["tiny", "ER", root], "there is no folder tiny")
    (tmp_path / "empty").mkdir()
    refused(run_superb, [tmp_path / "empty", "ER", root], "a folder without weights")
    refused(run_superb, [folder, "ER", tmp_path / "nowhere"], "nowhere")


def test_a_task_with_another_head_is_refused(root, tmp_path, refused):
    refused(run_superb, [tmp_path, "ASR", root], "invalid choice: 'ASR'", alone=False)


# transformers


@pytest.mark.parametrize("family", ["Hubert", "Wav2Vec2"])
def test_logits_equal_those_of_transformers(family, tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="Hugging Face's transformers is not installed"
    )
    torch.manual_seed(0)
    names = output_names(KEYWORDS)
    config = getattr(transformers, f"{family}Config")(
        hidden_size=96, num_attention_heads=6, num_hidden_layers=4, intermediate_size=160,
        conv_dim=[24] * 7, num_conv_pos_embeddings=32, num_conv_pos_embedding_groups=8,
        use_weighted_layer_sum=True, classifier_proj_size=HIDDEN, id2label=dict(enumerate(names)))
    theirs = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    theirs.layer_weights.data.normal_()
    theirs.classifier.weight.data.normal_()
    theirs.save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    model, corpus = superb.load_published(tmp_path, Corpus("KS", [], KEYWORDS))
    assert corpus.labels == names
    waves = speech(9_000, 16_000, 5_003)
    lengths = torch.tensor([len(wave) for wave in waves])
    batch = Batch(pad_sequence(waves, batch_first=True), lengths, [0, 0, 0], ["a", "b", "c"])
    with torch.no_grad():
        features, frames = model.features({"KS": batch}, *model.project({"KS": batch}))["KS"]
        (found,) = model.heads["KS"].logits(features, frames)
        expected = torch.cat([theirs(wave[None]).logits for wave in waves])
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-4
