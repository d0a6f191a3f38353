"""Shards cut into jobs, and encoded clips assembled into shards again.

Jobs are handed out in the order of the plan, and their results arrive in any order. A shard is written as soon as its
last clip has arrived, by a background thread, so that the encoders do not wait for a disk.
"""

from __future__ import annotations

import shutil
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.common.errors import MachineError
from pipeline.corpora import Clip, load
from pipeline.data import build_state
from pipeline.data.build_state import PlannedShard, ShardRecord
from pipeline.data.labels import LabelCounter
from pipeline.data.manifest import skipped_row
from pipeline.data.shard import ShardWriter, iter_samples, load_index
from pipeline.data.storage import Storage
from pipeline.preprocessing.decode import Job
from pipeline.preprocessing.encoder import EncodedBatch
from pipeline.preprocessing.shard_planner import ClipSpool

JOB_CLIPS = 16  # clips of a job, or a few more: some seconds of work


@dataclass(frozen=True)
class ShardTask:
    """A shard to write. embed_only: the dataset has its codes already, and only its prompts are new."""

    planned: PlannedShard
    embed_only: bool = False


class JobIterator:
    """The jobs of a list of tasks, in order. Clips in archives are copied to files in `folder` for the workers."""

    def __init__(self, tasks: Sequence[ShardTask], spool: ClipSpool, folder: Path, batch: int) -> None:
        self._tasks, self._spool, self._folder = tasks, spool, folder
        self._size = max(JOB_CLIPS, batch) // batch * batch

    def __iter__(self) -> Iterator[Job]:
        names = [task.planned.name for task in self._tasks]
        loaded = load(clip for name in names for clip in self._spool.read_shard(name))  # one pass over each archive
        for task in self._tasks:
            for first, group in group_by_recording(self._spool.read_shard(task.planned.name), self._size):
                job = Job(task.planned.name, first, group, embed_only=task.embed_only)
                contents = [next(loaded).content for _ in group]
                yield self._with_contents(job, contents) if any(contents) else job

    def _with_contents(self, job: Job, contents: list[bytes | None]) -> Job:
        folder = self._folder / job.shard  # deleted when the shard is written
        try:
            return _write_contents(job, contents, folder)
        except OSError as error:
            raise MachineError(
                f"the bytes of archives cannot be written to {folder} ({error.strerror}): make room there, or set "
                "TMPDIR to a folder with more, and run the same command again"
            ) from error


def _write_contents(job: Job, contents: list[bytes | None], folder: Path) -> Job:
    """The job with the bytes of its clips in a file; segments of a recording share them."""
    spans: list[tuple[int, int] | None] = []
    last: bytes | None = None
    folder.mkdir(exist_ok=True)
    with (folder / str(job.first)).open("wb") as file:
        for content in contents:
            if content is None:
                spans.append(None)
            elif content is last:
                spans.append(spans[-1])
            else:
                spans.append((file.tell(), len(content)))
                file.write(content)
            last = content
    return replace(job, contents_file=file.name, spans=tuple(spans))


def group_by_recording(clips: list[Clip], size: int) -> Iterator[tuple[int, list[Clip]]]:
    """Groups of `size` consecutive clips, each with the index of its first clip.

    A group is larger where it would split a recording, so that each recording is decoded once.
    """
    first = 0
    for end in range(1, len(clips) + 1):
        path, next_path = clips[end - 1].path, clips[end].path if end < len(clips) else None
        if end == len(clips) or (end - first >= size and path != next_path):
            yield first, clips[first:end]
            first = end


class ShardAssembler:
    """Collects encoded clips, and writes each complete shard in the background.

    A shard of which no clip could be read is not written if the machine is the cause: an older shard stays, and
    `unreadable` has its name with a reason.

    Use it as a context manager: it waits for the writing. An error that stops the writing (OSError for a full disk) is
    raised by `add` or at the end of the block.

    Args:
        store: The dataset's storage.
        tasks: The shards to write.
        settings: The settings of the plan, with the identities of codec and embedder.
        folder: Where `JobIterator` writes the bytes of clips in archives.
        on_written: Receives the name of each shard that is complete.
    """

    def __init__(
        self,
        store: Storage,
        tasks: Iterable[ShardTask],
        settings: dict[str, Any],
        folder: Path,
        on_written: Callable[[str], None],
    ) -> None:
        self._store, self._folder = store, folder
        self._tasks = {task.planned.name: task for task in tasks}
        self._settings_digest = build_state.settings_digest(settings)
        self._codes_digest = build_state.codes_digest(settings)
        self.unreadable: dict[str, str] = {}
        self._parts: defaultdict[str, list[EncodedBatch]] = defaultdict(list)
        self._writing: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(1)
        self._on_written = on_written

    def add(self, encoded: EncodedBatch) -> None:
        """Add clips of a shard, which is written when it is complete."""
        task, parts = self._tasks[encoded.shard], self._parts[encoded.shard]
        parts.append(encoded)
        if sum(part.num_clips for part in parts) == task.planned.clips:
            del self._parts[encoded.shard]
            self._writing.append(self._pool.submit(self._write, task, parts))
        while self._writing and (self._writing[0].done() or len(self._writing) > 2):
            self._writing.popleft().result()

    def _write(self, task: ShardTask, parts: list[EncodedBatch]) -> None:
        name = task.planned.name
        parts.sort(key=lambda part: part.first)
        samples = [sample for part in parts for sample in part.samples]
        skipped = [row for part in parts for row in part.skipped]
        if task.embed_only:
            codes = self._existing_codes(name)
            skipped += [
                skipped_row(sample.metadata["path"], sample.key, "not in the cache whose codes are kept")
                for sample in samples
                if sample.key not in codes
            ]
            samples = [replace(sample, codes=codes[sample.key]) for sample in samples if sample.key in codes]
        shutil.rmtree(self._folder / name, ignore_errors=True)
        retry_reasons = [row["reason"] for row in skipped if "retry" in row]
        if retry_reasons and not samples:
            self.unreadable[name] = retry_reasons[0]
            return
        build_state.delete_record(self._store, name)
        shard = None
        if samples:
            with ShardWriter(self._store, name) as writer:
                for sample in samples:
                    writer.add(sample)
            shard = writer.info
        else:
            build_state.delete_shard(self._store, name)
        keys = {sample.key for sample in samples}
        adjusted = [row for part in parts for row in part.adjusted if row["key"] in keys]
        labels = LabelCounter()
        for sample in samples:
            labels.add(sample.metadata["labels"])
        digests = (task.planned.inputs, self._settings_digest, self._codes_digest)
        record = ShardRecord(*digests, shard, 0, skipped, adjusted, labels.vocabularies())
        record.save(self._store, name)
        self._on_written(name)

    def _existing_codes(self, name: str) -> dict[str, np.ndarray]:
        if self._store.size(name) is None:
            return {}
        shard = self._store.open(name)
        return {sample.key: sample.codes for sample in iter_samples(shard, load_index(self._store, name, shard))}

    def __enter__(self) -> ShardAssembler:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        while self._writing and kind is None:
            self._writing.popleft().result()
