# Two commands do everything on a fresh machine: `make quickstart` makes sound, `make test` passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# `deepspeed` starts `python3` from the PATH: it must be the environment's own
RUN := env -u PYTHONPATH PATH="$(CURDIR)/$(BIN):$$PATH"
CHEAP := codec=encodec_embedded embedder=encodecmae_tiny

.PHONY: install quickstart test test-slow bench lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[test]"
	$(BIN)/pip install --quiet --no-deps "tinysoundfont>=0.3"  # its dependencies want PortAudio, which it needs to play only
	touch $@

# Notes are rendered, encoded and learned on two CPU ranks; sound, figures and where to listen at the end.
quickstart: install
	$(RUN) python -m pipeline.preprocess data=notes data.root=quickstart/notes data.listings=quickstart/listings data.clips=2000 data.seconds=1.5 out=quickstart/shards $(CHEAP)
	$(RUN) deepspeed --num_gpus 2 pipeline/train.py +exp=quickstart
	$(RUN) python -m pipeline.evaluate run=quickstart/run shards=quickstart/shards sampling.guidance=2.5

test: install
	$(RUN) python -m pytest -m "not slow and not slurm and not bench"

test-slow: install
	$(RUN) python -m pytest -m "slow and not slurm"

lint: install
	$(RUN) ruff check .
	$(RUN) ruff format --check .

bench: install
	$(RUN) python -m pytest -m bench -s

clean:
	rm -rf quickstart build *.egg-info
