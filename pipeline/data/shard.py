"""A shard: a plain WebDataset tar of samples, with an index of offsets in a second file for reading at memory speed.

A sample is three members of a USTAR tar, in this order:

    {key}.codes.npy    uint16 [K, T], codes 0..1023, codebooks coarse to fine
    {key}.prompt.npy   float16 [D], mean over time of the embedder's features
    {key}.json         path, start, duration, split, labels

Time, owner, mode and order are fixed, so the same samples give the same bytes. `{stem}.index.npy` is int64 [1 + N, 5].
Its first row: version, checksum (xxh3) of the shard, checksum of the other rows, two zeros. Then one row per sample:
byte offset of the codes' array data, frames T, byte offset of the prompt's array data, byte offset of the JSON text,
bytes of the JSON text. External shards have no index: `build_index` creates one from their tar headers.

Letters: N samples, K codebooks, T frames, D prompt dimensions.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xxhash

from pipeline.common.errors import InputError
from pipeline.data.npy import NPY_HEADER_BYTES, npy_bytes, npy_shape
from pipeline.data.storage import Storage, open_storage, split_path
from pipeline.data.tar_headers import BLOCK, END, iter_members, member_name

MEMBERS = ("codes.npy", "prompt.npy", "json")
CODES_DTYPE, PROMPT_DTYPE = np.dtype("<u2"), np.dtype("<f2")
_INDEX_DTYPE = np.dtype("<i8")
_INDEX_VERSION = 2  # version 1 had no row of checksums
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
MAX_MEMBER_BYTES = 2**48  # limit of a shard's bytes, and of all offsets and counts in it
_SHARD_NAME = re.compile(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}|")


@dataclass(frozen=True, eq=False)
class Sample:
    """One encoded clip.

    Attributes:
        key: unique in the dataset.
        codes: uint16 [K, T].
        prompt: float16 [D].
        metadata: content of `{key}.json`.
    """

    key: str
    codes: np.ndarray
    prompt: np.ndarray
    metadata: dict[str, Any]


@dataclass(frozen=True)
class ShardInfo:
    """What the manifest says about a shard.

    Attributes:
        name: file name.
        samples: number of samples.
        frames: sum of T over the samples.
        bytes: size of the tar.
        sha256: of the tar, in hex.
    """

    name: str
    samples: int
    frames: int
    bytes: int
    sha256: str

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> ShardInfo:
        """Validate untrusted JSON. Raises KeyError, TypeError or ValueError for impossible values."""
        name = validate_shard_name(row["name"])
        samples, frames, size = (row[name] for name in ("samples", "frames", "bytes"))
        for count in (samples, frames, size):
            if type(count) is not int:
                raise TypeError(f"{count!r:.40} is not an integer")
        if not (0 <= samples * len(MEMBERS) * BLOCK <= size <= MAX_MEMBER_BYTES and 0 <= frames <= MAX_MEMBER_BYTES):
            raise ValueError(f"{samples} samples of {frames} frames do not fit in a shard of {size} bytes")
        if not isinstance(row["sha256"], str) or not _SHA256.fullmatch(row["sha256"]):  # file names contain it
            raise ValueError(f"{row['sha256']!r:.80} is not a sha256")
        return cls(name, samples, frames, size, row["sha256"])


def validate_shard_name(name: Any) -> str:
    """Return the name of a shard. Raises ValueError for hidden files, and for names that leave the folder."""
    if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
        raise ValueError(f"{name!r:.80} is not a valid shard name")
    return name


def index_name(shard: str) -> str:
    """Return the name of a shard's index: `train-000000.tar` -> `train-000000.index.npy`."""
    return shard.removesuffix(".tar") + ".index.npy"


class ShardWriter:
    """Writes one shard and its index; both appear under their names when the block ends without an exception.

    with ShardWriter("shards/nsynth", "train-000000.tar") as shard:
        shard.add(sample)
    shard.info.sha256
    """

    def __init__(self, folder: str | Path | Storage, name: str) -> None:
        assert name.endswith(".tar"), name
        self.name = name
        self._store = open_storage(folder)
        self._index: list[tuple[int, int, int, int, int]] = []
        self._keys: set[str] = set()
        self._sha256, self._xxh3 = hashlib.sha256(), xxhash.xxh3_64()
        self._offset = self._frames = 0
        self.info: ShardInfo  # set when the shard is complete

    def __enter__(self) -> ShardWriter:
        self._files = ExitStack()
        self._tar = self._files.enter_context(self._store.open_atomic(self.name))
        return self

    def add(self, sample: Sample) -> None:
        """Append a sample. Raises ValueError for an invalid or repeated key, or arrays of another type."""
        if not KEY_PATTERN.fullmatch(sample.key) or sample.key in self._keys:
            raise ValueError(f"the key {sample.key!r} is not valid, or is already in {self.name}")
        if sample.codes.dtype != CODES_DTYPE or sample.codes.ndim != 2 or sample.prompt.dtype != PROMPT_DTYPE:
            raise ValueError(f"{sample.key}: expected codes of uint16 [K, T] and a prompt of float16 [D]")
        self._keys.add(sample.key)
        text = json.dumps(sample.metadata, sort_keys=True, separators=(",", ":")).encode()
        codes = self._add_member(f"{sample.key}.codes.npy", npy_bytes(sample.codes)) + NPY_HEADER_BYTES
        prompt = self._add_member(f"{sample.key}.prompt.npy", npy_bytes(sample.prompt)) + NPY_HEADER_BYTES
        info = self._add_member(f"{sample.key}.json", text)
        self._index.append((codes, sample.codes.shape[1], prompt, info, len(text)))
        self._frames += sample.codes.shape[1]

    def _add_member(self, name: str, data: bytes) -> int:
        """Append a file and return the offset of its data."""
        header = tarfile.TarInfo(name)  # mode 0644, owner 0, time 0
        header.size = len(data)
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        start = self._offset
        self._write(data + b"\0" * (-len(data) % BLOCK))
        return start

    def _write(self, data: bytes) -> None:
        self._tar.write(data)
        self._sha256.update(data)
        self._xxh3.update(data)
        self._offset += len(data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._files.__exit__(kind, error, trace)
            return
        with self._files:
            self._write(END)
            # an index without its shard is harmless; a shard with the index of another shard is not
            self._store.remove(index_name(self.name))
        with self._store.open_atomic(index_name(self.name)) as file:
            rows = np.array(self._index, np.int64).reshape(-1, 5)
            np.save(file, add_checksums(rows, _to_signed(self._xxh3.intdigest())), allow_pickle=False)
        self.info = ShardInfo(self.name, len(self._index), self._frames, self._offset, self._sha256.hexdigest())


def read_shard(address: str | Path) -> Iterator[Sample]:
    """Yield all samples of a shard in order. Raises InputError if it is truncated, damaged, or not of our format."""
    store, name = split_path(address)
    shard = store.view(name)
    return iter_samples(shard, load_index(store, name, shard), store.display_path(name))


def load_index(store: Storage, name: str, shard: memoryview, sha256: str = "", where: str = "") -> np.ndarray:
    """Return the index of a shard, int64 [N, 5], after comparing the shard with its checksum.

    Args:
        store: storage of the index.
        name: the name of the shard.
        shard: its bytes.
        sha256: from the manifest; compared if there is no index, or an index without a checksum.
        where: path of the shard, for messages; by default in `store`.

    Returns:
        The stored index if it exists, otherwise one built from the headers of the tar.

    Raises:
        InputError: the shard or the index is damaged.
    """
    where, expected = where or store.display_path(name), None
    if store.size(index_name(name)) is not None:
        index, expected = read_index(store.read(index_name(name)), store.display_path(index_name(name)))
    else:
        index = build_index(shard, where)
    _check_length(shard, index, where)
    if expected is not None:
        intact = checksum(shard) == expected
    else:
        intact = not sha256 or hashlib.sha256(shard).hexdigest() == sha256
    if not intact:
        raise InputError(
            f"{where} has changed since it was written, or its index is of another shard (its checksum differs): "
            "restore it"
        )
    return index


def _check_length(shard: memoryview, index: np.ndarray, where: str) -> None:
    end = int((-(-(index[:, 3] + index[:, 4]) // BLOCK) * BLOCK).max(initial=0)) + len(END)
    if len(shard) < end:
        raise InputError(f"{where} is truncated: it has {len(shard)} bytes, and its index needs {end}")


def checksum(data: memoryview | bytes) -> int:
    """Return the xxh3 of bytes as a signed number, as in an index."""
    return _to_signed(xxhash.xxh3_64_intdigest(data))


def _to_signed(number: int) -> int:
    """Convert an unsigned 64-bit number to signed."""
    return number - (1 << 64 if number >> 63 else 0)


def add_checksums(index: np.ndarray, of_shard: int) -> np.ndarray:
    """Return the content of an index file, int64 [1 + N, 5], from its rows [N, 5] and the checksum of the shard."""
    first = [_INDEX_VERSION, of_shard, checksum(np.ascontiguousarray(index, _INDEX_DTYPE).tobytes()), 0, 0]
    return np.concatenate([np.array([first], _INDEX_DTYPE), index])


def read_index(data: bytes, where: str) -> tuple[np.ndarray, int | None]:
    """Parse an index file.

    Args:
        data: its bytes.
        where: its path, for messages.

    Returns:
        The index, int64 [N, 5], and the checksum of its shard (None in version 1).

    Raises:
        InputError: the file is damaged.
    """
    shape = npy_shape(data[:NPY_HEADER_BYTES], _INDEX_DTYPE)
    if (
        shape is None
        or len(shape) != 2
        or shape[1] != 5
        or len(data) != NPY_HEADER_BYTES + shape[0] * 5 * _INDEX_DTYPE.itemsize
    ):
        raise InputError(f"{where} is damaged or not an index: remove it, and the shard is read without it")
    index, expected = np.frombuffer(data[NPY_HEADER_BYTES:], _INDEX_DTYPE).reshape(shape), None
    if len(index) and index[0, 0] < BLOCK:  # no sample starts there: a row of checksums
        version, expected, rows_checksum = index[0, :3].tolist()
        index = index[1:]
        if version != _INDEX_VERSION or checksum(index.tobytes()) != rows_checksum:
            raise InputError(f"{where} is damaged (its checksum differs): remove it, and the shard is read without it")
    if index.size and not 0 <= index.min() <= index.max() <= MAX_MEMBER_BYTES:  # sums must not overflow
        raise InputError(
            f"{where} is damaged: it points outside its shard; remove it, and the shard is read without it"
        )
    return index, expected


def iter_samples(shard: memoryview, index: np.ndarray, where: str) -> Iterator[Sample]:
    """Yield the samples of a shard by its index [N, 5]. Raises InputError if the two do not match."""
    _check_length(shard, index, where)
    for codes_at, frames, prompt_at, info_at, info_bytes in index.tolist():
        key = sample_key(shard, codes_at)
        if (
            not key
            or not _is_member(shard, prompt_at - NPY_HEADER_BYTES, f"{key}.prompt.npy")
            or not _is_member(shard, info_at, f"{key}.json")
        ):
            raise InputError(f"{where} does not match its index: remove the index, or restore the shard")
        codes = _read_array(shard, codes_at, CODES_DTYPE, where, key)
        prompt = _read_array(shard, prompt_at, PROMPT_DTYPE, where, key)
        if codes.ndim != 2 or codes.shape[1] != frames or prompt.ndim != 1:
            raise InputError(f"{where}: {key} has codes {codes.shape}, and its index says {frames} frames")
        try:
            info = json.loads(bytes(shard[info_at : info_at + info_bytes]))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: {key}.json is damaged ({error})") from error
        if not isinstance(info, dict):
            raise InputError(f"{where}: {key}.json is not a JSON object but {type(info).__name__}")
        yield Sample(key, codes, prompt, info)


def sample_key(shard: memoryview, codes_at: int) -> str:
    """Return the key of the sample whose codes start at an offset, from their tar header; empty if there is none."""
    name = member_name(shard, codes_at - NPY_HEADER_BYTES)
    return name.removesuffix(".codes.npy") if name.endswith(".codes.npy") else ""


def _is_member(shard: memoryview, at: int, name: str) -> bool:
    """Return whether the member whose data start at an offset has a name."""
    return member_name(shard, at) == name


def build_index(shard: memoryview, where: str) -> np.ndarray:
    """Build the index of a shard from its tar headers: int64 [N, 5].

    Raises:
        InputError: the tar is truncated or damaged, a sample lacks a member, a member has an absolute or `..` path, or
            an array is not uint16 [K, T] or float16 [D].
    """
    groups: list[tuple[str, dict[str, tuple[int, int]]]] = []  # key, and offset and size by extension
    for name, start, size in iter_members(shard, where):
        folder, slash, file = name.rpartition("/")
        stem, dot, extension = file.partition(".")
        key = f"{folder}{slash}{stem}"
        if not groups or groups[-1][0] != key:
            groups.append((key, {}))
        if not dot or extension in groups[-1][1]:
            raise InputError(f"{where}: the member {name!r} is repeated, or belongs to no sample")
        groups[-1][1][extension] = (start, size)
    incomplete = [
        f"{key} (no {', '.join(e for e in MEMBERS if e not in g)})" for key, g in groups if not g.keys() >= {*MEMBERS}
    ]
    if incomplete:
        if dotted := _dotted_key(groups):
            raise InputError(
                f"{where}: the key {dotted!r} has a dot in its last part, but WebDataset ends keys at dots: write the "
                "shards with keys without dots (folders may have dots)"
            )
        raise InputError(f"{where}: {len(incomplete)} samples lack members: {', '.join(incomplete[:5])}")
    rows = np.zeros((len(groups), 5), np.int64)
    for row, (key, members) in zip(rows, groups, strict=True):
        codes_at, prompt_at = members["codes.npy"][0] + NPY_HEADER_BYTES, members["prompt.npy"][0] + NPY_HEADER_BYTES
        codes = _read_array(shard, codes_at, CODES_DTYPE, where, key, members["codes.npy"][1])
        _read_array(shard, prompt_at, PROMPT_DTYPE, where, key, members["prompt.npy"][1])
        row[:] = codes_at, codes.shape[1], prompt_at, *members["json"]
    return rows


def _dotted_key(groups: list[tuple[str, dict[str, tuple[int, int]]]]) -> str | None:
    """Return the first key that seems to have a dot: one of our members after another extension; None if none does."""
    for key, members in groups:
        for extension in members:
            for member in MEMBERS:
                if extension.endswith(f".{member}"):
                    return f"{key}.{extension.removesuffix(f'.{member}')}"
    return None


def _read_array(
    shard: memoryview, at: int, dtype: np.dtype, where: str, key: str, size: int | None = None
) -> np.ndarray:
    """Return a copy of the array whose data start at an offset. size: bytes of its member, to be checked."""
    shape = npy_shape(bytes(shard[at - NPY_HEADER_BYTES : at]), dtype)
    ndim = 2 if dtype == CODES_DTYPE else 1
    if shape is None or len(shape) != ndim:
        raise InputError(f"{where}: {key}: expected codes of uint16 [K, T] and a prompt of float16 [D]")
    count = math.prod(shape)
    if at + count * dtype.itemsize > len(shard) or (
        size is not None and size != NPY_HEADER_BYTES + count * dtype.itemsize
    ):
        raise InputError(f"{where}: {key} has an array of {shape} that does not fit its member")
    return np.frombuffer(shard, dtype, count, at).reshape(shape).copy()
