"""Finds duplicate recordings without decoding all of them.

Three stages, each for the candidates of the one before. The results of each are cached:
1. probe: a hash of 16 KiB of audio at a fixed position after the tags, equal for copies with any tags.
2. frames: a hash of all bytes between the tags, for files with the same probe.
3. digest: a hash of the decoded audio, for files with the same probe and different frames (e.g. an encoder's header).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipeline.corpora.base import AudioDigest
from pipeline.corpora.scan_cache import cached_map
from pipeline.corpora.tar_archive import archive_of

MAX_WAV_CHUNKS = 1000  # before the data chunk
PROBE_OFFSET, PROBE_BYTES = 1 << 18, 1 << 14  # bytes: 6.5 s into a recording of 320 kbit/s, 0.4 s long


class Recording(NamedTuple):
    """A file or a member of a plain tar. name: defines the order; stamp: changes with the content; size: in bytes."""

    name: str
    stamp: str
    size: int
    path: str
    span: tuple[int, int] | None


def find_duplicates(
    recordings: list[Recording],
    cache_path: Callable[[str], Path],
    digest: AudioDigest | None,
    unreadable: dict[str, str],
) -> dict[str, str]:
    """Return {name: name of the first recording with the same audio} for every duplicate.

    Args:
        recordings: Ordered by the parts of their names.
        cache_path: Returns the file that caches the results of a stage.
        digest: Returns a hash of the decoded audio of a file or its bytes, None if it cannot be decoded. Without it,
            only recordings with identical frames are duplicates.
        unreadable: Receives the names of recordings that cannot be read, and why. They are never duplicates, and are
            read again in the next run.
    """
    by_name = {recording.name: recording for recording in recordings}

    def run_stage(
        kind: str, names: Iterable[str], hash_recording: Callable[[Recording], str | None]
    ) -> dict[str, str | None]:
        def compute(name: str) -> str | None:
            try:
                return hash_recording(by_name[name])
            except OSError as error:
                unreadable[name] = error.strerror or str(error)
                raise  # so that nothing is cached

        items = ((name, by_name[name].stamp) for name in names if name not in unreadable)
        return {name: value for name, _, value in cached_map(cache_path(kind), items, compute)}

    def group_by(names: Iterable[str], key: Callable[[str], object]) -> list[list[str]]:
        groups = defaultdict(list)
        for name in names:
            if name not in unreadable:
                groups[key(name)].append(name)
        return [group for group in groups.values() if len(group) > 1]

    probes = run_stage("probes", by_name, probe)
    groups = group_by(by_name, probes.__getitem__)
    suspects = {name for group in groups for name in group}
    frames = run_stage("frames", (name for name in by_name if name in suspects), _hash_frames)
    digests: dict[str, str | None] = {}
    if digest is not None:
        undecided = {name for group in groups if len({frames[name] for name in group}) > 1 for name in group}
        digests = run_stage(
            "digests", (name for name in by_name if name in undecided), lambda one: digest(_read_source(one))
        )
    same = group_by((name for name in by_name if name in suspects), lambda name: digests.get(name) or frames[name])
    return {name: first for first, *others in same for name in others}


def probe(recording: Recording) -> str:
    """Return a hash of a part of a recording after its tags, equal for duplicates; raise OSError if unreadable."""
    with _open(recording) as file:
        start, end = _audio_range(file, recording)
        file.seek(min(start + PROBE_OFFSET, (start + end) // 2))
        return hashlib.blake2b(file.read(min(PROBE_BYTES, end - file.tell())), digest_size=16).hexdigest()


def _hash_frames(recording: Recording) -> str:
    with _open(recording) as file:
        start, end = _audio_range(file, recording)
        file.seek(start)
        total = hashlib.blake2b(digest_size=16)
        while start < end:
            block = file.read(min(1 << 20, end - start))
            if not block:
                break
            total.update(block)
            start += len(block)
        return total.hexdigest()


def _open(recording: Recording) -> BinaryIO:
    return Path(recording.path if recording.span is None else archive_of(recording.path)).open("rb")


def _read_source(recording: Recording) -> str | bytes:
    if recording.span is None:
        return recording.path
    with _open(recording) as file:
        file.seek(recording.span[0])
        return file.read(recording.span[1])


def _audio_range(file: BinaryIO, recording: Recording) -> tuple[int, int]:
    """Return the range of the audio: MPEG frames between ID3 and APEv2 tags, FLAC frames, the data of a WAV."""
    start = recording.span[0] if recording.span else 0
    end = start + recording.size
    file.seek(start)
    head = file.read(12)
    if head[:3] == b"ID3" and len(head) >= 10:
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        start = min(end, start + 10 + size + (10 if head[5] & 0x10 else 0))
    elif head[:4] == b"fLaC":
        return _flac_audio_start(file, start, end), end
    elif head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
        return _wav_audio_range(file, start, end)
    file.seek(max(start, end - 128))
    if file.read(3) == b"TAG":
        end = max(start, end - 128)
    file.seek(max(start, end - 32))
    foot = file.read(32)
    if foot[:8] == b"APETAGEX":
        size = int.from_bytes(foot[12:16], "little") + (32 if foot[23] & 0x80 else 0)
        end = max(start, end - size)
    return start, end


def _flac_audio_start(file: BinaryIO, start: int, end: int) -> int:
    """Return the offset of the first frame after the metadata blocks of a FLAC, or `start` if they are malformed."""
    at, is_last = start + 4, False
    while not is_last and at < end:
        file.seek(at)
        head = file.read(4)
        is_last = bool(head[:1]) and head[0] >= 0x80
        at += 4 + int.from_bytes(head[1:], "big")
    return at if is_last and at < end else start


def _wav_audio_range(file: BinaryIO, start: int, end: int) -> tuple[int, int]:
    """Return the range of the samples of a WAV, or the complete range if it has no data chunk."""
    at = start + 12
    for _ in range(MAX_WAV_CHUNKS):
        file.seek(at)
        head = file.read(8)
        size = int.from_bytes(head[4:], "little")
        if head[:4] == b"data":
            return min(at + 8, end), min(at + 8 + size, end)
        at += 8 + size + size % 2
        if len(head) < 8 or at >= end:
            break
    return start, end
