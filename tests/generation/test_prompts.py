"""Sound files as prompts: which files of a folder are used, and how unusable prompts are handled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.common.errors import InputError
from tests.helpers.trained_run import Workspace, generate, sidecar


def test_prompt_folder_lists_the_files_of_a_corpus(workspace: Workspace, tmp_path: Path) -> None:
    """The same suffixes, without hidden files, which a glob also ignores."""
    from pipeline.generation.prompts import find_prompts

    prompts = tmp_path / "prompts"
    (prompts / ".trash").mkdir(parents=True)
    for name in ("a.wav", "b.W64", "c.caf", "d.m4a", "._a.wav", ".trash/e.wav", "notes.txt"):
        (prompts / name).write_bytes(b"")
    assert [path.name for path in find_prompts(str(prompts)).values()] == ["a.wav", "b.W64", "c.caf", "d.m4a"]
    assert [path.name for path in find_prompts(f"{prompts}/*.wav").values()] == ["a.wav"]
    assert [path.name for path in find_prompts(f"{prompts}/._*").values()] == ["._a.wav"]


def test_prompt_above_full_scale_is_scaled_and_named(
    workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The sound equals that of the prompt at full scale; a spike of 1e29 is refused with the file's name."""
    wav = soundfile.read(workspace.tones[0], dtype="float32")[0]
    full = wav / np.abs(wav).max()
    soundfile.write(tmp_path / "full.wav", full, 24_000, subtype="FLOAT")
    soundfile.write(tmp_path / "loud.wav", full * np.float32(32_768), 24_000, subtype="FLOAT")
    for name in ("full", "loud"):
        assert generate(f"run={workspace.run()}", f"prompt={tmp_path}/{name}.wav", f"out={tmp_path}/o-{name}.wav") == 0
    assert sidecar(tmp_path / "o-full.wav")["codes_sha256"] == sidecar(tmp_path / "o-loud.wav")["codes_sha256"]
    (line,) = [record.message for record in caplog.records if "full scale" in record.message]
    assert line.startswith(f"{tmp_path / 'loud.wav'}: above full scale: its peak is 32,768")
    full[100] = 1e29
    soundfile.write(tmp_path / "spike.wav", full, 24_000, subtype="FLOAT")
    with pytest.raises(InputError, match=r"spike\.wav: above full scale: its peak is 1e\+29"):
        generate(f"run={workspace.run()}", f"prompt={tmp_path}/spike.wav", f"out={tmp_path}/o.wav")


def test_numbered_outputs_keep_their_numbers(workspace: Workspace, tmp_path: Path) -> None:
    """A skipped prompt leaves a gap: its sound gets this number once the prompt is repaired."""
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no sound")
    prompts = f"prompt=[{bad},{workspace.tones[0]}]"
    assert generate(f"run={workspace.run()}", prompts, f"out={tmp_path / 'o.wav'}") == 1
    assert [path.name for path in sorted(tmp_path.glob("o*.wav"))] == ["o-2.wav"]
    extend = (f"run={workspace.run()}", "mode=extend", f"audio={workspace.tones[1]}", prompts, "seconds=0.7")
    assert generate(*extend, f"out={tmp_path / 'e.wav'}") == 1
    assert [path.name for path in sorted(tmp_path.glob("e*.wav"))] == ["e-2.wav"]
    assert sidecar(tmp_path / "e-2.wav")["settings"]["seed"] == 1
