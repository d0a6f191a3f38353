"""`python -m pipeline.generate`: every mode, its sidecar, and generation again from the sidecar."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipeline.common.errors import InputError
from pipeline.config.cli import load_settings
from pipeline.generation.interpolation import crossfade
from pipeline.models.patterns import PATTERNS
from tests.helpers.trained_run import Workspace, count_samples, generate, sidecar
from tests.helpers.warm_python import WarmPython

LONG = ("seconds=1.2", "window=0.2", "window_stride=0.1")


@pytest.mark.parametrize("pattern", PATTERNS.names())
def test_length_is_exact_and_sidecar_is_complete(workspace: Workspace, tmp_path: Path, pattern: str) -> None:
    out, run = tmp_path / "b.wav", workspace.run(pattern)
    assert generate(f"run={run}", f"prompt={workspace.tones[0]}", f"out={out}", "seconds=0.701", "seed=3") == 0
    assert count_samples(out) == 16_824
    content = sidecar(out)
    assert content["settings"]["sampling"]["temperature"] == 0.7 and content["settings"]["seed"] == 3
    assert content["export"]["sha256"] and content["pattern"] == pattern and content["complete"]
    assert content["sources"][0]["path"] == str(workspace.tones[0]) and len(content["sources"][0]["sha256"]) == 64
    assert (
        content["codec"]["name"] == "encodec_embedded"
        and content["embedder"]["dim"] == 192
        and "torch" in content["versions"]
    )


MODES = {
    "prompt": ("prompt={0}",),
    "without a prompt": (),
    "sampled": ("prompt={0}", "sampling.top_k=40", "sampling.min_p=0.02", "sampling.temperature=[0.5,1]"),
    "guided": ("prompt={0}", "sampling.guidance=2", "sampling.top_p=0.9"),
    "interpolate": ("mode=interpolate", "prompt=[{0},{1},{2}]", "steps=5", "blend=slerp"),
    "morph": ("mode=morph", "keyframes=[{{at: 0, prompt: {0}}}, {{at: 0.5, prompt: {1}}}]", *LONG),
    "continue": ("mode=continue", "prompt={0}", *LONG),
    "extend": ("mode=extend", "audio={1}", "prompt={0}", *LONG),
    "streamed": ("mode=continue", "prompt={0}", "stream=true", "chunk=0.1", *LONG),
}


@pytest.mark.parametrize("mode", MODES)
def test_sidecar_generates_the_same_sound(workspace: Workspace, tmp_path: Path, mode: str) -> None:
    out, again = tmp_path / "out.wav", tmp_path / "again.wav"
    overrides = [override.format(*workspace.tones) for override in MODES[mode]]
    assert generate(f"run={workspace.run()}", f"out={out}", *overrides) == 0
    assert generate(f"from={out.with_suffix('.json')}", f"out={again}") == 0
    assert out.read_bytes() == again.read_bytes()
    assert {**sidecar(out), "sound": ""} == {**sidecar(again), "sound": ""}


def test_interpolation_reports_length_with_crossfades(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "strip.wav"
    overrides = (
        "mode=interpolate",
        f"prompt=[{workspace.tones[0]},{workspace.tones[1]}]",
        "steps=3",
        "crossfade_seconds=0.1",
        "seconds=0.2",
    )
    assert generate(f"run={workspace.run()}", *overrides, f"out={out}") == 0
    assert (
        count_samples(out) == 9_600 and sidecar(out)["seconds"] == 0.4
    )  # three clips of 0.2 s, two crossfades of 0.1 s
    assert "1 sound of 0.4 s" in capsys.readouterr().out


def test_interrupted_interpolation_is_reproducible(workspace: Workspace, tmp_path: Path) -> None:
    from pipeline.generation.loaded_run import load_run
    from pipeline.generation.request import build_requests
    from pipeline.generation.runner import generate_files
    from pipeline.generation.settings import GenerateSettings

    ends, out = [str(tone) for tone in workspace.tones[:2]], tmp_path / "strip.wav"
    overrides = ["mode=interpolate", f"prompt=[{','.join(ends)}]", "steps=3", "seconds=0.2", f"out={out}", "batch=1"]
    settings = load_settings(GenerateSettings, [f"run={workspace.run()}", *overrides])
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        if len(lines) == 4:  # in the second of the three clips
            raise KeyboardInterrupt

    run = load_run(workspace.run(), "cpu")
    files = generate_files(run, build_requests(settings, run), 5 / 75, stop)
    incomplete = next(files)
    with pytest.raises(KeyboardInterrupt):
        next(files)
    assert (
        not incomplete.is_complete
        and sidecar(out)["frames"] == [15, 5]
        and sidecar(out)["seconds"] == incomplete.seconds < 0.4
    )
    assert generate(f"from={tmp_path / 'strip.json'}", f"out={tmp_path / 'again.wav'}") == 0
    assert (tmp_path / "again.wav").read_bytes() == out.read_bytes()


def test_clipping_gives_one_warning(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.audio.codecs.base import Codec

    decode = Codec.decode
    overrides = (
        f"run={workspace.run()}",
        f"prompt={workspace.tones[0]}",
        "seconds=0.1",
        "n=2",
        f"out={tmp_path / 'o'}",
    )
    for gain, warnings in ((0.01, 0), (1e6, 1)):
        monkeypatch.setattr(Codec, "decode", lambda self, codes, gain=gain: gain * decode(self, codes))
        assert generate(*overrides) == 0
        assert capsys.readouterr().err.count("samples are at full scale") == warnings


def test_from_refuses_settings_of_the_sidecar(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "o.wav"
    assert generate(f"run={workspace.run()}", f"prompt={workspace.tones[0]}", f"out={out}", "seconds=0.1") == 0
    overrides = (f"from={out.with_suffix('.json')}", f"out={tmp_path / 'again.wav'}")
    with pytest.raises(InputError, match=r"its own sampling\.top_k=, seconds=, seed=: omit these, or omit from="):
        generate(*overrides, "seconds=1", "seed=0", "sampling.top_k=3")
    assert not (tmp_path / "again.wav").exists()
    assert generate(*overrides, f"run={workspace.run()}", "device=cpu", "batch=3") == 0


def test_sidecar_works_from_any_folder(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    shutil.copytree(workspace.run(), home / "run")
    shutil.copy(workspace.tones[0], home / "p.wav")
    elsewhere.mkdir()
    monkeypatch.chdir(home)
    assert generate("run=run", "prompt=p.wav", "out=o.wav", "seconds=0.1") == 0
    monkeypatch.chdir(elsewhere)
    assert generate(f"from={home / 'o.json'}", "out=again.wav") == 0
    content = sidecar(home / "o.wav")
    content["export"]["folder"], content["sources"][0]["path"], content["settings"]["prompt"] = "run", "p.wav", "p.wav"
    (home / "o.json").write_text(json.dumps(content))  # as downloaded from the demo
    assert generate(f"from={home / 'o.json'}", "out=again.wav") == 0
    for name in ("o.json", "p.wav"):
        (home / name).rename(elsewhere / name)
    with pytest.raises(InputError, match="it was generated by run, which does not exist: give run=RUN"):
        generate("from=o.json", "out=again.wav")
    assert generate("from=o.json", f"run={home / 'run'}", "out=again.wav") == 0
    assert (elsewhere / "again.wav").read_bytes() == (home / "o.wav").read_bytes()


def test_clip_of_a_batch_equals_the_clip_alone(workspace: Workspace, tmp_path: Path) -> None:
    folder, alone, run = tmp_path / "many", tmp_path / "alone.wav", f"run={workspace.run()}"
    assert (
        generate(run, f"prompt=[{workspace.tones[0]},'{workspace.root}/tones/tone[12].wav']", "n=2", f"out={folder}")
        == 0
    )
    names = [f"tone{i}-{j}.wav" for i in (0, 1, 2) for j in (1, 2)]
    assert sorted(path.name for path in folder.glob("*.wav")) == sorted(names)
    assert generate(run, f"prompt={workspace.tones[1]}", "seed=3", f"out={alone}") == 0
    assert alone.read_bytes() == (folder / "tone1-2.wav").read_bytes()
    assert generate(f"from={folder}/tone2-1.json", f"out={tmp_path / 'again.wav'}") == 0
    assert (tmp_path / "again.wav").read_bytes() == (folder / "tone2-1.wav").read_bytes()
    assert len({path.read_bytes() for path in folder.glob("*.wav")}) == 6


def test_sounds_do_not_depend_on_the_batch(workspace: Workspace, tmp_path: Path) -> None:
    for batch in (1, 3, 5):
        overrides = (f"run={workspace.run()}", f"prompt={workspace.tones[0].parent}", f"out={tmp_path / str(batch)}")
        assert generate(*overrides, f"batch={batch}") == 0
    for path in sorted((tmp_path / "1").glob("*.wav")):
        assert path.read_bytes() == (tmp_path / "3" / path.name).read_bytes()
        assert path.read_bytes() == (tmp_path / "5" / path.name).read_bytes()


def test_interpolation_starts_and_ends_with_the_prompts(workspace: Workspace, tmp_path: Path) -> None:
    run, ends = f"run={workspace.run()}", []
    for i in (0, 1):
        assert generate(run, f"prompt={workspace.tones[i]}", f"out={tmp_path / f'{i}.wav'}") == 0
        ends.append(soundfile.read(tmp_path / f"{i}.wav", dtype="float32")[0])
    overrides = (
        "mode=interpolate",
        f"prompt=[{workspace.tones[0]},{workspace.tones[1]}]",
        "steps=4",
        "crossfade_seconds=0.1",
    )
    assert generate(run, *overrides, f"out={tmp_path / 'strip.wav'}") == 0
    strip, fade = soundfile.read(tmp_path / "strip.wav", dtype="float32")[0], 2400
    assert len(strip) == 4 * len(ends[0]) - 3 * fade
    unfaded = len(ends[0]) - fade
    assert np.allclose(strip[:unfaded], ends[0][:unfaded], atol=1e-4)
    assert np.allclose(strip[-unfaded:], ends[1][fade:], atol=1e-4)


def test_crossfade_keeps_power_of_uncorrelated_sounds() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 40_000)).astype(np.float32)
    joined = crossfade([a, b], 30_000)
    assert joined.std() == pytest.approx(1, abs=0.02) and joined[15_000:35_000].std() == pytest.approx(1, abs=0.02)


def test_extension_begins_with_the_reconstruction(workspace: Workspace, tmp_path: Path) -> None:
    from pipeline.audio import audio_io
    from pipeline.audio.codecs import load_codec

    out = tmp_path / "e.wav"
    assert (
        generate(f"run={workspace.run()}", "mode=extend", f"audio={workspace.tones[2]}", "seconds=0.7", f"out={out}")
        == 0
    )
    codec, extension = load_codec("encodec_embedded", 2), soundfile.read(out, dtype="float32")[0]
    reconstruction = codec.decode(
        codec.encode(torch.from_numpy(audio_io.read(workspace.tones[2], rate=24_000))[None, None])
    )[0, 0].numpy()
    assert len(extension) == 16_800 and np.allclose(extension[:10_000], reconstruction[:10_000].clip(-1, 1), atol=1e-4)


@pytest.mark.parametrize("mode", ["prompt", "continue", "morph"])
def test_streamed_sound_equals_the_sound_at_once(workspace: Workspace, tmp_path: Path, mode: str) -> None:
    overrides = [override.format(*workspace.tones) for override in MODES[mode]]
    for stream in ("false", "true"):
        out = tmp_path / f"{stream}.wav"
        assert generate(f"run={workspace.run()}", f"out={out}", *overrides, f"stream={stream}", "chunk=0.05") == 0
    at_once, streamed = (soundfile.read(tmp_path / f"{stream}.wav")[0] for stream in ("false", "true"))
    assert np.abs(at_once - streamed).max() < 1e-4
    assert sidecar(tmp_path / "true.wav")["codes_sha256"] == sidecar(tmp_path / "false.wav")["codes_sha256"]


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("stream", [pytest.param(False, marks=pytest.mark.slow), True])
def test_interruption_keeps_the_incomplete_sound(workspace: Workspace, tmp_path: Path, stream: bool) -> None:
    """Ctrl-C within an hour of sound leaves a playable file, and a sidecar that marks it as incomplete."""
    out = tmp_path / "long.wav"
    overrides = (
        "mode=continue",
        f"prompt={workspace.tones[0]}",
        "seconds=3600",
        "window=0.2",
        f"stream={stream}",
        "chunk=0.1",
    )
    arguments = ["-m", "pipeline.generate", f"run={workspace.run()}", f"out={out}", *overrides]
    process = WarmPython(arguments, tmp_path / "stdout.txt", tmp_path / "stderr.txt")
    while "1 sound of 3600 s" not in (tmp_path / "stdout.txt").read_text():
        assert process.poll() is None, (tmp_path / "stderr.txt").read_text()
        time.sleep(0.05)
    enough = cpu_seconds(process.pid) + 0.7  # of CPU time: enough to generate something on a busy machine
    while process.poll() is None and (
        cpu_seconds(process.pid) < enough or (stream and not (out.exists() and out.stat().st_size > 20_000))
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    rest, error = ((tmp_path / f"{name}.txt").read_text() for name in ("stdout", "stderr"))
    assert error.strip().endswith("interrupted") and "Traceback" not in error, error
    assert count_samples(out) > 1000 and soundfile.read(out)[0].std() > 0
    content, seconds = sidecar(out), count_samples(out) / 24_000
    assert not content["complete"] and content["seconds"] == seconds
    assert f"{out}  {seconds:.3f} s  incomplete: interrupted" in rest
    again = tmp_path / "again.wav"
    assert generate(f"from={out.with_suffix('.json')}", f"out={again}") == 0  # as much as was generated
    assert again.read_bytes() == out.read_bytes() and {**sidecar(again), "sound": out.name} == content
