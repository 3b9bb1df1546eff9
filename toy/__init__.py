"""The embedded default: a synthetic nine-task corpus and a tiny HuBERT."""
from toy.synthesis import write_corpus

__all__ = ["write_corpus"]
