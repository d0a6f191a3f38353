"""The notebooks of docs/ run from the first cell to the last."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
import soundfile
from nbclient import NotebookClient

from tests.helpers.preprocess_runs import tones

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_your_own_sounds_makes_sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of tones becomes three new sounds of the length that is set."""
    tones(tmp_path / "my sounds", 12)
    settings = {"SOUNDS": tmp_path / "my sounds", "OUT": "out", "SECONDS": 0.4, "STEPS": 10}
    for name, value in {**settings, "PYTHONPATH": ROOT, "TORCHDYNAMO_DISABLE": 1, "OMP_NUM_THREADS": 1}.items():
        monkeypatch.setenv(name, str(value))
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / "your_own_sounds.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [soundfile.info(sound).frames for sound in (tmp_path / "out").glob("new-*.wav")] == [9600] * 3
