"""`python -m pipeline.generate`: every mode, told in a sidecar and made again from it; and what it refuses."""

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
from omegaconf import OmegaConf

from pipeline.audio.embedders import load_embedder
from pipeline.common.errors import InputError
from pipeline.common.files import with_checksum
from pipeline.config.cli import compose
from pipeline.generation.interpolation import crossfade
from pipeline.generation.prompts import SourceAudio, prompt_vector
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.patterns import NAMES
from tests.helpers.preprocess_runs import start
from tests.helpers.trained_run import FRAMES, Workspace, run_command

LONG = ("seconds=1.2", "window=0.2", "window_stride=0.1")


def generate(*words: str) -> int:
    return run_command("generate", *words)


def sidecar(wav: Path) -> dict:
    return json.loads(wav.with_suffix(".json").read_text())


def samples(wav: Path) -> int:
    sound = soundfile.info(wav)
    assert sound.samplerate == 24_000 and sound.channels == 1
    return sound.frames


@pytest.mark.parametrize("pattern", NAMES)
def test_seconds_are_exact_and_the_sidecar_tells_all(workspace: Workspace, tmp_path: Path, pattern: str) -> None:
    out, run = tmp_path / "b.wav", workspace.run(pattern)
    assert generate(f"run={run}", f"prompt={workspace.tones[0]}", f"out={out}", "seconds=0.701", "seed=3") == 0
    assert samples(out) == 16_824
    told = sidecar(out)
    assert told["settings"]["sampling"]["temperature"] == 0.7 and told["settings"]["seed"] == 3
    assert told["export"]["sha256"] and told["pattern"] == pattern and told["complete"]
    assert told["sources"][0]["path"] == str(workspace.tones[0]) and len(told["sources"][0]["sha256"]) == 64
    assert (
        told["codec"]["name"] == "encodec_embedded" and told["embedder"]["dim"] == 192 and "torch" in told["versions"]
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
def test_a_sidecar_makes_the_very_sound_again(workspace: Workspace, tmp_path: Path, mode: str) -> None:
    out, again = tmp_path / "out.wav", tmp_path / "again.wav"
    words = [word.format(*workspace.tones) for word in MODES[mode]]
    assert generate(f"run={workspace.run()}", f"out={out}", *words) == 0
    assert generate(f"from={out.with_suffix('.json')}", f"out={again}") == 0
    assert out.read_bytes() == again.read_bytes()
    assert {**sidecar(out), "sound": ""} == {**sidecar(again), "sound": ""}


def test_an_interpolations_sidecar_and_its_first_line_tell_the_length_of_the_file(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "strip.wav"
    words = (
        "mode=interpolate",
        f"prompt=[{workspace.tones[0]},{workspace.tones[1]}]",
        "steps=3",
        "crossfade_seconds=0.1",
        "seconds=0.2",
    )
    assert generate(f"run={workspace.run()}", *words, f"out={out}") == 0
    assert samples(out) == 9_600 and sidecar(out)["seconds"] == 0.4  # three clips of 0.2 s, two fades of 0.1 s
    assert "1 sound of 0.4 s" in capsys.readouterr().out


def test_an_interpolation_that_was_interrupted_is_made_again_as_far_as_it_went(
    workspace: Workspace, tmp_path: Path
) -> None:
    from pipeline.generation.loaded_run import load_run
    from pipeline.generation.request import build_requests, parse_sampling
    from pipeline.generation.runner import generate_files

    ends, out = [str(tone) for tone in workspace.tones[:2]], tmp_path / "strip.wav"
    words = ["mode=interpolate", f"prompt=[{','.join(ends)}]", "steps=3", "seconds=0.2", f"out={out}"]
    settings = OmegaConf.to_container(compose("generate", [f"run={workspace.run()}", *words]))
    assert isinstance(settings, dict)
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        if len(lines) == 4:  # in the second of the three clips
            raise KeyboardInterrupt

    instrument = load_run(workspace.run(), "cpu")
    sampling = parse_sampling(settings["sampling"])
    makes = generate_files(instrument, build_requests(settings, instrument), sampling, None, 1, stop, progress_frames=5)  # type: ignore[arg-type]
    kept = next(makes)
    with pytest.raises(KeyboardInterrupt):
        next(makes)
    assert not kept.is_complete and sidecar(out)["frames"] == [15, 5] and sidecar(out)["seconds"] == kept.seconds < 0.4
    assert generate(f"from={tmp_path / 'strip.json'}", f"out={tmp_path / 'again.wav'}") == 0
    assert (tmp_path / "again.wav").read_bytes() == out.read_bytes()


def test_samples_that_are_cut_off_at_full_scale_are_told_once(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.audio.codecs.base import Codec

    decode = Codec.decode
    words = (f"run={workspace.run()}", f"prompt={workspace.tones[0]}", "seconds=0.1", "n=2", f"out={tmp_path / 'o'}")
    for times, told in ((0.01, 0), (1e6, 1)):
        monkeypatch.setattr(Codec, "decode", lambda self, codes, times=times: times * decode(self, codes))
        assert generate(*words) == 0
        assert capsys.readouterr().err.count("samples are at full scale") == told


def test_what_a_sidecar_tells_is_not_typed_beside_it(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "o.wav"
    assert generate(f"run={workspace.run()}", f"prompt={workspace.tones[0]}", f"out={out}", "seconds=0.1") == 0
    words = (f"from={out.with_suffix('.json')}", f"out={tmp_path / 'again.wav'}")
    with pytest.raises(InputError, match=r"its own sampling\.top_k=, seconds=, seed=: omit these, or omit from="):
        generate(*words, "seconds=1", "seed=0", "sampling.top_k=3")
    assert not (tmp_path / "again.wav").exists()
    assert generate(*words, f"run={workspace.run()}", "device=cpu", "batch=3") == 0


def test_a_sidecar_works_from_any_folder_and_finds_prompts_beside_it(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    shutil.copytree(workspace.run(), home / "run")
    shutil.copy(workspace.tones[0], home / "p.wav")
    elsewhere.mkdir()
    monkeypatch.chdir(home)
    assert generate("run=run", "prompt=p.wav", "out=o.wav", "seconds=0.1") == 0
    monkeypatch.chdir(elsewhere)
    assert generate(f"from={home / 'o.json'}", "out=again.wav") == 0
    told = sidecar(home / "o.wav")
    told["export"]["folder"], told["sources"][0]["path"], told["settings"]["prompt"] = "run", "p.wav", "p.wav"
    (home / "o.json").write_text(json.dumps(told))  # as a download of the page
    assert generate(f"from={home / 'o.json'}", "out=again.wav") == 0
    for name in ("o.json", "p.wav"):
        (home / name).rename(elsewhere / name)
    with pytest.raises(InputError, match="it was generated by run, which does not exist: give run=RUN"):
        generate("from=o.json", "out=again.wav")
    assert generate("from=o.json", f"run={home / 'run'}", "out=again.wav") == 0
    assert (elsewhere / "again.wav").read_bytes() == (home / "o.wav").read_bytes()


def test_a_clip_of_many_is_the_clip_alone_and_its_sidecar_makes_it_alone(workspace: Workspace, tmp_path: Path) -> None:
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


def test_a_batch_of_any_size_gives_the_same_sounds(workspace: Workspace, tmp_path: Path) -> None:
    for batch in (1, 3, 5):
        words = (f"run={workspace.run()}", f"prompt={workspace.tones[0].parent}", f"out={tmp_path / str(batch)}")
        assert generate(*words, f"batch={batch}") == 0
    for path in sorted((tmp_path / "1").glob("*.wav")):
        assert path.read_bytes() == (tmp_path / "3" / path.name).read_bytes()
        assert path.read_bytes() == (tmp_path / "5" / path.name).read_bytes()


def test_an_interpolation_goes_from_the_first_prompts_clip_to_the_lasts_by_fades(
    workspace: Workspace, tmp_path: Path
) -> None:
    run, ends = f"run={workspace.run()}", []
    for i in (0, 1):
        assert generate(run, f"prompt={workspace.tones[i]}", f"out={tmp_path / f'{i}.wav'}") == 0
        ends.append(soundfile.read(tmp_path / f"{i}.wav", dtype="float32")[0])
    words = (
        "mode=interpolate",
        f"prompt=[{workspace.tones[0]},{workspace.tones[1]}]",
        "steps=4",
        "crossfade_seconds=0.1",
    )
    assert generate(run, *words, f"out={tmp_path / 'strip.wav'}") == 0
    strip, fade = soundfile.read(tmp_path / "strip.wav", dtype="float32")[0], 2400
    assert len(strip) == 4 * len(ends[0]) - 3 * fade
    kept = len(ends[0]) - fade
    assert np.allclose(strip[:kept], ends[0][:kept], atol=1e-4)
    assert np.allclose(strip[-kept:], ends[1][fade:], atol=1e-4)


def test_fades_keep_the_power_of_sounds_that_have_nothing_to_do_with_each_other() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 40_000)).astype(np.float32)
    joined = crossfade([a, b], 30_000)
    assert joined.std() == pytest.approx(1, abs=0.02) and joined[15_000:35_000].std() == pytest.approx(1, abs=0.02)


def test_an_extension_begins_with_the_codecs_own_sound(workspace: Workspace, tmp_path: Path) -> None:
    from pipeline.audio import audio_io
    from pipeline.audio.codecs import load_codec

    out = tmp_path / "e.wav"
    assert (
        generate(f"run={workspace.run()}", "mode=extend", f"audio={workspace.tones[2]}", "seconds=0.7", f"out={out}")
        == 0
    )
    codec, made = load_codec("encodec_embedded", 2), soundfile.read(out, dtype="float32")[0]
    heard = codec.decode(codec.encode(torch.from_numpy(audio_io.read(workspace.tones[2]))[None, None]))[0, 0].numpy()
    assert len(made) == 16_800 and np.allclose(made[:10_000], heard[:10_000].clip(-1, 1), atol=1e-4)


@pytest.mark.parametrize("mode", ["prompt", "continue", "morph"])
def test_what_is_streamed_is_what_is_made_whole(workspace: Workspace, tmp_path: Path, mode: str) -> None:
    words = [word.format(*workspace.tones) for word in MODES[mode]]
    for stream in ("false", "true"):
        out = tmp_path / f"{stream}.wav"
        assert generate(f"run={workspace.run()}", f"out={out}", *words, f"stream={stream}", "chunk=0.05") == 0
    whole, streamed = (soundfile.read(tmp_path / f"{stream}.wav")[0] for stream in ("false", "true"))
    assert np.abs(whole - streamed).max() < 1e-4
    assert sidecar(tmp_path / "true.wav")["codes_sha256"] == sidecar(tmp_path / "false.wav")["codes_sha256"]


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("stream", [pytest.param(False, marks=pytest.mark.slow), True])
def test_interrupted_it_keeps_what_is_made(workspace: Workspace, tmp_path: Path, stream: bool) -> None:
    """Ctrl-C in the middle of an hour: a sound that plays, and its sidecar, which says that it is not whole."""
    out = tmp_path / "long.wav"
    words = (
        "mode=continue",
        f"prompt={workspace.tones[0]}",
        "seconds=3600",
        "window=0.2",
        f"stream={stream}",
        "chunk=0.1",
    )
    process = start("pipeline.generate", f"run={workspace.run()}", f"out={out}", *words)
    assert "1 sound of 3600 s" in process.stdout.readline()  # type: ignore[union-attr]
    enough = cpu_seconds(process.pid) + 1.5  # of work: something is generated, however busy the machine
    while process.poll() is None and (
        cpu_seconds(process.pid) < enough or (stream and not (out.exists() and out.stat().st_size > 20_000))
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    rest, error = process.communicate()
    assert process.returncode == 130 and error.strip().endswith("interrupted") and "Traceback" not in error, error
    assert samples(out) > 1000 and soundfile.read(out)[0].std() > 0
    told, made = sidecar(out), samples(out) / 24_000
    assert not told["complete"] and told["seconds"] == made
    assert f"{out}  {made:.3f} s  incomplete: interrupted" in rest
    again = tmp_path / "again.wav"
    assert generate(f"from={out.with_suffix('.json')}", f"out={again}") == 0  # as much as was made
    assert again.read_bytes() == out.read_bytes() and {**sidecar(again), "sound": out.name} == told


# ---- what is refused ---------------------------------------------------------------------------------------------
def test_a_run_without_an_export_is_told_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"python -m pipeline\.export run={tmp_path}$"):
        generate(f"run={tmp_path}", f"out={tmp_path / 'b.wav'}")
    assert not (tmp_path / "b.wav").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seconds=0"], "seconds=0: give more than 0"),
        (
            ["seconds=2"],
            r"150 frames are 151 steps .*pattern=delay, but the model has positions for 1\.\.61: .*mode=continue",
        ),
        (["seconds=1e9", "mode=continue"], r"seconds=1000000000\.0: give more than 0, and 86400 \(a day\) at most"),
        (["crossfade_seconds=-1"], "crossfade_seconds=-1: give 0 or more"),
        (["batch=0"], "batch=0: give 1 or more"),
        (["mode=continue", "batch=-1"], "batch=-1: give 1 or more"),
        (["mode=waltz"], "mode=waltz: give prompt, interpolate, morph, continue, extend"),
        (["n=0"], "n=0"),
        (["prompt=nowhere.wav"], r"prompt=nowhere\.wav: there is no such file"),
        (["prompt='{0}*.nothing'"], "no file matches"),
        (["mode=interpolate", "prompt={0}"], "give 2 prompts or more, not 1"),
        (["mode=interpolate", "prompt=[{0},{1}]", "blend=cubic"], "blend=cubic: give linear or slerp"),
        (["mode=morph"], r"keyframes=None: give different times in ascending order"),
        (["mode=morph", "keyframes=[{{at: 1, prompt: {0}}}]"], "the first at 0"),
        (["mode=morph", "keyframes=[{{when: 1}}]"], r"give \[\{at: 0"),
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
def test_settings_that_make_no_sound_are_refused(
    workspace: Workspace, tmp_path: Path, words: list[str], message: str
) -> None:
    words = [word.format(*workspace.tones) for word in words]
    with pytest.raises(InputError, match=message):
        generate(f"run={workspace.run()}", f"out={tmp_path / 'o.wav'}", *words)
    assert not list(tmp_path.glob("*.wav"))


def test_prompts_of_every_kind(
    workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stereo, 8 kHz, silent and very long prompts are played; what cannot be read is named, the others are made."""
    prompts, wav = tmp_path / "prompts", soundfile.read(workspace.tones[0])[0]
    prompts.mkdir()
    soundfile.write(prompts / "stereo.wav", np.stack([wav, wav], 1), 24_000)
    soundfile.write(prompts / "telephone.wav", wav[::3], 8_000)
    soundfile.write(prompts / "silent.wav", np.zeros(24_000), 24_000)
    with soundfile.SoundFile(prompts / "hours.flac", "w", 8_000, 1) as file:
        for _ in range(60):
            file.write(np.zeros(8_000 * 60, np.int16))
    words = (f"run={workspace.run()}", f"prompt={prompts}", f"out={tmp_path / 'out'}", "prompt_seconds=2")
    started = time.process_time()
    assert generate(*words) == 0
    assert time.process_time() - started < 30, "of an hour, 2 s are read"
    assert {path.stem for path in (tmp_path / "out").glob("*.wav")} == {"stereo", "telephone", "silent", "hours"}
    assert f"{prompts / 'silent.wav'} is silent" in caplog.text
    generate(f"run={workspace.run()}", f"prompt={workspace.tones[0]}", f"out={tmp_path / 'mono.wav'}", "seed=2")
    mono, stereo = (sidecar(path)["codes_sha256"] for path in (tmp_path / "mono.wav", tmp_path / "out" / "stereo.wav"))
    assert sidecar(tmp_path / "out" / "stereo.wav")["settings"]["seed"] == 2 and mono == stereo
    (prompts / "empty.wav").write_bytes(b"")
    (prompts / "picture.wav").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    soundfile.write(prompts / "nothing.wav", np.zeros(0), 24_000)
    shutil.rmtree(tmp_path / "out")
    assert generate(*words) == 1
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


def test_weights_that_are_not_those_of_training_are_refused_by_both_hashes(
    workspace: Workspace, tmp_path: Path
) -> None:
    for part, others in (("codec", "0" * 64), ("embedder", "1" * 64)):
        run = tmp_path / part
        shutil.copytree(workspace.run(), run)
        config = json.loads((run / "export" / "config.json").read_text())
        real = config[part]["weights"]
        config[part]["weights"] = others
        (run / "export" / "config.json").write_text(json.dumps(with_checksum(config)))
        with pytest.raises(InputError, match=f"{part}.weights '{others}', not '{real}'"):
            generate(f"run={run}", f"out={tmp_path / 'o.wav'}")


def test_a_sidecar_whose_prompt_or_model_has_changed_is_refused(workspace: Workspace, tmp_path: Path) -> None:
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


def test_weights_that_diverged_are_told_in_one_line(workspace: Workspace, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(workspace.run(), run)
    model = CodecGPT.from_pretrained(run / "export")
    torch.nn.init.constant_(model.head.bias, torch.nan)
    model.save_pretrained(run / "export")
    with pytest.raises(InputError, match="logits are not finite"):
        generate(f"run={run}", f"out={tmp_path / 'o.wav'}")


def test_a_prompt_whose_embedding_is_not_finite_is_named() -> None:
    """One sample of 1e29 is a number, but no spectrum of it is."""
    wav = np.zeros(24_000, np.float32)
    wav[500] = 1e29
    with pytest.raises(InputError, match=r"loud\.wav: not finite.*its peak is 1e\+29"):
        prompt_vector(load_embedder("encodecmae_tiny"), SourceAudio(Path("loud.wav"), "", wav))


def test_a_piece_longer_than_the_clips_of_training_needs_a_window_where_their_length_is_not_known(
    workspace: Workspace, tmp_path: Path
) -> None:
    run = workspace.run(frames=None)
    with pytest.raises(InputError, match="give window=SECONDS"):
        generate(f"run={run}", "mode=continue", "seconds=2", f"out={tmp_path / 'o.wav'}")
    assert generate(f"run={run}", "mode=continue", "seconds=1", "window=0.2", f"out={tmp_path / 'o.wav'}") == 0
    assert samples(tmp_path / "o.wav") == 24_000 and FRAMES / 75 == 0.4


@pytest.mark.parametrize(
    ("change", "told"),
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
def test_a_sidecar_that_says_what_none_says_is_refused(tmp_path: Path, change: dict, told: str) -> None:
    """Before a model is loaded, and in one line."""
    from pipeline.generation.sidecar import read

    whole = {
        "format": 2, "settings": {"mode": "prompt"}, "sources": [], "batch": {"rows": 1, "row": 0}, "codes_sha256": "",
        "export": {"folder": "x", "sha256": ""}, "versions": {}, "device": "cpu",
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(whole))
    assert read(tmp_path / "a.json") == whole
    (tmp_path / "a.json").write_text(json.dumps({**whole, **change}))
    with pytest.raises(InputError, match=told) as caught:
        read(tmp_path / "a.json")
    assert "\n" not in str(caught.value)
