"""Decode workers prefetch in constant memory; a file that crashes or hangs them costs that file only."""

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

OPTIONS = DecodeOptions(rate=24_000, max_seconds=4.0, batch=2, timeout=0)


def item(path: Path, start: float = 0.0, duration: float | None = None, key: str = "k") -> Clip:
    clip = Clip(key, str(path), "train", start, duration)
    return replace(clip, fingerprint=fingerprint(clip))


def tone(path: Path, seconds: float = 1.0, rate: int = 24_000) -> Path:
    wav = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, wav, rate, subtype="FLOAT", format="WAV")
    return path


def audio_of(batch: DecodedBatch) -> list:
    """The audio of each clip of a batch, or why it has none."""
    return [clip.audio for clip in batch.clips]


def decode_all(items: list[Clip], options: DecodeOptions = OPTIONS) -> list:
    return [audio for part in decode_job(Job("s", 0, items), options) for audio in audio_of(part)]


def test_decoded_clips_match_audio_io(tmp_path: Path) -> None:
    one, other = tone(tmp_path / "a.wav", 1.0, 16_000), tone(tmp_path / "b.wav", 2.0)
    decoded = decode_all([item(one), item(other, 0.5, 1.0)])
    assert np.array_equal(decoded[0], audio_io.read(one, rate=24_000)) and len(decoded[0]) == 24_000
    assert np.array_equal(decoded[1], audio_io.read(other, start=0.5, duration=1.0, rate=24_000))


def test_segments_past_the_end_are_skipped(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav", 3.0)
    decoded = decode_all([item(path, start, 1.0) for start in (0.0, 1.0, 2.5, 5.0)])
    assert [len(f) for f in decoded[:3]] == [24_000, 24_000, 12_000]
    assert decoded[3].reason.startswith("empty") and not decoded[3].retry


@pytest.mark.parametrize("rate", [24_000, 16_000])
def test_non_finite_segment_is_skipped_alone(tmp_path: Path, rate: int) -> None:
    """Resampling spreads a NaN over the samples around it, which here are in its own second."""
    path = tone(tmp_path / "a.wav", 6.0, rate)
    wav = soundfile.read(path, dtype="float32")[0]
    wav[round(1.5 * rate)], wav[round(4.5 * rate)] = np.nan, np.inf
    soundfile.write(path, wav, rate, subtype="FLOAT")
    decoded = decode_all([item(path, float(start), 1.0) for start in range(6)])
    assert [i for i, f in enumerate(decoded) if isinstance(f, Skipped)] == [1, 4]
    assert decoded[1].reason.startswith("not finite") and not decoded[1].retry
    assert all(
        np.array_equal(decoded[i], audio_io.read(tone(path, 6.0, rate), rate=24_000)[24_000 * i :][:24_000])
        for i in (0, 3, 5)
    )


def test_too_long_clip_is_skipped(tmp_path: Path) -> None:
    exact, long = tone(tmp_path / "a.wav", 4.0), tone(tmp_path / "b.wav", 4.001)
    decoded = decode_all([item(exact), item(long), item(long, 0.0, 9.0), item(long, 0.0, 2.0)])
    assert len(decoded[0]) == 96_000 and len(decoded[3]) == 48_000
    assert all(decoded[i].reason.startswith("too long") and not decoded[i].retry for i in (1, 2))


def test_changed_file_is_skipped(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav")
    items = [item(path)]
    tone(path, 2.0)
    assert decode_all(items) == [CHANGED]


def test_file_changed_while_decoding_is_skipped(tmp_path: Path) -> None:
    """Segments decoded before the change are kept; the later ones are skipped."""
    path = tone(tmp_path / "a.wav", 3.0)
    items = [item(path, float(i), 1.0, f"k{i}") for i in range(3)]
    reading = decode_job(Job("s", 0, items), DecodeOptions(24_000, 4.0, batch=1, timeout=0))
    assert len(audio_of(next(reading))[0]) == 24_000
    os.utime(path, (1, 1))
    assert [audio_of(part) for part in reading] == [[CHANGED], [CHANGED]]


def test_missing_file_is_skipped(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav")
    items = [item(path)]
    path.unlink()
    assert decode_all(items) == [MISSING] and MISSING.retry and CHANGED.retry


def test_read_errors_are_retried(tmp_path: Path) -> None:
    """A failing disk looks like damage to a decoder: here a file whose every read is an input/output error."""
    (broken,) = decode_all([item(Path("/proc/self/mem"))])
    assert broken.retry and broken.reason.startswith("unreadable")
    assert read_error("/proc/self/mem") == "Input/output error" and read_error("/dev/zero") is None
    path = tone(tmp_path / "a.wav")
    job = Job("s", 0, [item(path), item(path)], str(tmp_path / "gone"), ((0, 9), (0, 9)))
    assert [skipped.retry for part in decode_job(job, OPTIONS) for skipped in audio_of(part)] == [True, True]
    path.write_text("no sound")
    assert [decoded.retry for decoded in decode_all([item(path)])] == [False]


def test_archive_contents_are_read_from_file(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav")
    contents = tmp_path / "held"
    contents.write_bytes(b"xxx" + path.read_bytes())
    job = Job("s", 0, [item(path)], str(contents), ((3, path.stat().st_size),))
    assert np.array_equal(audio_of(next(decode_job(job, OPTIONS)))[0], audio_io.read(path, rate=24_000))


def read_all(pool: DecodeWorkerPool, jobs: list[Job]) -> list[DecodedBatch]:
    """Run all jobs through a pool, one for each request."""
    inbox, ours = Pipe()
    waiting = iter(jobs)
    try:
        return list(pool.decode(inbox, lambda: ours.send(next(waiting, None))))
    finally:
        pool.close()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_batches_depend_on_the_plan_alone(tmp_path: Path, count: int) -> None:
    items = [item(tone(tmp_path / f"{i}.wav", 0.1 + i / 100), key=f"k{i}") for i in range(10)]
    jobs = [Job("s", 0, items[:5]), Job("s", 5, items[5:7]), Job("t", 0, items[7:])]
    decoded = read_all(DecodeWorkerPool(count, OPTIONS), jobs)
    assert sorted((p.shard, p.first, len(p.clips)) for p in decoded) == [
        ("s", 0, 2), ("s", 2, 2), ("s", 4, 1), ("s", 5, 2), ("t", 0, 2), ("t", 2, 1),
    ]  # fmt: skip
    lengths = {(p.shard, p.first + i): len(wav) for p in decoded for i, wav in enumerate(audio_of(p))}
    assert lengths == {("s" if i < 7 else "t", i % 7): 2400 + 240 * i for i in range(10)}


def deadly(job: Job, options: DecodeOptions) -> Iterator[DecodedBatch]:
    """A decoder with a bug: one file crashes the process."""
    for i, one in enumerate(job.clips):
        if "deadly" in one.path:
            os.kill(os.getpid(), signal.SIGSEGV)
        yield job.single_clip(i).skip(Skipped(one.path))


def test_crash_skips_only_its_clip(tmp_path: Path) -> None:
    names = ["a", "b", "deadly", "c", "deadly too", "d"]
    items = [Clip(name, name, "train") for name in names]
    decoded = read_all(DecodeWorkerPool(2, OPTIONS, deadly), [Job("s", 0, items), Job("t", 0, items[:2])])
    reasons = {(part.shard, part.first): audio_of(part)[0] for part in decoded}
    assert not any(skipped.retry for skipped in reasons.values()), "a crash is the file's own"
    texts = {key: skipped.reason for key, skipped in reasons.items()}
    assert {key for key, text in texts.items() if "ends the process that decodes it" in text} == {("s", 2), ("s", 4)}
    assert sorted(text for text in texts.values() if len(text) == 1) == ["a", "a", "b", "b", "c", "d"]


def slow(job: Job, options: DecodeOptions) -> Iterator[DecodedBatch]:
    """One long file among short ones."""
    for i, one in enumerate(job.clips):
        time.sleep(1.5 if one.path == "long" else 0)
        yield job.single_clip(i).skip(Skipped(one.path))


def test_long_file_does_not_block_others() -> None:
    jobs = [Job(name, 0, [Clip(name, name, "train")]) for name in ("long", *"abcdefgh")]
    decoded = [part.shard for part in read_all(DecodeWorkerPool(2, OPTIONS, slow), jobs)]
    assert decoded[-1] == "long" and sorted(decoded[:-1]) == list("abcdefgh")


def test_worker_ahead_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a few batches of a long job are decoded in advance."""
    path = tone(tmp_path / "a.wav", 60.0)
    count = 15
    items = [item(path, 4.0 * i, 4.0, f"k{i}") for i in range(count)]
    inbox, ours = Pipe()
    is_requested = threading.Event()
    monkeypatch.setenv("COUNTED", str(tmp_path / "counted"))  # the reader inherits it
    pool = DecodeWorkerPool(1, DecodeOptions(24_000, 4.0, 1, 0), counting)
    stream = prefetch(pool.decode(inbox, is_requested.set))
    threading.Thread(target=lambda: (is_requested.wait(), ours.send(Job("s", 0, items)), ours.send(None))).start()
    next(stream)
    time.sleep(1.0)
    assert 1 <= len((tmp_path / "counted").read_text()) <= 6 < count
    assert len(list(stream)) == count - 1
    pool.close()


def counting(job: Job, options: DecodeOptions) -> Iterator[DecodedBatch]:
    for part in decode_job(job, options):
        count_attempt()
        yield part


def count_attempt() -> None:
    """Count an attempt, in any process."""
    with Path(os.environ["COUNTED"]).open("a") as file:
        file.write(".")


def test_prefetch_raises_errors_in_order() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise RuntimeError("broken")

    stream = prefetch(items())
    assert next(stream) == 1
    with pytest.raises(RuntimeError, match="broken"):
        next(stream)


def stuck(job: Job, options: DecodeOptions) -> Iterator[DecodedBatch]:
    """A decoder that hangs in C code and lets no other thread run."""
    real = audio_io._open

    def opened(source: object, *rest: object) -> object:
        if "stuck" in str(source):
            count_attempt()
            ctypes.PyDLL(None).sleep(600)
        return real(source, *rest)  # type: ignore[arg-type]

    audio_io._open = opened  # type: ignore[assignment]
    return decode_job(job, options)


def test_hanging_decoder_skips_only_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All clips of the file are skipped together: each would take as long."""
    monkeypatch.setenv("COUNTED", str(tmp_path / "counted"))
    good, bad = tone(tmp_path / "a.wav", 2.0), tone(tmp_path / "stuck.wav", 4.0)
    items = [item(good), *(item(bad, 0.5 * i, 0.5, f"k{i}") for i in range(8)), item(good, 0.0, 1.0)]
    decoded = read_all(
        DecodeWorkerPool(1, replace(OPTIONS, timeout=2.0), stuck), [Job("s", 0, items), Job("t", 0, items[:1])]
    )
    texts = {
        (part.shard, part.first + i): decode_all for part in decoded for i, decode_all in enumerate(audio_of(part))
    }
    slow = {key for key, text in texts.items() if isinstance(text, Skipped)}
    assert slow == {("s", i) for i in range(1, 9)} and len(texts) == 11
    assert {texts[key] for key in slow} == {
        Skipped("too slow: reading it took more than decode_timeout=2, twice", retry=True)
    }
    assert len(texts["s", 9]) == 24_000 and len(texts["t", 0]) == 48_000
    assert len((tmp_path / "counted").read_text()) == 2


def test_waiting_for_encoder_does_not_time_out(tmp_path: Path) -> None:
    """A worker that waits for a slow encoder is not slow itself."""
    items = [item(tone(tmp_path / f"{i}.wav", 0.1), key=f"k{i}") for i in range(6)]
    inbox, ours = Pipe()
    pool = DecodeWorkerPool(1, replace(OPTIONS, batch=1, timeout=1.0))
    jobs = iter([Job("s", 0, items)])
    decoded = []
    for part in pool.decode(inbox, lambda: ours.send(next(jobs, None))):
        time.sleep(0.7)
        decoded.append(part)
    pool.close()
    assert [len(audio_of(part)[0]) for part in decoded] == [2400] * 6


def once_deadly(job: Job, options: DecodeOptions) -> Iterator[DecodedBatch]:
    """A machine that is out of memory for a moment: the first process that decodes a clip is killed."""
    for i, one in enumerate(job.clips):
        mark = Path(os.environ["KILLED"]) / one.path
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield job.single_clip(i).skip(Skipped(one.path))


def always_killed(job: Job, options: DecodeOptions) -> Iterator[DecodedBatch]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield from ()


def test_clip_is_retried_after_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILLED", str(tmp_path))
    alone = [Job("s", 0, [Clip("a", "a", "train")])]
    assert [audio_of(part) for part in read_all(DecodeWorkerPool(1, OPTIONS, once_deadly), alone)] == [[Skipped("a")]]
    (batch,) = read_all(DecodeWorkerPool(1, OPTIONS, always_killed), alone)
    killed = "unreadable: the process that decodes it was killed twice, as by a machine out of memory"
    assert audio_of(batch) == [Skipped(killed, retry=True)]


def test_idle_dead_worker_is_replaced(tmp_path: Path) -> None:
    items = [item(tone(tmp_path / f"{i}.wav", 0.1), key=f"k{i}") for i in range(4)]
    pool = DecodeWorkerPool(1, OPTIONS)
    pool._workers[0].process.kill()
    pool._workers[0].process.join()
    assert sum(len(part.clips) for part in read_all(pool, [Job("s", 0, items)])) == 4


class KillsAtStart:
    """A decode function that kills the first `times` processes that receive it, before they start."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self, job: Job, options: DecodeOptions) -> Iterator[DecodedBatch]:
        return decode_job(job, options)

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__dict__ = state
        count_attempt()
        if len(Path(os.environ["COUNTED"]).read_text()) <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)


def test_worker_killed_at_start_skips_no_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until ten in a row fail to start: then the run ends with an error, and no clip is skipped."""
    items = [item(tone(tmp_path / f"{i}.wav", 0.1), key=f"k{i}") for i in range(3)]
    monkeypatch.setenv("COUNTED", str(tmp_path / "counted"))
    decoded = read_all(DecodeWorkerPool(1, OPTIONS, KillsAtStart(4)), [Job("s", 0, items)])
    assert [len(wav) for part in decoded for wav in audio_of(part)] == [2400] * 3
    with pytest.raises(MachineError, match="10 decode workers in a row ended before they started.*decode_workers=0"):
        read_all(DecodeWorkerPool(1, OPTIONS, KillsAtStart(1000)), [Job("s", 0, items)])
