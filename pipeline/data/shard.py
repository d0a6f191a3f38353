"""A shard: a plain WebDataset tar of samples, with an index of offsets in a second file for reading at memory speed.

A sample is three members of a USTAR tar, in this order:

    {key}.codes.npy    uint16 [K, T], codes from 0, codebooks coarse to fine
    {key}.prompt.npy   float16 [D], mean over time of the embedder's features; [N, D], of N stretches of the clip
    {key}.json         path, start, duration, split, labels

Time, owner, mode and order are fixed, so the same samples give the same bytes. `{stem}.index.npy` is int64 [1 + N, 5].
Its first row: version, checksum (xxh3) of the shard, checksum of the other rows, two zeros. Then one row per sample:
byte offset of the codes' array data, frames T, byte offset of the prompt's array data, byte offset of the JSON text,
bytes of the JSON text. External shards have no index: `build_index` creates one from their tar headers.

Letters: B samples, K codebooks, T frames, N prompt vectors of a sample (samples of an index), D prompt dimensions.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import numpy as np
import xxhash
from pydantic import BaseModel, BeforeValidator, Field, StrictInt, StrictStr, model_validator

from pipeline.common.errors import InputError
from pipeline.data.file_reader import FileReader
from pipeline.data.npy import NPY_HEADER_BYTES, npy_bytes, npy_shape
from pipeline.data.storage import Storage, open_storage, split_path
from pipeline.data.tar_headers import BLOCK, END, iter_members, member_name

MEMBERS = ("codes.npy", "prompt.npy", "json")
CODES_DTYPE, PROMPT_DTYPE = np.dtype("<u2"), np.dtype("<f2")
_INDEX_DTYPE = np.dtype("<i8")
_INDEX_VERSION = 2  # version 1 had no row of checksums
_EXPECTED = "codes of uint16 [K, T] and a prompt of float16 [D] or [N, D]"
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
MAX_MEMBER_BYTES = 2**48  # limit of a shard's bytes, and of all offsets and counts in it
_SHARD_NAME = re.compile(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*\.tar")


@dataclass(frozen=True, eq=False)
class Sample:
    """One encoded clip.

    Attributes:
        key: unique in the dataset.
        codes: uint16 [K, T].
        prompt: float16 [D], or [N, D] for N vectors of a clip.
        metadata: content of `{key}.json`.
    """

    key: str
    codes: np.ndarray
    prompt: np.ndarray
    metadata: dict[str, Any]

    @property
    def prompt_vectors(self) -> np.ndarray:
        """The prompt as float32 [N, D]."""
        return self.prompt.astype(np.float32).reshape(-1, self.prompt.shape[-1])


def stack_prompts(samples: Iterable[Sample]) -> np.ndarray:
    """The prompts of samples: float32 [B, N, D]."""
    return np.stack([sample.prompt_vectors for sample in samples])


def validate_shard_name(name: Any) -> str:
    """Return the name of a shard. Raises ValueError for hidden files, and for names that leave the folder."""
    if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
        raise ValueError(f"{name!r:.80} is not a valid shard name")
    return name


ShardName = Annotated[StrictStr, BeforeValidator(validate_shard_name)]
_Count = Annotated[StrictInt, Field(ge=0, le=MAX_MEMBER_BYTES)]


class ShardInfo(BaseModel, frozen=True):
    """What the manifest says about a shard. Values that no shard can have raise a ValueError.

    Attributes:
        name: file name.
        samples: number of samples.
        frames: sum of T over the samples.
        bytes: size of the tar.
        sha256: of the tar, in hex; empty if unknown.
    """

    name: ShardName
    samples: _Count
    frames: _Count
    bytes: _Count
    sha256: Annotated[StrictStr, Field(pattern=r"^([0-9a-f]{64})?$")]  # file names contain it

    @model_validator(mode="after")
    def _fits(self) -> ShardInfo:
        if self.samples * len(MEMBERS) * BLOCK > self.bytes:
            raise ValueError(f"{self.samples} samples do not fit in a shard of {self.bytes} bytes")
        return self


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
        is_valid = sample.codes.dtype == CODES_DTYPE and sample.codes.ndim == 2
        if not is_valid or sample.prompt.dtype != PROMPT_DTYPE or sample.prompt.ndim not in (1, 2):
            raise ValueError(f"{sample.key}: expected {_EXPECTED}")
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
        rows = np.array(self._index, np.int64).reshape(-1, 5)
        write_index(self._store, self.name, rows, _to_signed(self._xxh3.intdigest()))
        self.info = ShardInfo(
            name=self.name, samples=len(self._index), frames=self._frames, bytes=self._offset,
            sha256=self._sha256.hexdigest(),
        )  # fmt: skip


def read_shard(address: str | Path) -> Iterator[Sample]:
    """Yield all samples of a shard in order. Raises InputError if it is truncated, damaged, or not of our format."""
    store, name = split_path(address)
    shard = store.open(name)
    return iter_samples(shard, load_index(store, name, shard))


def load_index(store: Storage, name: str, shard: FileReader, sha256: str = "") -> np.ndarray:
    """Return the index of a shard, int64 [N, 5], after comparing the shard with its checksum.

    Args:
        store: storage of the index.
        name: the name of the shard.
        shard: the shard.
        sha256: from the manifest; compared if the shard has no index.

    Returns:
        The stored index if it exists, otherwise one built from the headers of the tar.

    Raises:
        InputError: the shard or the index is damaged.
    """
    stored = read_index(store, name)
    if stored is None:
        index, intact = build_index(shard), not sha256 or shard.sha256() == sha256
    else:
        index, expected = stored
        _check_length(shard, index)
        intact = shard_checksum(shard) == expected
    if not intact:
        raise InputError(
            f"{shard.path} has changed since it was written, or its index is of another shard (its checksum differs): "
            "restore it"
        )
    return index


def _check_length(shard: FileReader, index: np.ndarray) -> None:
    end = int((-(-(index[:, 3] + index[:, 4]) // BLOCK) * BLOCK).max(initial=0)) + len(END)
    if shard.size < end:
        raise InputError(f"{shard.path} is truncated: it has {shard.size} bytes, and its index needs {end}")


def shard_checksum(shard: FileReader) -> int:
    """Return the xxh3 of a shard as in an index, a signed number."""
    return _to_signed(shard.xxh3())


def _to_signed(number: int) -> int:
    """Convert an unsigned 64-bit number to signed."""
    return number - (1 << 64 if number >> 63 else 0)


def write_index(store: Storage, name: str, index: np.ndarray, of_shard: int) -> None:
    """Write the index of a shard, from its rows [N, 5] and the checksum of the shard."""
    rows = np.ascontiguousarray(index, _INDEX_DTYPE)
    first = [_INDEX_VERSION, of_shard, _rows_checksum(rows), 0, 0]
    with store.open_atomic(index_name(name)) as file:
        np.save(file, np.concatenate([np.array([first], _INDEX_DTYPE), rows]), allow_pickle=False)


def _rows_checksum(rows: np.ndarray) -> int:
    return _to_signed(xxhash.xxh3_64_intdigest(rows.tobytes()))


def read_index(store: Storage, name: str) -> tuple[np.ndarray, int] | None:
    """Return the stored index of a shard, int64 [N, 5], and the checksum of the shard; None if it has none.

    An index of version 1 has no checksums, and counts as none.

    Raises:
        InputError: the index is damaged.
    """
    try:
        data = store.read(index_name(name))
    except FileNotFoundError:
        return None
    return parse_index(data, store.display_path(index_name(name)))


def parse_index(data: bytes, path: str) -> tuple[np.ndarray, int] | None:
    """Parse an index file. path: for messages. Returns and raises what `read_index` does."""
    shape = npy_shape(data[:NPY_HEADER_BYTES], _INDEX_DTYPE)
    if (
        shape is None
        or len(shape) != 2
        or shape[1] != 5
        or len(data) != NPY_HEADER_BYTES + shape[0] * 5 * _INDEX_DTYPE.itemsize
    ):
        raise InputError(f"{path} is damaged or not an index: remove it, and the shard is read without it")
    index = np.frombuffer(data[NPY_HEADER_BYTES:], _INDEX_DTYPE).reshape(shape)
    if not len(index) or index[0, 0] >= BLOCK:  # the first row is of a sample, and not of checksums
        return None
    version, of_shard, of_rows = index[0, :3].tolist()
    rows = index[1:]
    if version != _INDEX_VERSION or _rows_checksum(rows) != of_rows:
        raise InputError(f"{path} is damaged (its checksum differs): remove it, and the shard is read without it")
    if rows.size and not 0 <= rows.min() <= rows.max() <= MAX_MEMBER_BYTES:  # sums must not overflow
        raise InputError(f"{path} is damaged: it points outside its shard; remove it, and the shard is read without it")
    return rows, of_shard


def iter_samples(shard: FileReader, index: np.ndarray) -> Iterator[Sample]:
    """Yield the samples of a shard by its index [N, 5]. Raises InputError if the two do not match."""
    _check_length(shard, index)
    for codes_at, frames, prompt_at, info_at, info_bytes in index.tolist():
        key = sample_key(shard, codes_at)
        if not key:
            raise InputError(f"{shard.path} does not match its index: remove the index, or restore the shard")
        codes = _read_array(shard, codes_at, CODES_DTYPE, key)
        prompt = _read_array(shard, prompt_at, PROMPT_DTYPE, key)
        if codes.shape[1] != frames:
            raise InputError(f"{shard.path}: {key} has codes {codes.shape}, and its index says {frames} frames")
        try:
            info = json.loads(shard.read(info_at, info_bytes))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{shard.path}: {key}.json is damaged ({error})") from error
        if not isinstance(info, dict):
            raise InputError(f"{shard.path}: {key}.json is not a JSON object but {type(info).__name__}")
        yield Sample(key, codes, prompt, info)


def sample_key(shard: FileReader, codes_at: int) -> str:
    """Return the key of the sample whose codes start at an offset, from their tar header; empty if there is none."""
    name = member_name(shard, codes_at - NPY_HEADER_BYTES)
    return name.removesuffix(".codes.npy") if name.endswith(".codes.npy") else ""


def build_index(shard: FileReader) -> np.ndarray:
    """Build the index of a shard from its tar headers: int64 [N, 5].

    Raises:
        InputError: the tar is truncated or damaged, a sample lacks a member, a member has an absolute or `..` path, or
            an array is not uint16 [K, T], or float16 [D] or [N, D].
    """
    where = shard.path
    groups: list[tuple[str, dict[str, tuple[int, int]]]] = []  # key, and offset and size by extension
    for name, start, size in iter_members(shard):
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
        codes = _read_array(shard, codes_at, CODES_DTYPE, key, members["codes.npy"][1])
        _read_array(shard, prompt_at, PROMPT_DTYPE, key, members["prompt.npy"][1])
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


def _read_array(shard: FileReader, at: int, dtype: np.dtype, key: str, size: int | None = None) -> np.ndarray:
    """Return the array whose data start at an offset. size: bytes of its member, to be checked."""
    shape = npy_shape(shard.read(at - NPY_HEADER_BYTES, NPY_HEADER_BYTES), dtype)
    if shape is None or len(shape) not in ((2,) if dtype == CODES_DTYPE else (1, 2)):
        raise InputError(f"{shard.path}: {key}: expected {_EXPECTED}")
    num_bytes = math.prod(shape) * dtype.itemsize
    if at + num_bytes > shard.size or size not in (None, NPY_HEADER_BYTES + num_bytes):
        raise InputError(f"{shard.path}: {key} has an array of {shape} that does not fit its member")
    return np.frombuffer(bytearray(shard.read(at, num_bytes)), dtype).reshape(shape)
