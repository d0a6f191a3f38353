"""A shard: a plain WebDataset tar of samples, with an index of offsets beside it for reading at memory speed.

A sample is three members of a USTAR tar, in this order:

    {key}.codes.npy    uint16 [K, T], codes 0..1023, codebooks coarse to fine
    {key}.prompt.npy   float16 [D], mean over time of the embedder's features
    {key}.json         path, start, duration, split, labels

Time, owner, mode and order are fixed, so the same samples give the same bytes. `{stem}.index.npy` holds int64
[1 + N, 5]. The first row: the version, the checksum (xxh3) of the shard, that of the other rows, two zeros. Then a row
a sample: byte offset of the codes' array data, frames T, byte offset of the prompt's array data, byte offset of the
json text, its bytes. Shards of others have no index: `scan` makes one from their tar headers.

Letters: N samples, K codebooks, T frames, D prompt width.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xxhash

from pipeline.common.errors import InputError
from pipeline.data.storage import Storage, open_storage, split_path
from pipeline.data.tar_headers import BLOCK, END, iter_members, member_name

NPY_HEADER_BYTES = 128  # numpy pads the header of every small array to this
MEMBERS = ("codes.npy", "prompt.npy", "json")
CODES_DTYPE, PROMPT_DTYPE = np.dtype("<u2"), np.dtype("<f2")
_INDEX_DTYPE = np.dtype("<i8")
_INDEX_VERSION = 2  # of an index; the first had no checksums, and began with a sample's row
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
MAX_MEMBER_BYTES = 2**48  # bytes of a shard, and so the largest of all offsets and counts in it
_SHARD_NAME = re.compile(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}|")
_DESCR = re.compile(rb"""['"]descr['"]: *['"]([^'"]+)['"]""")
_FORTRAN = re.compile(rb"""['"]fortran_order['"]: *(True|False)""")
_SHAPE = re.compile(rb"""['"]shape['"]: *\(([\d, ]*)\)""")


@dataclass(frozen=True, eq=False)
class Sample:
    """One clip as numbers. codes: uint16 [K, T]; prompt: float16 [D]; info: what `{key}.json` holds."""

    key: str
    codes: np.ndarray
    prompt: np.ndarray
    metadata: dict[str, Any]


@dataclass(frozen=True)
class ShardInfo:
    """What the manifest says of a shard. frames: sum of T over its samples; sha256 of the tar, in hex."""

    name: str
    samples: int
    frames: int
    bytes: int
    sha256: str

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> ShardInfo:
        """From JSON that anybody may have written. Raises KeyError, TypeError or ValueError for what cannot be."""
        name = validate_shard_name(row["name"])
        samples, frames, size = (row[name] for name in ("samples", "frames", "bytes"))
        for count in (samples, frames, size):
            if type(count) is not int:
                raise TypeError(f"{count!r:.40} is no count")
        if not (0 <= samples * len(MEMBERS) * BLOCK <= size <= MAX_MEMBER_BYTES and 0 <= frames <= MAX_MEMBER_BYTES):
            raise ValueError(f"{samples} samples of {frames} frames are not in a shard of {size} bytes")
        if not isinstance(row["sha256"], str) or not _SHA256.fullmatch(row["sha256"]):  # it names files
            raise ValueError(f"{row['sha256']!r:.80} is no sha256")
        return cls(name, samples, frames, size, row["sha256"])


def validate_shard_name(name: Any) -> str:
    """The name of a shard, if it is one. Raises ValueError for what may lie in another folder, or is hidden."""
    if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
        raise ValueError(f"{name!r:.80} is no name of a shard")
    return name


def index_name(shard: str) -> str:
    """`train-000000.tar` -> `train-000000.index.npy`."""
    return shard.removesuffix(".tar") + ".index.npy"


class ShardWriter:
    """Writes one shard and its index; both appear under their names when the block ends, or not at all.

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
        """Append a sample. Raises ValueError for a key that is no key or is there already, or a wrong array."""
        if not KEY_PATTERN.fullmatch(sample.key) or sample.key in self._keys:
            raise ValueError(f"the key {sample.key!r} is no key, or is in {self.name} already")
        if sample.codes.dtype != CODES_DTYPE or sample.codes.ndim != 2 or sample.prompt.dtype != PROMPT_DTYPE:
            raise ValueError(f"{sample.key}: codes are uint16 [K, T] and a prompt is float16 [D]")
        self._keys.add(sample.key)
        text = json.dumps(sample.metadata, sort_keys=True, separators=(",", ":")).encode()
        codes = self._add_member(f"{sample.key}.codes.npy", _npy_bytes(sample.codes)) + NPY_HEADER_BYTES
        prompt = self._add_member(f"{sample.key}.prompt.npy", _npy_bytes(sample.prompt)) + NPY_HEADER_BYTES
        info = self._add_member(f"{sample.key}.json", text)
        self._index.append((codes, sample.codes.shape[1], prompt, info, len(text)))
        self._frames += sample.codes.shape[1]

    def _add_member(self, name: str, data: bytes) -> int:
        """Append a file; its data's offset."""
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
            # an index without its shard does no harm; a shard must never stand beside the index of another
            self._store.remove(index_name(self.name))
        with self._store.open_atomic(index_name(self.name)) as file:
            rows = np.array(self._index, np.int64).reshape(-1, 5)
            np.save(file, add_checksums(rows, _to_signed(self._xxh3.intdigest())), allow_pickle=False)
        self.info = ShardInfo(self.name, len(self._index), self._frames, self._offset, self._sha256.hexdigest())


def read_shard(address: str | Path) -> Iterator[Sample]:
    """All samples of a shard in order, through its index (made on the fly where there is none).

    Raises InputError for a shard that is cut short, damaged, or not of our format.
    """
    store, name = split_path(address)
    shard = store.view(name)
    return iter_samples(shard, load_index(store, name, shard), store.display_path(name))


def load_index(store: Storage, name: str, shard: memoryview, sha256: str = "", where: str = "") -> np.ndarray:
    """The index of a shard, int64 [N, 5], once the shard's bytes match their checksum.

    Args:
        store: where the index is.
        name: the name of the shard.
        shard: its bytes.
        sha256: what the manifest says of them: compared where there is no index, or none with a checksum.
        where: the address of the shard, for messages; in the same folder if not given.

    Returns:
        The shard's own index where it has one, else one scanned from the tar's headers.

    Raises:
        InputError: for a shard or an index that is damaged.
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
            f"{where} has changed since it was written, or has the index of another (its checksum differs): restore it"
        )
    return index


def _check_length(shard: memoryview, index: np.ndarray, where: str) -> None:
    end = int((-(-(index[:, 3] + index[:, 4]) // BLOCK) * BLOCK).max(initial=0)) + len(END)
    if len(shard) < end:
        raise InputError(f"{where} is cut short: {len(shard)} bytes where its index needs {end}")


def checksum(data: memoryview | bytes) -> int:
    """The xxh3 of bytes, as an index holds it."""
    return _to_signed(xxhash.xxh3_64_intdigest(data))


def _to_signed(number: int) -> int:
    """64 bits as a signed number."""
    return number - (1 << 64 if number >> 63 else 0)


def add_checksums(index: np.ndarray, of_shard: int) -> np.ndarray:
    """What the file of an index holds: int64 [1 + N, 5], from the rows of its samples and the checksum of its shard."""
    first = [_INDEX_VERSION, of_shard, checksum(np.ascontiguousarray(index, _INDEX_DTYPE).tobytes()), 0, 0]
    return np.concatenate([np.array([first], _INDEX_DTYPE), index])


def read_index(data: bytes, where: str) -> tuple[np.ndarray, int | None]:
    """An index, int64 [N, 5], and the checksum of its shard (None: of an older version) from the bytes of its file.

    Raises InputError where they are damaged.
    """
    shape = _npy_shape(data[:NPY_HEADER_BYTES], _INDEX_DTYPE)
    if (
        shape is None
        or len(shape) != 2
        or shape[1] != 5
        or len(data) != NPY_HEADER_BYTES + shape[0] * 5 * _INDEX_DTYPE.itemsize
    ):
        raise InputError(f"{where} is damaged, or no index of a shard: remove it, and the shard is read without it")
    index, expected = np.frombuffer(data[NPY_HEADER_BYTES:], _INDEX_DTYPE).reshape(shape), None
    if len(index) and index[0, 0] < BLOCK:  # where no sample begins
        version, expected, of_rows = index[0, :3].tolist()
        index = index[1:]
        if version != _INDEX_VERSION or checksum(index.tobytes()) != of_rows:
            raise InputError(f"{where} is damaged (its checksum differs): remove it, and the shard is read without it")
    if index.size and not 0 <= index.min() <= index.max() <= MAX_MEMBER_BYTES:  # sums of these must not wrap around
        raise InputError(f"{where} is damaged, for it points out of its shard: remove it, and it is made anew")
    return index, expected


def iter_samples(shard: memoryview, index: np.ndarray, where: str) -> Iterator[Sample]:
    """The samples of a shard's bytes, by its index [N, 5]. Raises InputError where the two do not agree."""
    _check_length(shard, index, where)
    for codes_at, frames, prompt_at, info_at, info_bytes in index.tolist():
        key = sample_key(shard, codes_at)
        if (
            not key
            or not _is_member(shard, prompt_at - NPY_HEADER_BYTES, f"{key}.prompt.npy")
            or not _is_member(shard, info_at, f"{key}.json")
        ):
            raise InputError(f"{where} and its index do not belong together: remove the index, or restore the shard")
        codes = _read_array(shard, codes_at, CODES_DTYPE, where, key)
        prompt = _read_array(shard, prompt_at, PROMPT_DTYPE, where, key)
        if codes.ndim != 2 or codes.shape[1] != frames or prompt.ndim != 1:
            raise InputError(f"{where}: {key} has codes {codes.shape} where its index says {frames} frames")
        try:
            info = json.loads(bytes(shard[info_at : info_at + info_bytes]))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: {key}.json is damaged ({error})") from error
        if not isinstance(info, dict):
            raise InputError(f"{where}: {key}.json is no JSON object, but {type(info).__name__}")
        yield Sample(key, codes, prompt, info)


def sample_key(shard: memoryview, codes_at: int) -> str:
    """The key of the sample whose codes' array data begin at an offset, from the tar header before them; "" if none."""
    name = member_name(shard, codes_at - NPY_HEADER_BYTES)
    return name.removesuffix(".codes.npy") if name.endswith(".codes.npy") else ""


def _is_member(shard: memoryview, at: int, name: str) -> bool:
    """Whether the member whose data begin at an offset bears a name."""
    return member_name(shard, at) == name


def build_index_of(address: str | Path) -> np.ndarray:
    """The index of a shard, int64 [N, 5], from its tar headers alone. Raises InputError as `scan` does."""
    store, name = split_path(address)
    return build_index(store.view(name), store.display_path(name))


def build_index(shard: memoryview, where: str) -> np.ndarray:
    """The index of a shard's bytes, int64 [N, 5].

    Raises InputError for a tar that is cut short or damaged, samples with a member missing, members with absolute or
    `..` paths, and arrays that are not uint16 [K, T] and float16 [D].
    """
    groups: list[tuple[str, dict[str, tuple[int, int]]]] = []  # key, and offset and size by extension
    for name, start, size in iter_members(shard, where):
        folder, slash, file = name.rpartition("/")
        stem, dot, extension = file.partition(".")
        key = f"{folder}{slash}{stem}"
        if not groups or groups[-1][0] != key:
            groups.append((key, {}))
        if not dot or extension in groups[-1][1]:
            raise InputError(f"{where}: the member {name!r} is there twice, or belongs to no sample")
        groups[-1][1][extension] = (start, size)
    torn = [
        f"{key} (no {', '.join(e for e in MEMBERS if e not in g)})" for key, g in groups if not g.keys() >= {*MEMBERS}
    ]
    if torn:
        if dotted := _dotted_key(groups):
            raise InputError(
                f"{where}: the key {dotted!r} has a dot in its last part, where WebDataset ends a key: write the "
                "shards with keys without dots (folders may have them)"
            )
        raise InputError(f"{where}: {len(torn)} samples lack members: {', '.join(torn[:5])}")
    rows = np.zeros((len(groups), 5), np.int64)
    for row, (key, members) in zip(rows, groups, strict=True):
        codes_at, prompt_at = members["codes.npy"][0] + NPY_HEADER_BYTES, members["prompt.npy"][0] + NPY_HEADER_BYTES
        codes = _read_array(shard, codes_at, CODES_DTYPE, where, key, members["codes.npy"][1])
        _read_array(shard, prompt_at, PROMPT_DTYPE, where, key, members["prompt.npy"][1])
        row[:] = codes_at, codes.shape[1], prompt_at, *members["json"]
    return rows


def _dotted_key(groups: list[tuple[str, dict[str, tuple[int, int]]]]) -> str | None:
    """The first key that was meant to have a dot: one of our members behind another extension."""
    for key, members in groups:
        for extension in members:
            for member in MEMBERS:
                if extension.endswith(f".{member}"):
                    return f"{key}.{extension.removesuffix(f'.{member}')}"
    return None


def samples_by_webdataset(address: str | Path) -> Iterator[Sample]:
    """All samples of a shard in order, through stock webdataset: slower, and blind to a missing last sample.

    Raises InputError for a sample that lacks a member.
    """
    import webdataset as wds

    store, name = split_path(address)
    stream = [{"url": store.display_path(name), "stream": io.BytesIO(store.read(name))}]
    for found in wds.tariterators.group_by_keys(
        wds.tariterators.tar_file_expander(stream, handler=wds.reraise_exception)
    ):
        key = found["__key__"]
        if any(member not in found for member in MEMBERS):
            raise InputError(f"{store.display_path(name)}: {key} lacks members: it has {sorted(found)}")
        codes, prompt = (np.load(io.BytesIO(found[member]), allow_pickle=False) for member in MEMBERS[:2])
        yield Sample(key, codes, prompt, json.loads(found["json"]))


def _npy_bytes(array: np.ndarray) -> bytes:
    return _npy_header(array.dtype.str, array.shape) + np.ascontiguousarray(array).tobytes()


@lru_cache(maxsize=4096)
def _npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    assert len(file.getvalue()) == NPY_HEADER_BYTES
    return file.getvalue()


@lru_cache(maxsize=4096)
def _npy_shape(header: bytes, dtype: np.dtype) -> tuple[int, ...] | None:
    """The shape that an array's header of 128 bytes tells, or None if it is no header of such an array.

    numpy's own reader goes through `ast`, which fails at random in threads before Python 3.12 (gh-106905).
    """
    told = [pattern.search(header) for pattern in (_DESCR, _FORTRAN, _SHAPE)]
    if (
        header[:8] != b"\x93NUMPY\x01\x00"
        or int.from_bytes(header[8:10], "little") != NPY_HEADER_BYTES - 10
        or None in told
    ):
        return None
    descr, fortran, shape = (found[1].decode("latin-1") for found in told if found)
    if descr != dtype.str or fortran == "True":
        return None
    return tuple(int(n) for n in shape.replace(",", " ").split())


def _read_array(
    shard: memoryview, at: int, dtype: np.dtype, where: str, key: str, size: int | None = None
) -> np.ndarray:
    """The array whose data begin at an offset, copied out. size: bytes of its member, where known, to be held."""
    shape = _npy_shape(bytes(shard[at - NPY_HEADER_BYTES : at]), dtype)
    ndim = 2 if dtype == CODES_DTYPE else 1
    if shape is None or len(shape) != ndim:
        raise InputError(f"{where}: {key} is not of our format: codes are uint16 [K, T], a prompt is float16 [D]")
    count = math.prod(shape)
    if at + count * dtype.itemsize > len(shard) or (
        size is not None and size != NPY_HEADER_BYTES + count * dtype.itemsize
    ):
        raise InputError(f"{where}: {key} has an array of {shape} that does not fill its member")
    return np.frombuffer(shard, dtype, count, at).reshape(shape).copy()
