"""Recordings that are the same sound under several names, found without decoding them all.

Three sieves, each for what the one before left over, each remembered from run to run:
1. probe: a hash of 16 KiB of sound, past any tag and at one place: the same for copies, whatever their tags;
2. frames: a hash of all bytes between the tags, for files whose probe is not alone;
3. digest: a hash of the decoded sound, where probes agree but frames differ (an encoder's own header, say).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipeline.corpora.scan_cache import cached_map
from pipeline.corpora.tar_archive import archive_of

MAX_WAV_CHUNKS = 1000  # of a WAV before its data
PROBE_OFFSET, PROBE_BYTES = 1 << 18, 1 << 14  # bytes: 6.5 s into a recording of 320 kbit/s, 0.4 s long

AudioDigest = Callable[[str | bytes], str | None]


class Recording(NamedTuple):
    """A file or a member of a plain tar. name: its place in the order; stamp: changes when it does; size: bytes."""

    name: str
    stamp: str
    size: int
    path: str
    span: tuple[int, int] | None


def find_duplicates(
    recordings: list[Recording], listing: Callable[[str], Path], digest: AudioDigest | None, unreadable: dict[str, str]
) -> dict[str, str]:
    """{name: the first name of the same sound} for every recording that is not the first of its sound.

    recordings: in ascending order of their names' parts. listing: the file in which a sieve's findings are remembered.
    digest: a hash of the decoded sound of a file or its bytes, None where it cannot be decoded; without it only
    recordings whose frames are the same bytes count as the same sound. unreadable: gets the names of those that cannot
    be read, and why; they are copies of nothing, and tried again in the next run.
    """
    of = {recording.name: recording for recording in recordings}

    def sieve(kind: str, names: Iterable[str], find: Callable[[Recording], str | None]) -> dict[str, str | None]:
        def found(name: str) -> str | None:
            try:
                return find(of[name])
            except OSError as error:
                unreadable[name] = error.strerror or str(error)
                raise  # so that nothing is remembered

        items = ((name, of[name].stamp) for name in names if name not in unreadable)
        return {name: value for name, _, value in cached_map(listing(kind), items, found)}

    def alike(names: Iterable[str], by: Callable[[str], object]) -> list[list[str]]:
        groups = defaultdict(list)
        for name in names:
            if name not in unreadable:
                groups[by(name)].append(name)
        return [group for group in groups.values() if len(group) > 1]

    probes = sieve("probes", of, probe)
    groups = alike(of, probes.__getitem__)
    suspects = {name for group in groups for name in group}
    frames = sieve("frames", (name for name in of if name in suspects), _hash_frames)
    digests: dict[str, str | None] = {}
    if digest is not None:
        doubtful = {name for group in groups if len({frames[name] for name in group}) > 1 for name in group}
        digests = sieve("digests", (name for name in of if name in doubtful), lambda one: digest(_read_source(one)))
    same = alike((name for name in of if name in suspects), lambda name: digests.get(name) or frames[name])
    return {name: first for first, *others in same for name in others}


def probe(recording: Recording) -> str:
    """A hash of a few bytes of a recording's sound, past its tags: the same for copies. Raises OSError."""
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
    """Where the sound starts and ends: MPEG frames between ID3 and APEv2 tags, FLAC frames, a WAV's data."""
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
    """Where the frames of a FLAC start, behind its blocks of metadata; its own start where these are malformed."""
    at, is_last = start + 4, False
    while not is_last and at < end:
        file.seek(at)
        head = file.read(4)
        is_last = bool(head[:1]) and head[0] >= 0x80
        at += 4 + int.from_bytes(head[1:], "big")
    return at if is_last and at < end else start


def _wav_audio_range(file: BinaryIO, start: int, end: int) -> tuple[int, int]:
    """Where the samples of a WAV start and end; all of it where it has no such chunk among its first."""
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
