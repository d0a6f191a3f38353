# On a fresh machine: `make quickstart` trains a small model and makes sound, `make test` runs the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# the `deepspeed` launcher starts the first `python3` on the PATH
RUN := env -u PYTHONPATH PATH="$(CURDIR)/$(BIN):$$PATH"
# two ranks; one, with as many clips a step, where DeepSpeed cannot be installed (macOS)
TRAIN = $(if $(wildcard $(BIN)/deepspeed),deepspeed --num_gpus 2 pipeline/train.py,python -m pipeline.train trainer.micro_batch=16)
# which of the tests on a Slurm cluster run
SLURM ?= slurm
CHEAP := codec=encodec_embedded embedder=encodecmae_tiny

.PHONY: install install-test install-demo quickstart demo test test-slow test-slurm test-versions coverage bench fuzz lint docs clean

# what `make quickstart` needs: the package and the `notes` corpus
install: $(VENV)/.installed
# the same and one more extra of pyproject.toml
install-test install-demo: install-%: $(VENV)/.installed-%

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[notes]"
	$(BIN)/pip install --quiet --no-deps "tinysoundfont>=0.3"  # it declares a package for playback, which needs PortAudio
	touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable ".[$*]"
	$(if $(filter test,$*),$(BIN)/pip install --quiet --no-deps "axe-playwright-python==0.1.8")  # only for axe-core, without Playwright
	touch $@

# Render and encode notes, train on two CPU ranks, evaluate; at the end it prints figures and where the sounds are.
quickstart: install
	$(RUN) python -m pipeline.preprocess data=notes data.root=quickstart/notes data.scan_cache_dir=quickstart/scan_cache data.clips=6000 data.seconds=1.5 data.test=0 out=quickstart/shards $(CHEAP) codec.codebooks=4
	$(RUN) $(TRAIN) +exp=quickstart
	$(RUN) python -m pipeline.evaluate run=quickstart/run shards=quickstart/shards sampling.guidance=2.5

# the web page, with the run of the quickstart
demo: install-demo
	$(RUN) python -m pipeline.demo run=quickstart/run

# Three processes of one thread each, since tests also wait; the tests of one file run in one process, since they share
# fixtures. Fuzz tests limit the memory of their whole process, so they run apart from the tests that keep servers in theirs.
test: install-test
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow and not slurm" --ignore tests/fuzz
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" tests/fuzz

test-slow: install-test
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -m "slow and not slurm"

# lines that `make test` never runs, subprocesses included
coverage: install-test
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not slurm" --cov --cov-report=term

# Start a real Slurm cluster of two nodes on this machine (Debian, as root); elsewhere the tests are skipped.
test-slurm: install-test
	$(RUN) python -m pytest -m "$(SLURM)"

# Test the lowest and the newest versions that pyproject.toml allows, each in its own environment: 12 GB in .versions/.
test-versions: install-test
	$(BIN)/pip install --quiet "uv>=0.5"
	$(RUN) PYTHON=$(PYTHON) tests/versions/check_versions.sh .versions

# Thousands of damaged shards, manifests, audio files, archives and settings; `make test` tries a few of each.
fuzz: install-test
	$(RUN) OMP_NUM_THREADS=1 FUZZ=2000 python -m pytest tests/fuzz -o timeout=3000

lint: install-test
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

# The API reference as HTML in build/docs/, from the docstrings.
docs: install-test
	$(RUN) pdoc --docformat markdown --output-directory build/docs pipeline

# Each prints a table with the ratios of one run, on a GPU if there is one.
bench: install-test
	$(RUN) python -m tests.benchmarks.bench_codec
	$(RUN) python -m tests.benchmarks.bench_all_codecs
	$(RUN) python -m tests.benchmarks.bench_preprocess
	$(RUN) python -m tests.benchmarks.bench_loader
	$(RUN) python -m tests.benchmarks.bench_train
	$(RUN) python -m tests.benchmarks.bench_sampling --music

clean:
	rm -rf quickstart build *.egg-info .versions
