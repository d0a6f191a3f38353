"""Corpora that any test may read (copy one before you change it), and settings of Hypothesis: no deadlines."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.helpers.corpora import build_jamendo, render_notes
from tests.helpers.ranks import single_rank
from tests.helpers.warm_python import choose_server

pytest_plugins = ["tests.helpers.trained_run"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell; tests of ^C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# DeepSpeed compiles a function on import, so each process that trains would import the compiler: 3 s of CPU
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

# the longest test files run first, so that two workers of pytest-xdist end at about the same time
LONG_FILES = ("test_train", "test_zero", "test_preprocess_killed", "test_generate", "test_export", "test_train_reach")


def pytest_configure() -> None:
    """Before the processes of pytest-xdist start: they share one server of forked programs."""
    choose_server()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by file, the longest files first."""
    order = {f"{name}.py": number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def notes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.root of `data=notes`: 24 rendered notes of 6 instruments, train, valid and test."""
    return render_notes(tmp_path_factory.mktemp("corpora") / "notes")


@pytest.fixture(scope="session")
def nsynth_folder(notes_folder: Path) -> Path:
    """data.root of `data=nsynth`: the same notes, with nothing in the folder but what NSynth has."""
    root = notes_folder.with_name("nsynth")
    shutil.copytree(notes_folder, root, ignore=shutil.ignore_patterns("notes.json"))
    return root


@pytest.fixture(scope="session")
def jamendo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.root of `data=jamendo`: 8 mp3 tracks of 2.5 to 6.1 s by 4 artists, and raw_30s.tsv."""
    return build_jamendo(tmp_path_factory.mktemp("corpora") / "jamendo")


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enables torch.compile, for tests of it."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")


@pytest.fixture
def here() -> Iterator[None]:
    """One rank in this process, which is faster, for tests that do not test the launcher."""
    with single_rank():
        yield
