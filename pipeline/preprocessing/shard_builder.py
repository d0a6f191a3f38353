"""Shards cut into jobs, and what comes of these put together into shards again.

Jobs go out in the order of the plan and come back in any; a shard is written when its last clip is there, by a thread
of its own, so that the encoders do not wait for a disk.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.common.errors import MachineError
from pipeline.corpora import Clip, load
from pipeline.data import build_state
from pipeline.data.build_state import PlannedShard, ShardRecord
from pipeline.data.manifest import skipped_row
from pipeline.data.shard import Sample, ShardWriter, iter_samples, load_index
from pipeline.data.storage import Storage
from pipeline.preprocessing.decode import Job, Skipped
from pipeline.preprocessing.encoder import EncodedBatch, EncodedClip
from pipeline.preprocessing.shard_planner import ClipSpool, PlannedClip, printable_path

JOB_CLIPS = 16  # clips, or a few more: some seconds of work


@dataclass(frozen=True)
class ShardTask:
    """A shard to be made. embed_only: its codes stand in the cache already, only its prompts are new."""

    planned: PlannedShard
    embed_only: bool = False


class JobIterator:
    """The jobs of a list of tasks, in order. Bytes of clips in archives are put into files in `folder` for readers."""

    def __init__(self, tasks: Iterable[ShardTask], spool: ClipSpool, folder: Path, batch: int) -> None:
        self._tasks, self._spool, self._folder = tasks, spool, folder
        self._size = max(JOB_CLIPS, batch) // batch * batch
        self._queue: deque[Clip] = deque()
        self._contents = load(iter(self._queue.popleft, None))  # one pass over each archive, whatever is skipped
        self._last = ("", b"")

    def __iter__(self) -> Iterator[Job]:
        for task in self._tasks:
            items = self._spool.read_shard(task.planned.name)
            for first, stretch in group_by_recording(items, self._size):
                job = Job(task.planned.name, first, stretch, embed_only=task.embed_only)
                yield self._with_contents(job) if any(item.clip.span for item in stretch) else job

    def _with_contents(self, job: Job) -> Job:
        folder = self._folder / job.shard  # goes when the shard is written
        try:
            return self._write_contents(job, folder)
        except OSError as error:
            raise MachineError(
                f"the bytes of archives cannot be written to {folder} ({error.strerror}): make room there, or set "
                "TMPDIR to a folder with more, and run the same command again"
            ) from error

    def _write_contents(self, job: Job, folder: Path) -> Job:
        spans: list[tuple[int, int] | None] = []
        place = ("", (0, 0))
        folder.mkdir(exist_ok=True)
        with (folder / str(job.first)).open("wb") as file:
            for item in job.clips:
                if item.clip.span is None:
                    spans.append(None)
                    continue
                if item.clip.path != place[0]:
                    content = self._read_content(item.clip)
                    place = item.clip.path, (file.tell(), len(content))
                    file.write(content)
                spans.append(place[1])
        return replace(job, contents_file=file.name, spans=tuple(spans))

    def _read_content(self, clip: Clip) -> bytes:
        if clip.path != self._last[0]:
            self._queue.append(clip)
            content = next(self._contents).content
            assert content is not None
            self._last = clip.path, content
        return self._last[1]


def group_by_recording(items: list[PlannedClip], size: int) -> Iterator[tuple[int, list[PlannedClip]]]:
    """Items cut into stretches of `size`, or more where a recording goes on: it is decoded once."""
    first = 0
    for end in range(1, len(items) + 1):
        here, there = items[end - 1].clip.path, items[end].clip.path if end < len(items) else None
        if end == len(items) or (end - first >= size and here != there):
            yield first, items[first:end]
            first = end


class ShardAssembler:
    """Shards in the making. `add` what the encoders give; finished shards are written in the background.

    A shard none of whose clips could be read is not written where that is the machine's fault: what was there before
    stays, and `unread` names it with a reason.

    made: the settings of the plan; folder: where `Jobs` puts the bytes of clips in archives; wrote: told the name of
    each shard that is complete. Use it as a context manager: it waits for the writing. Whatever stops the writing
    (OSError for a full disk) comes out of `add` or the end of the block.
    """

    def __init__(
        self,
        store: Storage,
        tasks: Iterable[ShardTask],
        spool: ClipSpool,
        made: dict[str, Any],
        folder: Path,
        wrote: Callable[[str], None],
    ) -> None:
        self._store, self._spool, self._folder = store, spool, folder
        self._tasks = {task.planned.name: task for task in tasks}
        self._made, self._codes = build_state.settings_digest(made), build_state.codes_digest(made)
        self.unreadable: dict[str, str] = {}
        self._found: dict[str, list[EncodedClip | Skipped | None]] = {}
        self._left: dict[str, int] = {}
        self._writing: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(1)
        self._wrote = wrote

    def add(self, encoded: EncodedBatch) -> None:
        """Take some clips of a shard; with its last ones it is written."""
        name = encoded.shard
        if name not in self._found:
            self._found[name] = [None] * self._tasks[name].planned.clips
            self._left[name] = len(self._found[name])
        self._found[name][encoded.first : encoded.first + len(encoded.clips)] = encoded.clips
        self._left[name] -= len(encoded.clips)
        if not self._left[name]:
            del self._left[name]
            self._writing.append(self._pool.submit(self._write, self._tasks[name], self._found.pop(name)))
        while self._writing and (self._writing[0].done() or len(self._writing) > 2):
            self._writing.popleft().result()

    def _write(self, task: ShardTask, found: list[EncodedClip | Skipped | None]) -> None:
        name = task.planned.name
        items = self._spool.read_shard(name)
        codes = self._existing_codes(name) if task.embed_only else {}
        good: list[Sample] = []
        aside: list[dict[str, Any]] = []
        adjusted: list[dict[str, Any]] = []
        silent = 0
        for item, numbers in zip(items, found, strict=True):
            assert numbers is not None, f"{name}: {item.clip.key} never came back"
            if isinstance(numbers, EncodedClip) and task.embed_only and item.clip.key not in codes:
                numbers = Skipped("not in the cache whose codes are kept")
            if isinstance(numbers, Skipped):
                aside.append(skipped_row(printable_path(item.path), item.clip.key, numbers.reason, numbers.retry))
                continue
            silent += numbers.silent
            if numbers.note:
                adjusted.append(skipped_row(printable_path(item.path), item.clip.key, numbers.note))
            good.append(_build_sample(item, numbers, codes.get(item.clip.key)))
        shutil.rmtree(self._folder / name, ignore_errors=True)
        retried = [row["reason"] for row in aside if "retry" in row]
        if retried and not good:
            self.unreadable[name] = retried[0]
            return
        build_state.delete_record(self._store, name)
        shard = None
        if good:
            with ShardWriter(self._store, name) as writer:
                for sample in good:
                    writer.add(sample)
            shard = writer.info
        else:
            build_state.delete_shard(self._store, name)
        record = ShardRecord(task.planned.inputs, self._made, self._codes, shard, silent, aside, adjusted)
        record.save(self._store, name)
        self._wrote(name)

    def _existing_codes(self, name: str) -> dict[str, np.ndarray]:
        if self._store.size(name) is None:
            return {}
        shard = self._store.view(name)
        index = load_index(self._store, name, shard)
        return {sample.key: sample.codes for sample in iter_samples(shard, index, self._store.display_path(name))}

    def __enter__(self) -> ShardAssembler:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        while self._writing and kind is None:
            self._writing.popleft().result()


def _build_sample(item: PlannedClip, numbers: EncodedClip, kept: np.ndarray | None) -> Sample:
    clip = item.clip
    codes = numbers.codes if kept is None else kept
    assert codes is not None
    info = {
        "path": printable_path(item.path),
        "start": clip.start,
        "duration": round(numbers.seconds, 6),
        "split": clip.split,
        "labels": clip.labels,
    }
    return Sample(clip.key, codes, numbers.prompt, info)
