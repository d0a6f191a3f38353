"""`python -m pipeline.preprocess` writes codes and prompts of all readable inputs, and lists the others."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import webdataset as wds

from pipeline.audio import audio_io
from pipeline.audio.codecs import load_codec
from pipeline.audio.embedders import load_embedder
from pipeline.common.errors import InputError
from pipeline.data.build_state import PLAN
from pipeline.data.manifest import MANIFEST_NAME as MANIFEST
from pipeline.data.manifest import Manifest
from pipeline.data.shard import Sample, read_shard
from pipeline.data.storage import LocalStorage
from pipeline.data.verify import verify
from pipeline.preprocessing import runner
from tests.helpers.preprocess_runs import HERE, args, command, contents, make, tones

EVERYTHING_TO_TRAIN_ON = ("data.valid=0", "data.test=0", "data.min_seconds=0.01")


def samples(folder: Path) -> dict[str, Sample]:
    shards = [shard.name for part in Manifest.load(folder).splits.values() for shard in part]
    return {sample.key: sample for name in shards for sample in read_shard(folder / name)}


def make_tones(root: Path, out: Path | str, *overrides: str) -> int:
    return make("folder", root, out, *EVERYTHING_TO_TRAIN_ON, *overrides)


@pytest.fixture(scope="module")
def cache(nsynth_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("caches") / "nsynth"
    assert make("nsynth", nsynth_folder, out) == 0
    return out


def test_dataset_has_codes_and_prompt_of_every_clip(cache: Path, nsynth_folder: Path) -> None:
    manifest, result = Manifest.load(cache), samples(cache)
    assert [*verify(LocalStorage(cache))] == []
    codec, embedder = load_codec("encodec_embedded", 2), load_embedder("encodecmae_tiny")
    assert manifest.codec == codec.identity and manifest.embedder == embedder.identity
    for split in ("train", "valid", "test"):
        index = json.loads((nsynth_folder / f"nsynth-{split}" / "examples.json").read_text())
        assert manifest.num_samples(split) == len(index)
        for key, note in list(index.items())[:2]:
            path = f"nsynth-{split}/audio/{key}.wav"
            wav = torch.from_numpy(audio_io.read(nsynth_folder / path, rate=24_000))[None]
            assert wav.shape == (1, 96_000)
            assert np.array_equal(result[key].codes, codec.encode(wav[:, None])[0].numpy())
            assert np.array_equal(result[key].prompt, embedder.embed(wav)[0].numpy().astype(np.float16))
            info = result[key].metadata
            assert (info["path"], info["start"], info["duration"], info["split"]) == (path, 0.0, 4.0, split)
            assert info["labels"]["pitch"] == note["pitch"]


def test_webdataset_reads_a_dataset(cache: Path) -> None:
    urls = sorted(str(path) for path in cache.glob("train-*.tar"))
    result = list(wds.WebDataset(urls, shardshuffle=False).decode())
    ours = samples(cache)
    assert {f["__key__"] for f in result} == {k for k, s in ours.items() if s.metadata["split"] == "train"}
    assert all(np.array_equal(f["codes.npy"], ours[f["__key__"]].codes) for f in result)


def test_worker_processes_write_same_bytes(nsynth_folder: Path, tmp_path: Path) -> None:
    """Two encoder processes with a decode worker each, compared with a single thread."""
    alone, out = tmp_path / "alone", tmp_path / "out"
    done = command("pipeline.preprocess", *args("nsynth", nsynth_folder, alone, *HERE))
    assert done.returncode == 0, done.stderr
    done = command("pipeline.preprocess", *args("nsynth", nsynth_folder, out, "encoder_workers=2", "decode_workers=1"))
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(alone)
    assert done.stderr == "" and "next: deepspeed pipeline/train.py" in done.stdout


def test_packed_corpus_gives_same_samples(cache: Path, nsynth_folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    for split in ("train", "valid", "test"):
        shutil.make_archive(str(packed / f"nsynth-{split}.jsonwav"), "gztar", nsynth_folder, f"nsynth-{split}")
    assert make("nsynth", packed, tmp_path / "out") == 0
    result, expected = samples(tmp_path / "out"), samples(cache)
    assert result.keys() == expected.keys()
    for key, sample in result.items():
        assert np.array_equal(sample.codes, expected[key].codes)
        assert np.array_equal(sample.prompt, expected[key].prompt)
        assert sample.metadata["path"].startswith(f"nsynth-{sample.metadata['split']}.jsonwav.tar.gz::")


def test_jamendo_skips_broken_files(jamendo_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "jamendo"
    shutil.copytree(jamendo_folder, root)
    tracks = sorted(root.glob("*/*.mp3"))
    tracks[0].write_bytes(b"")
    tracks[1].write_bytes(b"<html>404</html>" * 100)
    broken = bytearray(tracks[2].read_bytes())
    broken[len(broken) // 2 : len(broken) // 2 + 300] = bytes(300)
    tracks[2].write_bytes(broken)
    tracks[3].unlink()
    (root / "99").mkdir(exist_ok=True)
    shutil.copy(tracks[4], root / "99" / "stranger.mp3")
    assert make("jamendo", root, tmp_path / "out", "data.segment_seconds=1", "data.min_seconds=0.5") == 0
    assert [*verify(LocalStorage(tmp_path / "out"))] == []
    result = samples(tmp_path / "out")
    paths = {sample.metadata["path"] for sample in result.values()}
    assert str(tracks[2].relative_to(root)) in paths, "a track with a broken frame is decoded after it"
    skipped = {row["path"].removeprefix(f"{root}/"): row["reason"] for row in Manifest.load(tmp_path / "out").skipped}
    for gone in (tracks[0], tracks[1], tracks[3], root / "99" / "stranger.mp3"):
        assert str(gone.relative_to(root)) in skipped and str(gone.relative_to(root)) not in paths


def odd_files(root: Path) -> tuple[set[str], dict[str, str]]:
    """A folder of unusual files: the names of good ones, and the start of the reason for each bad one."""
    root.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, rate: int = 24_000, shape: tuple[int, ...] = (12_000,), **options) -> Path:
        with (root / name).open("wb") as file:
            soundfile.write(file, 0.1 * rng.standard_normal(shape), rate, **{"format": "WAV", **options})
        return root / name

    write("stereo.wav", shape=(12_000, 2))
    write("8bit.wav", subtype="PCM_U8")
    write("24bit.wav", subtype="PCM_24")
    write("192k.wav", rate=192_000, shape=(96_000,))
    write("flac named wav.wav", format="FLAC")
    write("quoted ' and = é\n.wav")
    write(os.fsdecode(b"not utf-8 \xff.wav"))
    soundfile.write(root / "silence.wav", np.zeros(12_000), 24_000)
    good = {"stereo.wav", "8bit.wav", "24bit.wav", "192k.wav", "flac named wav.wav"}
    good |= {"quoted ' and = é\n.wav", "not utf-8 \\xff.wav"}
    (root / "empty.wav").write_bytes(b"")
    (root / "text.wav").write_text("this is no sound, whatever its name")
    whole = write("truncated.wav").read_bytes()
    (root / "truncated.wav").write_bytes(whole[: len(whole) // 2])
    nan = np.zeros(12_000, np.float32)
    nan[500] = np.nan
    soundfile.write(root / "nan.wav", nan, 24_000, subtype="FLOAT")
    soundfile.write(root / "no samples.wav", np.zeros(0), 24_000)
    write("long.wav", rate=1000, shape=(3_000,))
    (root / "loop").symlink_to(root)
    (root / "gone.wav").symlink_to(root / "nowhere")
    bad = {"empty.wav": "empty", "text.wav": "not audio", "truncated.wav": "truncated", "nan.wav": "not finite"}
    bad["silence.wav"] = "silent"
    return good, {**bad, "no samples.wav": "empty", "long.wav": "too long", "gone.wav": "", "loop": ""}


def test_unreadable_files_are_skipped_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = odd_files(tmp_path / "odd")
    assert make_tones(tmp_path / "odd", tmp_path / "out", "max_seconds=2") == 0
    manifest = Manifest.load(tmp_path / "out")
    assert {sample.metadata["path"] for sample in samples(tmp_path / "out").values()} == good
    skipped = {Path(row["path"]).name: row["reason"] for row in manifest.skipped}
    assert skipped.keys() == bad.keys()
    for name, reason in bad.items():
        assert skipped[name].startswith(reason), (name, skipped[name])
    assert [*verify(LocalStorage(tmp_path / "out"))] == []
    message = capsys.readouterr().out
    assert f"skipped: {len(bad)} inputs" in message and "1 silent" in message


@pytest.mark.parametrize("value", [1e29, 3e38])
def test_bad_clip_does_not_affect_others(tmp_path: Path, value: float) -> None:
    """The other clips of its batch have the usual codes and prompts."""
    root = tones(tmp_path / "in", 6)
    make_tones(root, tmp_path / "usual")
    loud = np.zeros(9_600, np.float32)
    loud[500] = value
    soundfile.write(root / "tone002.wav", loud, 24_000, subtype="FLOAT")
    make_tones(root, tmp_path / "out")
    result, usual = samples(tmp_path / "out"), samples(tmp_path / "usual")
    others = [key for key in usual if not key.startswith("tone002")]
    assert len(others) == 5 and all(result[key].metadata == usual[key].metadata for key in others)
    for key in others:
        assert np.array_equal(result[key].codes, usual[key].codes)
        assert np.array_equal(result[key].prompt, usual[key].prompt)


def test_dataset_without_clips_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, one line, no "next" command; in this run and the next."""
    root = tones(tmp_path / "in", 3)
    for path in root.iterdir():
        path.write_bytes(b"")
    for _ in range(2):
        assert make_tones(root, tmp_path / "out") == 1
        printed = capsys.readouterr()
        assert printed.err.startswith(f"error: {tmp_path / 'out'} has no clip to train on")
        assert printed.err.count("\n") == 1 and "3 empty" in printed.out and "next:" not in printed.out
    assert Manifest.load(tmp_path / "out").splits == {"train": []}
    assert len(Manifest.load(tmp_path / "out").skipped) == 3
    assert not [*(tmp_path / "out").glob("*.tar")]


def test_up_to_date_dataset_loads_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tones(tmp_path / "in", 8), tmp_path / "out"
    assert make_tones(root, out) == 0
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    monkeypatch.setattr(runner, "load_encoder", lambda *_: pytest.fail("a model was loaded"))
    assert make_tones(root, out) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()} == before


def test_unreadable_folder_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and times do not show that a folder can be read again."""
    root, out = tones(tmp_path / "in", 3), tmp_path / "out"
    tones(root / "below", 2, 0.5)
    real = os.scandir

    def scandir(path: str | int) -> object:
        if str(path).endswith("below"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", scandir)
        assert make_tones(root, out) == 0
        assert [row["reason"] for row in Manifest.load(out).skipped] == [
            "a folder that cannot be read: Permission denied"
        ]
    assert make_tones(root, out) == 0
    assert Manifest.load(out).num_samples("train") == 5 and not Manifest.load(out).skipped


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("codec.codebooks=4", r"codec\.codebooks=2 \(now 4\)"),
        ("samples_per_shard=9", r"samples_per_shard=6 \(now 9\)"),
        ("max_seconds=9", r"max_seconds=60 \(now 9\)"),
        ("data.segment_seconds=1", r"data\.segment_seconds=None \(now 1\)"),
    ],
)
def test_changed_settings_are_refused(tmp_path: Path, setting: str, message: str) -> None:
    root, out = tones(tmp_path / "in", 3), tmp_path / "out"
    make_tones(root, out)
    before = contents(out)
    with pytest.raises(InputError, match=message):
        make_tones(root, out, setting)
    assert contents(out) == before


def test_other_resampler_is_refused(tmp_path: Path) -> None:
    """Also if the dataset is complete: this version would write other codes and prompts."""
    root, out = tones(tmp_path / "in", 1), tmp_path / "out"
    make_tones(root, out)
    assert Manifest.load(out).data["resampler"] == "soxr HQ"
    plan = json.loads((out / PLAN).read_text())
    del plan["made"]["data"]["resampler"]  # as older versions, which resampled at soxr's VHQ
    (out / PLAN).write_text(json.dumps(plan))
    with pytest.raises(InputError, match=r"made with data\.resampler=None \(now soxr HQ\): give another out="):
        make_tones(root, out)


def written(out: Path, since: dict[str, int]) -> set[str]:
    """The shards whose files were replaced."""
    return {path.name for path in out.glob("*.tar") if since.get(path.name) != path.stat().st_ino}


def test_changed_inputs_rebuild_only_their_shards(tmp_path: Path) -> None:
    root, out = tones(tmp_path / "in", 40), tmp_path / "out"
    make_tones(root, out)
    shards = len([*out.glob("*.tar")])
    for change in (
        lambda: soundfile.write(root / "tone007.wav", np.sin(np.arange(9_600) / 5), 24_000),
        lambda: soundfile.write(root / "tone019b.wav", np.sin(np.arange(9_600) / 7), 24_000),
        lambda: (root / "tone030.wav").unlink(),
    ):
        inodes = {path.name: path.stat().st_ino for path in out.glob("*.tar")}
        change()
        assert make_tones(root, out) == 0
        assert 1 <= len(written(out, inodes)) <= shards // 2
        fresh = tmp_path / "fresh"
        make_tones(root, fresh)
        ours, theirs = Manifest.load(out), Manifest.load(fresh)
        assert [s.sha256 for s in ours.splits["train"]] == [s.sha256 for s in theirs.splits["train"]]
        assert [*verify(LocalStorage(out))] == []
        shutil.rmtree(fresh)


def test_manifest_is_absent_during_rebuild(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = tones(tmp_path / "in", 8), tmp_path / "out"
    make_tones(root, out)
    tones(root, 1, 0.3)
    monkeypatch.setattr(runner.build_state, "merge", lambda _: pytest.fail("stop"))
    with pytest.raises(pytest.fail.Exception, match="stop"):
        make_tones(root, out)
    assert not (out / MANIFEST).exists()
    monkeypatch.undo()
    assert make_tones(root, out) == 0
    seconds = {sample.metadata["path"]: sample.metadata["duration"] for sample in samples(out).values()}
    assert seconds["tone000.wav"] == pytest.approx(0.3)


@pytest.mark.parametrize("damage", ["shard gone", "shard cut", "index gone", "record gone", "record cut", "no plan"])
def test_damaged_files_are_rebuilt(tmp_path: Path, damage: str) -> None:
    root, out = tones(tmp_path / "in", 8), tmp_path / "out"
    make_tones(root, out)
    before = contents(out)
    shard, record = out / "train-000000.tar", out / "train-000000.done.json"
    if damage == "shard cut":
        shard.write_bytes(before[shard.name][:-512])
    elif damage == "record cut":
        record.write_bytes(before[record.name][:40])
        (out / MANIFEST).unlink()
    else:
        names = {"shard gone": shard.name, "index gone": "train-000000.index.npy", "record gone": record.name}
        (out / names.get(damage, PLAN)).unlink()
    assert make_tones(root, out) == 0
    assert contents(out) == before


def test_reembed_keeps_codes(tmp_path: Path) -> None:
    root, out = tones(tmp_path / "in", 8), tmp_path / "out"
    other = f"embedder.source={other_embedder(tmp_path)}"
    make_tones(root, out)
    old = samples(out)
    with pytest.raises(InputError, match=r"embedder\.weights=.*reembed=true computes new prompts"):
        make_tones(root, out, other)
    assert make_tones(root, out, other, "reembed=true") == 0
    new = samples(out)
    assert new.keys() == old.keys() and [*verify(LocalStorage(out))] == []
    for key, sample in new.items():
        assert np.array_equal(sample.codes, old[key].codes) and sample.metadata == old[key].metadata
        assert not np.array_equal(sample.prompt, old[key].prompt)
    make_tones(root, tmp_path / "fresh", other)
    assert contents(out) == contents(tmp_path / "fresh")


def test_reembed_encodes_no_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.audio.codecs.base import Codec

    root, out = tones(tmp_path / "in", 8), tmp_path / "out"
    make_tones(root, out)
    monkeypatch.setattr(Codec, "encode", lambda *_: pytest.fail("codes were encoded"))
    assert make_tones(root, out, f"embedder.source={other_embedder(tmp_path)}", "reembed=true") == 0


def other_embedder(folder: Path) -> Path:
    """The embedded embedder with other weights."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    import pipeline

    path = folder / "other.safetensors"
    with safe_open(Path(pipeline.__file__).parent / "assets" / "encodecmae_tiny.safetensors", "pt") as weights:
        other = {name: weights.get_tensor(name) * 1.01 for name in weights.keys()}  # noqa: SIM118
        save_file(other, path, weights.metadata())
    return path


def test_reembed_without_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reembed=true: there is no dataset at"):
        make_tones(tones(tmp_path / "in", 1), tmp_path / "out", "reembed=true")
    assert not (tmp_path / "out").exists()


def test_changed_notes_are_refused_before_rendering(tmp_path: Path) -> None:
    """The dataset and its notes stay unchanged when a setting was forgotten."""
    root, out = tmp_path / "notes", tmp_path / "out"
    few = ("data.programs=[0]", "data.pitches=60-63", "data.velocities=[100]", "data.split_by=note", "data.seconds=0.5")
    assert make("notes", root, out, *few, "data.clips=4") == 0
    before = contents(out)
    shutil.rmtree(root)
    with pytest.raises(InputError, match=r"out was made with data\.clips=4 \(now 3\)"):
        make("notes", root, out, *few, "data.clips=3", "reembed=true")
    assert contents(out) == before and not root.exists()


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))


def test_full_disk_is_resumed_by_next_run(tmp_path: Path) -> None:
    """A limit on file sizes has the same effect as a full disk."""
    root = tones(tmp_path / "in", 12, 0.2)
    make_tones(root, tmp_path / "whole")
    tones(root, 3, 30.0)
    out = tmp_path / "out"
    arguments = args("folder", root, out, *EVERYTHING_TO_TRAIN_ON, "encoder_workers=1", "decode_workers=0")
    full = command("pipeline.preprocess", *arguments, preexec_fn=limit_file_size)
    assert full.returncode == 1 and "Traceback" not in full.stderr
    assert "File too large" in full.stderr and "not written: train-0000" in full.stderr
    assert not [*out.glob("*.partial")] and not [*out.glob(".*.partial")]
    assert not (out / MANIFEST).exists()
    assert command("pipeline.preprocess", *arguments).returncode == 0
    assert [*verify(LocalStorage(out))] == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.root=/no/such/folder"], "data.root=/no/such/folder"),
        (["out=/proc/cache"], "cannot write to /proc/cache"),
        (["devices=cuda:99"], "devices=cuda:99"),
        (["encoder_workers=0"], "encoder_workers=0"),
        (["decode_workers=-1"], "decode_workers=-1"),
        (["batch=none"], "batch=none"),
        (["samples_per_shard=0"], "samples_per_shard=0"),
        (["part=4/3"], "part=4/3"),
        (["reembed=codes"], "reembed=codes"),
        (["codec.codebooks=9"], "codec.codebooks=9"),
    ],
)
def test_invalid_settings_are_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    root, out = tones(tmp_path / "in", 1), tmp_path / "out"
    with pytest.raises(InputError, match=message) as caught:
        make_tones(root, out, *overrides)
    assert "\n" not in str(caught.value)
    assert not [*out.glob("*")]


def test_usage_errors_are_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for arguments in (args("folder", tmp_path / "in", tmp_path / "out"), ["sampels_per_shard=3"]):
        done = command("pipeline.preprocess", *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
