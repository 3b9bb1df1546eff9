"""What the tests of the encoder share: noise like speech, and the states of one utterance."""

import torch


def speech(*samples, seed=0):
    """Utterances of so many samples, quiet and loud, with an offset: [(n,), ...]."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, generator=generator) * (0.05 + 0.3 * k) + 0.02 for k, n in enumerate(samples)
    ]


def alone(hubert, wave):
    """The states of one utterance that is a batch of its own: (L+1, T, D)."""
    return hubert(wave[None], torch.tensor([len(wave)]))[0][:, 0]
