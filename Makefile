PIP = .venv/bin/pip install --quiet --disable-pip-version-check

.venv/installed: requirements.txt
	python3 -m venv .venv
	$(PIP) -r requirements.txt
	touch $@

.PHONY: demo test lint
demo: .venv/installed  ## task transfer (paper, Section 2.4) of intent classification, on the toy corpus
	.venv/bin/python train.py --scenario transfer --task IC

test: .venv/installed  ## every test, offline, on the CPU
	.venv/bin/python -m pytest

lint: .venv/bin/ruff  ## the rules of pyproject.toml
	.venv/bin/ruff check .

.venv/bin/ruff: .venv/installed
	$(PIP) "ruff>=0.9,<1"
	touch $@
