"""`python -m pipeline.generate`: prompts, settings, runs and sidecars that cannot be used."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipeline.audio.embedders import load_embedder
from pipeline.common.errors import InputError
from pipeline.common.files import with_checksum
from pipeline.generation.prompts import SourceAudio, prompt_vector
from pipeline.models.codec_gpt import CodecGPT
from tests.helpers.trained_run import FRAMES, Workspace, count_samples, generate, sidecar


def test_run_without_export_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"python -m pipeline\.export run={tmp_path}$"):
        generate(f"run={tmp_path}", f"out={tmp_path / 'b.wav'}")
    assert not (tmp_path / "b.wav").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seconds=0"], "seconds=0: expected auto or a number above 0"),
        (
            ["seconds=2"],
            r"150 frames are 151 steps .*pattern=delay, but the model has positions for 1\.\.61: .*mode=continue",
        ),
        (
            ["seconds=1e9", "mode=continue"],
            r"seconds=1000000000\.0: expected auto or a number above 0 and at most",
        ),
        (["crossfade_seconds=-1"], "crossfade_seconds=-1: expected a number of 0 or more"),
        (["batch=0"], "batch=0: expected auto or a whole number of 1 or more"),
        (["mode=continue", "batch=-1"], "batch=-1: expected auto or a whole number"),
        (["mode=waltz"], "mode=waltz: expected prompt, interpolate, morph, continue or extend"),
        (["n=0"], "n=0"),
        (["prompt=nowhere.wav"], r"prompt=nowhere\.wav: there is no such file"),
        (["prompt='{0}*.nothing'"], "no file matches"),
        (["mode=interpolate", "prompt={0}"], "give 2 prompts or more, not 1"),
        (["mode=interpolate", "prompt=[{0},{1}]", "blend=cubic"], "blend=cubic: expected linear or slerp"),
        (["mode=morph"], r"mode=morph: give keyframes='\[\{at: 0"),
        (["mode=morph", "keyframes=[{{at: 1, prompt: {0}}}]"], "the first at 0"),
        (["mode=morph", "keyframes=[{{at: 0, prompt: {0}, prompt_text: bell}}]"], "not both"),
        (["mode=morph", "keyframes=[{{at: 0, prompt: {0}}}, {{at: 1}}]"], "a prompt in each keyframe, or in none"),
        (["mode=morph", "keyframes=[{{when: 1}}]"], r"expected \[\{at: 0"),
        (["mode=extend", "prompt={0}"], r"give audio=a\.wav"),
        (["mode=extend", "audio={0}", "seconds=0.3"], "not shorter than the 0.3 s to generate"),
        (["mode=continue", "seconds=2", "window=0.5"], "less than the 30"),
        (["mode=continue", "seconds=2", "window=0.2", "window_stride=0.2"], "window_stride=0.2: 15 frames"),
        (["sampling.temperature=-1"], "sampling.temperature=-1"),
        (["sampling.temperature=[1,1,1]"], "the model has 2 codebooks"),
        (["device=cuda:7"], "device=cuda:7"),
        (["from=nothing.json"], "from=nothing.json: there is no such file"),
        (["from={0}"], r"from=.*tone0\.wav: give the \.json file next to the sound: from=.*tone0\.json"),
        (["mode=interpolate", "prompt=[{0},{1}]", "stream=true"], "stream=true: mode=interpolate"),
    ],
)
def test_invalid_settings_are_refused(workspace: Workspace, tmp_path: Path, overrides: list[str], message: str) -> None:
    overrides = [override.format(*workspace.tones) for override in overrides]
    with pytest.raises(InputError, match=message):
        generate(f"run={workspace.run()}", f"out={tmp_path / 'o.wav'}", *overrides)
    assert not list(tmp_path.glob("*.wav"))


def test_prompts_of_every_kind(
    workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stereo, 8 kHz, silent and very long prompts are used; unreadable prompts are named, the others are used."""
    prompts, wav = tmp_path / "prompts", soundfile.read(workspace.tones[0])[0]
    prompts.mkdir()
    soundfile.write(prompts / "stereo.wav", np.stack([wav, wav], 1), 24_000)
    soundfile.write(prompts / "telephone.wav", wav[::3], 8_000)
    soundfile.write(prompts / "silent.wav", np.zeros(24_000), 24_000)
    with soundfile.SoundFile(prompts / "hours.flac", "w", 8_000, 1) as file:
        for _ in range(60):
            file.write(np.zeros(8_000 * 60, np.int16))
    overrides = (f"run={workspace.run()}", f"prompt={prompts}", f"out={tmp_path / 'out'}", "prompt_seconds=2")
    started = time.process_time()
    assert generate(*overrides) == 0
    assert time.process_time() - started < 30, "only 2 s of an hour are read"
    assert {path.stem for path in (tmp_path / "out").glob("*.wav")} == {"stereo", "telephone", "silent", "hours"}
    assert f"{prompts / 'silent.wav'} is silent" in caplog.text
    generate(f"run={workspace.run()}", f"prompt={workspace.tones[0]}", f"out={tmp_path / 'mono.wav'}", "seed=2")
    mono, stereo = (sidecar(path)["codes_sha256"] for path in (tmp_path / "mono.wav", tmp_path / "out" / "stereo.wav"))
    assert sidecar(tmp_path / "out" / "stereo.wav")["settings"]["seed"] == 2 and mono == stereo
    (prompts / "empty.wav").write_bytes(b"")
    (prompts / "picture.wav").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    soundfile.write(prompts / "nothing.wav", np.zeros(0), 24_000)
    shutil.rmtree(tmp_path / "out")
    assert generate(*overrides) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.removeprefix(f"skipped: {prompts}/").split(":")[:2] for line in lines[:3]] == [
        ["empty.wav", " empty"], ["nothing.wav", " empty"], ["picture.wav", " not audio"]
    ]  # fmt: skip
    assert lines[3] == "error: 3 prompts could not be read and were skipped: see above"
    after = {path.stem: sidecar(path)["settings"]["seed"] for path in (tmp_path / "out").glob("*.wav")}
    assert after == {"hours": 1, "silent": 4, "stereo": 5, "telephone": 6}, "a skipped prompt keeps its seed"
    with pytest.raises(InputError, match=r"prompts that cannot be read: .*empty\.wav: empty.*picture\.wav: not audio"):
        generate(
            f"run={workspace.run()}", f"prompt=[{prompts}/empty.wav,{prompts}/picture.wav]", f"out={tmp_path / 'o'}"
        )
    with pytest.raises(InputError, match=r"prompts that cannot be read: .*empty\.wav"):
        generate(f"run={workspace.run()}", "mode=interpolate", f"prompt={prompts}", f"out={tmp_path / 'o.wav'}")


def test_other_codec_or_embedder_weights_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    for part, sha256 in (("codec", "0" * 64), ("embedder", "1" * 64)):
        run = tmp_path / part
        shutil.copytree(workspace.run(), run)
        config = json.loads((run / "export" / "config.json").read_text())
        trained, config[part]["weights"] = config[part]["weights"], sha256
        (run / "export" / "config.json").write_text(json.dumps(with_checksum(config)))
        with pytest.raises(InputError, match=f"{part}.weights '{sha256}', not '{trained}'"):
            generate(f"run={run}", f"out={tmp_path / 'o.wav'}")


def test_sidecar_of_changed_prompt_or_model_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    prompt, out = tmp_path / "p.wav", tmp_path / "o.wav"
    shutil.copy(workspace.tones[0], prompt)
    assert generate(f"run={workspace.run()}", f"prompt={prompt}", f"out={out}") == 0
    with pytest.raises(InputError, match="generated with weights of sha256"):
        generate(f"from={tmp_path / 'o.json'}", f"run={workspace.run('parallel')}")
    shutil.copy(workspace.tones[1], prompt)
    with pytest.raises(InputError, match=r"p\.wav has changed: restore"):
        generate(f"from={tmp_path / 'o.json'}")
    prompt.unlink()
    with pytest.raises(InputError, match=r"source .*p\.wav is missing"):
        generate(f"from={tmp_path / 'o.json'}")


def test_diverged_weights_give_an_error(workspace: Workspace, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(workspace.run(), run)
    model = CodecGPT.from_pretrained(run / "export")
    torch.nn.init.constant_(model.head.bias, torch.nan)
    model.save_pretrained(run / "export")
    with pytest.raises(InputError, match="logits are not finite"):
        generate(f"run={run}", f"out={tmp_path / 'o.wav'}")


def test_prompt_with_infinite_embedding_is_named() -> None:
    """A sample of 1e29 is finite, but its spectrum is not."""
    wav = np.zeros(24_000, np.float32)
    wav[500] = 1e29
    with pytest.raises(InputError, match=r"loud\.wav: not finite.*its peak is 1e\+29"):
        prompt_vector(load_embedder("encodecmae_tiny"), SourceAudio(Path("loud.wav"), "", wav), 24_000)


def test_unknown_training_length_needs_a_window(workspace: Workspace, tmp_path: Path) -> None:
    run = workspace.run(frames=None)
    with pytest.raises(InputError, match="give window=SECONDS"):
        generate(f"run={run}", "mode=continue", "seconds=2", f"out={tmp_path / 'o.wav'}")
    assert generate(f"run={run}", "mode=continue", "seconds=1", "window=0.2", f"out={tmp_path / 'o.wav'}") == 0
    assert count_samples(tmp_path / "o.wav") == 24_000 and FRAMES / 75 == 0.4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": [{"path": "x" * 5000, "sha256": ""}]}, "cannot be read|is missing"),
        ({"sources": [{"path": "/dev/zero", "sha256": ""}]}, "is missing"),
        ({"batch": {"rows": 10**9, "row": 0}}, "not a .json file of"),
        ({"batch": {"rows": 1, "row": 1}}, "not a .json file of"),
        ({"versions": None, "export": {"folder": 7, "sha256": ""}}, "not a .json file of"),
        ({"codes_sha256": "a\nb"}, "not a .json file of"),
        ({"complete": False, "frames": [-1], "seconds": 1}, "not a .json file of"),
        ({"complete": False, "frames": 3, "seconds": 1}, "not a .json file of"),
        ({"complete": False, "frames": [3], "seconds": "nan"}, "not a .json file of"),
        ({"format": [[]]}, "it has format"),
        ({"format": 1}, "it has format 1, but this version reads format 2"),
    ],
)
def test_invalid_sidecar_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    """It is refused before a model is loaded, in one line."""
    from pipeline.generation.sidecar import FORMAT, read

    valid = {
        "format": FORMAT, "settings": {"mode": "prompt"}, "sources": [], "batch": {"rows": 1, "row": 0},
        "codes_sha256": "", "export": {"folder": "x", "sha256": ""}, "versions": {}, "device": "cpu",
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(valid))
    assert read(tmp_path / "a.json").settings == {"mode": "prompt"}
    (tmp_path / "a.json").write_text(json.dumps({**valid, **change}))
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "a.json")
    assert "\n" not in str(caught.value)
