"""Published SUPERB heads: the score of a Hugging Face checkpoint on the test set of a task.

    python -m tools.superb FOLDER --task KS --data DIR

FOLDER is a downloaded superb/hubert-base-superb-{ks,ic,sid,er}. It holds config.json with
`id2label`, and the weights of transformers' HubertForSequenceClassification. They are the heads of
scenario (a) on HuBERT Base (paper, row (a) of Table 1):

    theirs           ours
    hubert.*         MultiTask.encoder
    layer_weights    LayerSum.weights, before the softmax
    projector        ClassifierHead.project: theirs is applied before the mean over time, ours
                     after it. Both are linear, so the result is equal.
    classifier       ClassifierHead.output

Here the outputs for an utterance do not depend on padding. The published scores come from padded
batches, so they may differ a little:
- GroupNorm, in the first convolution, takes its mean and variance over the padding too.
- transformers averages over padded frames too if it gets no attention mask.
- s3prl rounds samples / 320 to a number of frames, so a last frame may lie in the padding.
"""

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from corpus import Corpus
from engine.files import check, some
from engine.flags import as_path
from engine.launch import friendly_errors
from engine.pretrained import find_file, read_file
from evaluate import predict_and_score
from heads import ClassifierHead
from model import Hubert, MultiTask, load_encoder
from tasks import TASKS, read_corpus, summarise

CLASSIFIERS = [name for name, task in TASKS.items() if task.head is ClassifierHead]
HEAD = ("layer_weights", "projector.weight", "projector.bias", "classifier.weight",
        "classifier.bias")


def read_label_names(folder: Path) -> list[str]:
    """The names of the outputs, in order: `id2label` in config.json. Raises DataError."""
    file = folder / "config.json"
    check(file.is_file(), f"{folder} has no config.json with the labels of the outputs; name the "
          "folder of a published checkpoint")
    names = json.loads(file.read_text()).get("id2label") or {}
    numbers = [str(number) for number in range(len(names))]
    check(names and sorted(names) == sorted(numbers),
          f"id2label in {file} should number the labels from 0, but it has {some(names)}")
    return [names[number] for number in numbers]


def match_labels(names: list[str], corpus: Corpus, folder: Path) -> list:
    """Corpus.labels in the order of the checkpoint's outputs, whose names are `names`.

    IC: the outputs of one slot follow those of the other; a name (none) may occur in two slots.
    Raises DataError unless both sides have the same labels in each slot.
    """
    has_slots = isinstance(corpus.labels[0], list)
    slots = corpus.labels if has_slots else [corpus.labels]
    ordered, start = [], 0
    for number, slot in enumerate(slots, 1):
        stop = len(names) if number == len(slots) else start + len(slot)
        own = names[start:stop]
        only_published = (Counter(own) - Counter(slot)).elements()
        only_data = (Counter(slot) - Counter(own)).elements()
        where = f" of slot {number}" if has_slots else ""
        check(Counter(own) == Counter(slot),
              f"{corpus.task}: the labels{where} do not match: only {folder} has "
              f"{some(only_published)}, only the data have {some(only_data)}")
        ordered.append(own)
        start = stop
    return ordered if has_slots else ordered[0]


def build_published(encoder: Hubert, tensors: dict[str, Tensor], corpus: Corpus,
                    folder: Path) -> MultiTask:
    """The published encoder, weighted sum and head as a model of scenario (a).

    `corpus` has its labels in the order of the outputs. Raises DataError if the head does not fit.
    """
    missing = [name for name in HEAD if name not in tensors]
    check(not missing, f"{folder} has no {some(missing)}; use HubertForSequenceClassification with "
          "use_weighted_layer_sum")
    head = ClassifierHead(encoder.dim, corpus.classes, hidden=len(tensors["projector.bias"]))
    model = MultiTask(encoder, {corpus.task: head})
    parameters = (model.layer_sum.weights, head.project.weight, head.project.bias,
                  head.output.weight, head.output.bias)
    for name, parameter in zip(HEAD, parameters):
        found, expected = tuple(tensors[name].shape), tuple(parameter.shape)
        check(found == expected, f"{name} in {folder} has shape {found}, not {expected}")
        check(tensors[name].isfinite().all(), f"{name} in {folder} holds NaN or infinity")
        parameter.data.copy_(tensors[name])
    return model.eval()


def load_published(folder: Path, corpus: Corpus) -> tuple[MultiTask, Corpus]:
    """-> the published model, and the corpus with its labels in the order of the outputs.

    Raises EncoderError or DataError, with a message of one sentence, if they do not fit.
    """
    encoder = load_encoder(str(folder))
    tensors = read_file(find_file(folder))
    labels = match_labels(read_label_names(folder), corpus, folder)
    corpus = replace(corpus, labels=labels)  # predictions are decoded to names, as references are
    return build_published(encoder, tensors, corpus, folder), corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=as_path, help="the published checkpoint")
    parser.add_argument("--task", required=True, type=str.upper, choices=CLASSIFIERS)
    parser.add_argument("--data", metavar="DIR", required=True, type=as_path,
                        help="the folder that holds the datasets")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with friendly_errors(args.debug):
        check(args.folder.is_dir(), f"there is no folder {args.folder}; name the folder of a "
              "published checkpoint")
        corpus = read_corpus(args.task, args.data, "test")
        model, corpus = load_published(args.folder, corpus)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        rows = predict_and_score(model, {args.task: corpus}, {})[args.task]
        for metric, value in summarise(TASKS[args.task], rows).items():
            print(f"{args.task} test: {metric} {value:.2f} ({len(rows):,} utterances)")


if __name__ == "__main__":
    main()
