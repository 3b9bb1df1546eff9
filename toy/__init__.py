"""The embedded default: a synthetic nine-task corpus and a tiny HuBERT."""


def write_corpus(root, seed: int = 0, scale: float = 1.0) -> None:
    """Write the toy corpus into the new folder `root`: see `toy.synthesis.write_corpus`."""
    from toy import synthesis   # here, so that `python -m toy.synthesis` loads it only once

    synthesis.write_corpus(root, seed, scale)
