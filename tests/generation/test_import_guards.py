"""Packages that dependencies import, but that are not needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.preprocess_runs import start
from tests.helpers.trained_run import Workspace


def test_broken_torchaudio_and_torchvision_are_ignored(workspace: Workspace, tmp_path: Path) -> None:
    """Builds for another torch fail on import; encodec and transformers import them if they are installed."""
    for package in ("torchaudio", "torchvision"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('compiled with another CUDA version')\n")
    overrides = (f"run={workspace.run()}", f"prompt={workspace.tones[0]}", f"out={tmp_path / 'b.wav'}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(tmp_path))
        process = start("pipeline.generate", *overrides)
    _, error = process.communicate()
    assert process.returncode == 0 and (tmp_path / "b.wav").exists() and "CUDA" not in error, error
