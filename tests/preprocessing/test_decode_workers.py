"""Readers decode ahead, in constant memory, and whatever a file does to them costs that file only."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.audio import audio_io
from pipeline.common.errors import MachineError
from pipeline.corpora import Clip, fingerprint
from pipeline.preprocessing.decode import (
    CHANGED,
    MISSING,
    DecodedBatch,
    DecodeOptions,
    Job,
    Skipped,
    decode_job,
    read_error,
)
from pipeline.preprocessing.decode_workers import DecodeWorkerPool
from pipeline.preprocessing.encoder import prefetch
from pipeline.preprocessing.shard_planner import PlannedClip

HOW = DecodeOptions(rate=24_000, max_seconds=4.0, batch=2, timeout=0)


def item(path: Path, start: float = 0.0, duration: float | None = None, key: str = "k") -> PlannedClip:
    clip = Clip(key, str(path), "train", start, duration)
    return PlannedClip(clip, path.name, fingerprint(clip))


def tone(path: Path, seconds: float = 1.0, rate: int = 24_000) -> Path:
    wav = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, wav, rate, subtype="FLOAT", format="WAV")
    return path


def heard(items: list[PlannedClip], how: DecodeOptions = HOW) -> list:
    return [found for part in decode_job(Job("s", 0, items), how) for found in part.clips]


def test_clips_are_what_the_audio_room_reads(tmp_path: Path) -> None:
    one, other = tone(tmp_path / "a.wav", 1.0, 16_000), tone(tmp_path / "b.wav", 2.0)
    found = heard([item(one), item(other, 0.5, 1.0)])
    assert np.array_equal(found[0], audio_io.read(one)) and len(found[0]) == 24_000
    assert np.array_equal(found[1], audio_io.read(other, start=0.5, duration=1.0))


def test_segments_of_one_recording_are_decoded_once_and_bad_ones_told(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav", 3.0)
    found = heard([item(path, start, 1.0) for start in (0.0, 1.0, 2.5, 5.0)])
    assert [len(f) for f in found[:3]] == [24_000, 24_000, 12_000]
    assert found[3].reason.startswith("empty") and not found[3].retry


@pytest.mark.parametrize("rate", [24_000, 16_000])
def test_segments_that_are_not_finite_take_no_others_along(tmp_path: Path, rate: int) -> None:
    """Resampling spreads a NaN over the samples around it, which here are in its own second."""
    path = tone(tmp_path / "a.wav", 6.0, rate)
    wav = soundfile.read(path, dtype="float32")[0]
    wav[round(1.5 * rate)], wav[round(4.5 * rate)] = np.nan, np.inf
    soundfile.write(path, wav, rate, subtype="FLOAT")
    found = heard([item(path, float(start), 1.0) for start in range(6)])
    assert [i for i, f in enumerate(found) if isinstance(f, Skipped)] == [1, 4]
    assert found[1].reason.startswith("not finite") and not found[1].retry
    assert all(np.array_equal(found[i], audio_io.read(tone(path, 6.0, rate))[24_000 * i :][:24_000]) for i in (0, 3, 5))


def test_a_clip_longer_than_allowed_is_set_aside_without_reading_all_of_it(tmp_path: Path) -> None:
    exact, long = tone(tmp_path / "a.wav", 4.0), tone(tmp_path / "b.wav", 4.001)
    found = heard([item(exact), item(long), item(long, 0.0, 9.0), item(long, 0.0, 2.0)])
    assert len(found[0]) == 96_000 and len(found[3]) == 48_000
    assert all(found[i].reason.startswith("too long") and not found[i].retry for i in (1, 2))


def test_a_file_that_changed_since_it_was_listed_is_set_aside(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav")
    items = [item(path)]
    tone(path, 2.0)
    assert heard(items) == [CHANGED]


def test_a_file_that_changes_while_it_is_read_is_set_aside(tmp_path: Path) -> None:
    """The cuts that were read before the change stand; the others are of no known file."""
    path = tone(tmp_path / "a.wav", 3.0)
    items = [item(path, float(i), 1.0, f"k{i}") for i in range(3)]
    reading = decode_job(Job("s", 0, items), DecodeOptions(24_000, 4.0, batch=1, timeout=0))
    assert len(next(reading).clips[0]) == 24_000
    os.utime(path, (1, 1))
    assert [part.clips for part in reading] == [[CHANGED], [CHANGED]]


def test_a_file_that_is_gone_is_set_aside(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav")
    items = [item(path)]
    path.unlink()
    assert heard(items) == [MISSING] and MISSING.retry and CHANGED.retry


def test_what_the_system_cannot_read_is_no_fault_of_the_file(tmp_path: Path) -> None:
    """A disk that fails, which a decoder takes for damage: here a file whose every read is an input/output error."""
    (broken,) = heard([item(Path("/proc/self/mem"))])
    assert broken.retry and broken.reason.startswith("unreadable")
    assert read_error("/proc/self/mem") == "Input/output error" and read_error("/dev/zero") is None
    path = tone(tmp_path / "a.wav")
    job = Job("s", 0, [item(path), item(path)], str(tmp_path / "gone"), ((0, 9), (0, 9)))
    assert [found.retry for part in decode_job(job, HOW) for found in part.clips] == [True, True]
    path.write_text("no sound")
    assert [found.retry for found in heard([item(path)])] == [False]


def test_bytes_that_wait_in_a_file_are_read_from_there(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav")
    held = tmp_path / "held"
    held.write_bytes(b"xxx" + path.read_bytes())
    job = Job("s", 0, [item(path)], str(held), ((3, path.stat().st_size),))
    assert np.array_equal(next(decode_job(job, HOW)).clips[0], audio_io.read(path))


def read_all(readers: DecodeWorkerPool, jobs: list[Job]) -> list[DecodedBatch]:
    """What a crew does, in small: a job for each time one is asked for."""
    inbox, ours = Pipe()
    waiting = iter(jobs)
    try:
        return list(readers.decode(inbox, lambda: ours.send(next(waiting, None))))
    finally:
        readers.close()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_all_jobs_come_back_in_parts_that_the_plan_decides(tmp_path: Path, count: int) -> None:
    items = [item(tone(tmp_path / f"{i}.wav", 0.1 + i / 100), key=f"k{i}") for i in range(10)]
    jobs = [Job("s", 0, items[:5]), Job("s", 5, items[5:7]), Job("t", 0, items[7:])]
    found = read_all(DecodeWorkerPool(count, HOW), jobs)
    assert sorted((p.shard, p.first, len(p.clips)) for p in found) == [
        ("s", 0, 2), ("s", 2, 2), ("s", 4, 1), ("s", 5, 2), ("t", 0, 2), ("t", 2, 1),
    ]  # fmt: skip
    lengths = {(p.shard, p.first + i): len(wav) for p in found for i, wav in enumerate(p.clips)}
    assert lengths == {("s" if i < 7 else "t", i % 7): 2400 + 240 * i for i in range(10)}


def deadly(job: Job, how: DecodeOptions) -> Iterator[DecodedBatch]:
    """As a decoder with a bug: one file takes the whole process down."""
    for i, one in enumerate(job.clips):
        if "deadly" in one.path:
            os.kill(os.getpid(), signal.SIGSEGV)
        yield DecodedBatch(job.shard, job.first + i, [Skipped(one.path)])


def test_a_decoder_that_dies_costs_the_clip_that_killed_it_only(tmp_path: Path) -> None:
    names = ["a", "b", "deadly", "c", "deadly too", "d"]
    items = [PlannedClip(Clip(name, name, "train"), name, "") for name in names]
    found = read_all(DecodeWorkerPool(2, HOW, deadly), [Job("s", 0, items), Job("t", 0, items[:2])])
    reasons = {(part.shard, part.first): part.clips[0] for part in found}
    assert not any(skipped.retry for skipped in reasons.values()), "a crash is the file's own"
    texts = {key: skipped.reason for key, skipped in reasons.items()}
    assert {key for key, text in texts.items() if "ends the process that decodes it" in text} == {("s", 2), ("s", 4)}
    assert sorted(text for text in texts.values() if len(text) == 1) == ["a", "a", "b", "b", "c", "d"]


def slow(job: Job, how: DecodeOptions) -> Iterator[DecodedBatch]:
    """One long file among short ones."""
    for i, one in enumerate(job.clips):
        time.sleep(1.5 if one.path == "long" else 0)
        yield DecodedBatch(job.shard, job.first + i, [Skipped(one.path)])


def test_one_long_file_does_not_hold_up_the_rest() -> None:
    jobs = [Job(name, 0, [PlannedClip(Clip(name, name, "train"), name, "")]) for name in ("long", *"abcdefgh")]
    found = [part.shard for part in read_all(DecodeWorkerPool(2, HOW, slow), jobs)]
    assert found[-1] == "long" and sorted(found[:-1]) == list("abcdefgh")


def test_a_reader_that_is_ahead_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a job is, no more of it is decoded than a pipe and a hand hold."""
    path = tone(tmp_path / "a.wav", 60.0)
    count = 15
    items = [item(path, 4.0 * i, 4.0, f"k{i}") for i in range(count)]
    inbox, ours = Pipe()
    asked = threading.Event()
    monkeypatch.setenv("COUNTED", str(tmp_path / "counted"))  # the reader inherits it
    readers = DecodeWorkerPool(1, DecodeOptions(24_000, 4.0, 1, 0), counting)
    stream = prefetch(readers.decode(inbox, asked.set))
    threading.Thread(target=lambda: (asked.wait(), ours.send(Job("s", 0, items)), ours.send(None))).start()
    next(stream)
    time.sleep(1.0)
    assert 1 <= len((tmp_path / "counted").read_text()) <= 6 < count
    assert len(list(stream)) == count - 1
    readers.close()


def counting(job: Job, how: DecodeOptions) -> Iterator[DecodedBatch]:
    for part in decode_job(job, how):
        tried()
        yield part


def tried() -> None:
    """Count, in a process of its own."""
    with Path(os.environ["COUNTED"]).open("a") as file:
        file.write(".")


def test_what_goes_wrong_ahead_comes_out_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise RuntimeError("broken")

    stream = prefetch(items())
    assert next(stream) == 1
    with pytest.raises(RuntimeError, match="broken"):
        next(stream)


def stuck(job: Job, how: DecodeOptions) -> Iterator[DecodedBatch]:
    """As a decoder that never comes back from C, and lets no other thread of its process run."""
    real = audio_io._open

    def opened(source: object, keep: bool) -> object:
        if "stuck" in str(source):
            tried()
            ctypes.PyDLL(None).sleep(600)
        return real(source, keep)  # type: ignore[arg-type]

    audio_io._open = opened  # type: ignore[assignment]
    return decode_job(job, how)


def test_a_decoder_that_hangs_costs_its_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clips are given up together: each by itself would take as long."""
    monkeypatch.setenv("COUNTED", str(tmp_path / "counted"))
    good, bad = tone(tmp_path / "a.wav", 2.0), tone(tmp_path / "stuck.wav", 4.0)
    items = [item(good), *(item(bad, 0.5 * i, 0.5, f"k{i}") for i in range(8)), item(good, 0.0, 1.0)]
    found = read_all(
        DecodeWorkerPool(1, replace(HOW, timeout=2.0), stuck), [Job("s", 0, items), Job("t", 0, items[:1])]
    )
    texts = {(part.shard, part.first + i): heard for part in found for i, heard in enumerate(part.clips)}
    slow = {key for key, text in texts.items() if isinstance(text, Skipped)}
    assert slow == {("s", i) for i in range(1, 9)} and len(texts) == 11
    assert {texts[key] for key in slow} == {
        Skipped("too slow: reading it took more than decode_timeout=2, twice", retry=True)
    }
    assert len(texts["s", 9]) == 24_000 and len(texts["t", 0]) == 48_000
    assert len((tmp_path / "counted").read_text()) == 2


def test_reading_has_no_limit_while_it_waits_to_be_heard(tmp_path: Path) -> None:
    """A reader that is ahead of a slow encoder is not slow."""
    items = [item(tone(tmp_path / f"{i}.wav", 0.1), key=f"k{i}") for i in range(6)]
    inbox, ours = Pipe()
    readers = DecodeWorkerPool(1, replace(HOW, batch=1, timeout=1.0))
    jobs = iter([Job("s", 0, items)])
    found = []
    for part in readers.decode(inbox, lambda: ours.send(next(jobs, None))):
        time.sleep(0.7)
        found.append(part)
    readers.close()
    assert [len(part.clips[0]) for part in found] == [2400] * 6


def once_deadly(job: Job, how: DecodeOptions) -> Iterator[DecodedBatch]:
    """As a machine that is short of memory for a moment: the first to read a clip is killed."""
    for i, one in enumerate(job.clips):
        mark = Path(os.environ["KILLED"]) / one.path
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield DecodedBatch(job.shard, job.first + i, [Skipped(one.path)])


def always_killed(job: Job, how: DecodeOptions) -> Iterator[DecodedBatch]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield from ()


def test_a_clip_whose_reader_was_killed_is_tried_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILLED", str(tmp_path))
    alone = [Job("s", 0, [PlannedClip(Clip("a", "a", "train"), "a", "")])]
    assert [part.clips for part in read_all(DecodeWorkerPool(1, HOW, once_deadly), alone)] == [[Skipped("a")]]
    (told,) = read_all(DecodeWorkerPool(1, HOW, always_killed), alone)
    killed = "unreadable: the process that decodes it was killed twice, as by a machine out of memory"
    assert told.clips == [Skipped(killed, retry=True)]


def test_a_reader_that_is_killed_while_it_has_nothing_to_do_is_replaced(tmp_path: Path) -> None:
    items = [item(tone(tmp_path / f"{i}.wav", 0.1), key=f"k{i}") for i in range(4)]
    readers = DecodeWorkerPool(1, HOW)
    readers._workers[0].process.kill()
    readers._workers[0].process.join()
    assert sum(len(part.clips) for part in read_all(readers, [Job("s", 0, items)])) == 4


class Stillborn:
    """A way to read that kills the first so many processes to which it is handed, before they read anything."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self, job: Job, how: DecodeOptions) -> Iterator[DecodedBatch]:
        return decode_job(job, how)

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__dict__ = state
        tried()
        if len(Path(os.environ["COUNTED"]).read_text()) <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_reader_that_is_killed_before_it_begins_is_no_clip_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often, as long as one begins some time: else it is told, and no clip is set aside."""
    items = [item(tone(tmp_path / f"{i}.wav", 0.1), key=f"k{i}") for i in range(3)]
    monkeypatch.setenv("COUNTED", str(tmp_path / "counted"))
    found = read_all(DecodeWorkerPool(1, HOW, Stillborn(4)), [Job("s", 0, items)])
    assert [len(wav) for part in found for wav in part.clips] == [2400] * 3
    with pytest.raises(MachineError, match="10 decode workers in a row ended before they started.*decode_workers=0"):
        read_all(DecodeWorkerPool(1, HOW, Stillborn(1000)), [Job("s", 0, items)])
