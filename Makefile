PIP = .venv/bin/pip install --quiet --disable-pip-version-check

.venv/installed: requirements.txt
	python3 -m venv .venv
	$(PIP) -r requirements.txt
	touch $@

.PHONY: demo test lint
demo: .venv/installed  ## task transfer (paper, Section 2.4) of intent classification, on the toy corpus
	.venv/bin/python train.py --scenario transfer --task IC

test: .venv/installed  ## every test, offline, on the CPU: two halves at a time, for two cores
	$(MAKE) --jobs 2 test-with-runs test-without-runs

.PHONY: test-with-runs test-without-runs
test-with-runs:  ## the files with tests that need the 28 runs of Table 1
	.venv/bin/python -m pytest -m runs
test-without-runs:
	.venv/bin/python -m pytest -m "not runs"

lint: .venv/bin/ruff  ## the rules of pyproject.toml
	.venv/bin/ruff check .

.venv/bin/ruff: .venv/installed
	$(PIP) "ruff>=0.9,<1"
	touch $@
