.venv/installed: requirements.txt
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.PHONY: demo test all
demo: .venv/installed  ## the main job: task transfer (paper, Section 2.4) of intent classification on the toy corpus
	.venv/bin/python train.py --scenario transfer --task IC

test: .venv/installed  ## every test, offline, on the CPU
	.venv/bin/python -m pytest
