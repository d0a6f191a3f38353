"""`python -m pipeline.reconstruct`: audio and measurements at each bit rate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.common.errors import InputError
from pipeline.reconstruct import main
from tests.helpers.warm_python import run_python


def tone(seconds: float, hz: float, rate: int) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    return 0.3 * np.sin(2 * np.pi * hz * t) * np.exp(-t)


def run(*settings: str) -> None:
    main.task(["codec=encodec_embedded", *settings])


def test_folder_is_reconstructed_at_each_bit_rate(tmp_path: Path) -> None:
    sounds = tmp_path / "sounds"
    (sounds / "more").mkdir(parents=True)
    soundfile.write(sounds / "a.wav", tone(1.5, 440, 16_000), 16_000)
    soundfile.write(sounds / "more" / "a.flac", tone(1.01, 300, 44_100), 44_100)
    (sounds / "broken.wav").write_bytes(b"no sound")
    (sounds / "notes.txt").write_text("ignored")
    out = tmp_path / "out"
    run(f"audio={sounds}", f"out={out}", "codebooks=[8,1]")
    for name, samples in [("a", 36_000), ("a-2", 24_240)]:
        for suffix in ("original", "k1", "k8"):
            wav, rate = soundfile.read(out / f"{name}.{suffix}.wav")
            assert (len(wav), rate) == (samples, 24_000)
            assert np.abs(wav).max() > 0.05
    report = json.loads((out / "reconstruct.json").read_text())
    assert [(row["codebooks"], row["kbit_s"]) for row in report["clips"]] == [(1, 0.75), (8, 6.0)] * 2
    for one, eight in zip(report["clips"][::2], report["clips"][1::2], strict=True):
        assert eight["log_spectral_distance_db"] < one["log_spectral_distance_db"] < 40
    assert all(row["snr_db"] is None for row in report["clips"])  # the embedded codec does not keep phases
    assert len(report["refused"]) == 1 and "broken.wav" in report["refused"][0]
    assert report["codec"]["name"] == "encodec_embedded"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["audio=gone.wav"], "no such file"),
        (["audio=.", "out=x"], "there are no audio files"),
        (["audio=empty.wav"], "no file could be read: empty.wav: empty"),
        (["audio=a.wav", "codebooks=[1,16]"], "codec.codebooks=16: expected a whole number from 1 to 8"),
        (["audio=a.wav", "codebooks=[0]"], "codebooks=.0.: expected a list, each a whole number of 1 or more"),
        (["audio=a.wav", "device=gpu"], "device=gpu: .*; give auto, cpu, cuda:0 or mps"),
    ],
)
def test_invalid_settings_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if "audio=." not in settings:
        (tmp_path / "empty.wav").touch()
        soundfile.write("a.wav", tone(0.5, 440, 24_000), 24_000)
    with pytest.raises(InputError, match=message):
        run(*settings)


def test_command_prints_the_table(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a name.wav", tone(0.5, 440, 24_000), 24_000)
    settings = ["audio=a name.wav", "codebooks=2", "codec=encodec_embedded", "out=out"]
    env = {"PATH": "/usr/bin:/bin", "COLUMNS": "120"}
    done = run_python(["-m", "pipeline.reconstruct", *settings], cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "1.50" in done.stdout and "does not keep phases" in done.stdout
    assert (tmp_path / "out" / "a name.k2.wav").exists()
