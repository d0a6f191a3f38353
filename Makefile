# Two commands do everything on a fresh machine: `make quickstart` makes sound, `make test` passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# `deepspeed` starts `python3` from the PATH: it must be the environment's own
RUN := env -u PYTHONPATH PATH="$(CURDIR)/$(BIN):$$PATH"
CHEAP := codec=encodec_embedded embedder=encodecmae_tiny

.PHONY: install quickstart demo test test-slow test-slurm test-versions coverage bench fuzz lint docs clean

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

# the page to play with, on what the quickstart has learned
demo: install
	$(RUN) python -m pipeline.demo run=quickstart/run

# two processes of one thread each; a file's tests share its fixtures, so they stay together. Fuzzing limits the memory of
# its whole process, which the servers that other tests keep in theirs would not survive
test: install
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not slurm" --ignore tests/fuzz
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" tests/fuzz

test-slow: install
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -m "slow and not slurm"

# which lines the tests of `make test` never reach, in their processes too
coverage: install
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not slurm" --cov --cov-report=term

# starts a real Slurm cluster of two nodes on this machine (Debian, root); skips with the reason elsewhere
test-slurm: install
	$(RUN) python -m pytest -m slurm

# the lowest and the newest versions that pyproject.toml allows, each in an environment of its own: 12 GB in .versions/
test-versions: install
	$(BIN)/pip install --quiet "uv>=0.5"
	$(RUN) PYTHON=$(PYTHON) tests/versions/check_versions.sh .versions

# damaged shards, manifests, sounds, archives, settings: thousands a target; `make test` tries a few of each
fuzz: install
	$(RUN) OMP_NUM_THREADS=1 FUZZ=2000 python -m pytest tests/fuzz -o timeout=3000

lint: install
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

# the API reference, from the docstrings, as HTML in build/docs/
docs: install
	$(RUN) pdoc --docformat markdown --output-directory build/docs pipeline

# each prints a table, the ratios of one run; a GPU is used where there is one
bench: install
	$(RUN) python -m tests.benchmarks.bench_codec
	$(RUN) python -m tests.benchmarks.bench_preprocess
	$(RUN) python -m tests.benchmarks.bench_loader
	$(RUN) python -m tests.benchmarks.bench_train
	$(RUN) python -m tests.benchmarks.bench_sampling --music

clean:
	rm -rf quickstart build *.egg-info .versions
