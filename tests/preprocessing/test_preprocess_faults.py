"""After failures of the machine, the next run writes the same dataset as an undisturbed run."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.data.manifest import Manifest
from pipeline.preprocessing import runner
from pipeline.preprocessing.shard_planner import plan_shards
from tests.helpers.preprocess_runs import args, contents, make, start, tones

SETTINGS = ("data.valid=0", "data.test=0", "data.min_seconds=0.01")
ONE_SHARD = "samples_per_shard=40"
MODULE = "pipeline.preprocess"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 10 clips, with a subfolder of 3 that come last."""
    root = tones(tmp_path_factory.mktemp("faults") / "in", 10, 0.2)
    tones(root / "zz", 3, 0.3)  # no copies of the others
    return root


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a dataset built without faults."""
    out = tmp_path_factory.mktemp("caches") / "whole"
    assert make("folder", corpus, out, *SETTINGS) == 0
    return contents(out)


@pytest.fixture(scope="module")
def one_shard(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same, all clips in one shard."""
    out = tmp_path_factory.mktemp("caches") / "one"
    assert make("folder", corpus, out, *SETTINGS, ONE_SHARD) == 0
    return contents(out)


@pytest.fixture
def after_planning(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Call a function once, between planning and decoding."""
    with monkeypatch.context() as patched:

        def at(fault: Callable[[], object]) -> None:
            def planned(*arguments: object) -> object:
                plan = plan_shards(*arguments)  # type: ignore[arg-type]
                fault()
                patched.undo()
                return plan

            patched.setattr(runner, "plan_shards", planned)

        yield at


@pytest.mark.parametrize("gone", ["zz", "tone001.wav"])
def test_missing_file_is_retried_by_next_run(
    gone: str,
    corpus: Path,
    one_shard: dict[str, bytes],
    after_planning: Callable[[Callable[[], object]], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A mount that is away for a moment. Sizes and times do not show the next run that it is back."""
    out, away = tmp_path / "out", tmp_path / "away"
    lost = ["zz/tone000.wav", "zz/tone001.wav", "zz/tone002.wav"] if gone == "zz" else [gone]
    after_planning(lambda: (corpus / gone).rename(away))
    try:
        assert make("folder", corpus, out, *SETTINGS, ONE_SHARD) == 0
    finally:
        away.rename(corpus / gone)
    rows = Manifest.load(out).skipped
    assert [row["path"] for row in rows] == lost
    assert all(row["retry"] is True and row["reason"].startswith("missing") for row in rows)
    message = f"could not be read for now: {len(lost)} of these; run the same command again"
    assert message in capsys.readouterr().out
    assert make("folder", corpus, out, *SETTINGS, ONE_SHARD) == 0
    assert "nothing to do" not in capsys.readouterr().out
    assert contents(out) == one_shard
    assert make("folder", corpus, out, *SETTINGS, ONE_SHARD) == 0
    assert capsys.readouterr().out.startswith("nothing to do")


def test_shard_with_all_clips_missing_is_an_error(
    corpus: Path,
    whole: dict[str, bytes],
    after_planning: Callable[[Callable[[], object]], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No empty shard is written."""
    out, away = tmp_path / "out", tmp_path / "away"
    after_planning(lambda: corpus.rename(away))
    try:
        assert make("folder", corpus, out, *SETTINGS) == 1
    finally:
        away.rename(corpus)
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith(f"error: {out}: no clip of train-000000.tar and of")
    assert f"check that data.root={corpus} is there" in message and "run the same command again" in message
    assert not [*out.glob("*.done.json")] and not (out / "manifest.json").exists()
    assert make("folder", corpus, out, *SETTINGS) == 0
    assert contents(out) == whole


def test_reembed_encodes_clips_missing_before(
    corpus: Path,
    one_shard: dict[str, bytes],
    after_planning: Callable[[Callable[[], object]], None],
    tmp_path: Path,
) -> None:
    """Its codes are not in the shard whose codes are kept."""
    out, away = tmp_path / "out", tmp_path / "away"
    after_planning(lambda: (corpus / "tone003.wav").rename(away))
    try:
        make("folder", corpus, out, *SETTINGS, ONE_SHARD)
    finally:
        away.rename(corpus / "tone003.wav")
    assert make("folder", corpus, out, *SETTINGS, ONE_SHARD, "reembed=true") == 0
    assert contents(out) == one_shard


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))


def test_limit_on_file_sizes_changes_no_byte(corpus: Path, one_shard: dict[str, bytes], tmp_path: Path) -> None:
    """The limit also applies to shared memory: decoded audio is then sent through a pipe."""
    out = tmp_path / "out"
    arguments = args("folder", corpus, out, *SETTINGS, "encoder_workers=1", "decode_workers=1", ONE_SHARD)
    process = start(MODULE, *arguments, preexec_fn=limit_file_size)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    assert contents(out) == one_shard
