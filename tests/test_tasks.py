"""The table of tasks: every row works from file to score."""

import pytest
import torch

from batches import collate
from conftest import NARROW
from model import MultiTask, random_encoder
from tasks import TASKS, score, summarise



def model_of(name: str, classes) -> MultiTask:
    """A random narrow encoder under the head of one task."""
    torch.manual_seed(0)
    encoder = random_encoder(NARROW, seed=0)
    return MultiTask(encoder, {name: TASKS[name].head(encoder.dim, classes, 64)}, augment=False)


def test_the_nine_tasks_of_the_paper_are_there():
    assert sorted(TASKS) == sorted("PR ASR KS SID ASV SD IC SF ER".split())


@pytest.mark.parametrize("name", TASKS)
def test_a_head_memorises_a_handful_of_utterances(root, name):
    corpus = TASKS[name].read(str(root), "train")
    model = model_of(name, corpus.classes)
    batch = collate(corpus, [(i, i) for i in range(4)])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(25):
        loss = model({name: batch})[name]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses


@pytest.mark.parametrize("name", TASKS)
def test_gradient_reaches_a_trained_encoder_and_never_a_frozen_one(root, name):
    corpus = TASKS[name].read(str(root), "train")
    for trained in (True, False):
        model = model_of(name, corpus.classes)
        model.encoder.requires_grad_(trained)
        model({name: collate(corpus, [(0, 0), (1, 1)])})[name].backward()
        reached = [
            p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.encoder.parameters()
        ]
        assert any(reached) if trained else not any(reached)
        assert all(p.grad is not None for p in model.heads.parameters())


@pytest.mark.parametrize("name", TASKS)
def test_every_row_scores_a_perfect_prediction_as_perfect(root, name):
    corpus = TASKS[name].read(str(root), "test")
    if corpus.trials:  # one direction per speaker: cosine 1 within, less between
        speakers = sorted({u.split("/")[0] for _, a, b in corpus.trials for u in (a, b)})
        perfect = {
            u.id: torch.eye(len(speakers))[speakers.index(u.id.split("/")[0])].tolist()
            for u in corpus.utterances
        }
    else:
        perfect = {u.id: u.reference for u in corpus.utterances}
    metrics = summarise(TASKS[name], score(TASKS[name], corpus, perfect))
    assert list(metrics) == [metric.name for metric in TASKS[name].metrics]
    for metric in TASKS[name].metrics:
        assert metrics[metric.name] == pytest.approx(
            0.0 if metric.lower_is_better else 100.0, abs=1e-9
        )


@pytest.mark.parametrize("name", TASKS)
def test_batch_mates_change_no_prediction(root, name):
    corpus = TASKS[name].read(str(root), "test")
    model = model_of(name, corpus.classes).eval()
    few = [(i, None) for i in range(min(3, len(corpus.utterances)))]
    together = model.predict(name, collate(corpus, few))
    alone = [model.predict(name, collate(corpus, [visit]))[0] for visit in few]
    for a, b in zip(together, alone):
        if isinstance(a, list) and a and not isinstance(a[0], int):
            assert torch.allclose(torch.tensor(a), torch.tensor(b), atol=1e-4)
        else:
            assert a == b
