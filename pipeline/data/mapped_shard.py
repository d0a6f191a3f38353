"""Memory-mapped shards, and NumPy views of all memory by address.

A batch is gathered from many shards, so its clips are identified by their memory addresses. One read-only NumPy array
views all memory of the process as rows, and a single indexing call copies a whole batch. Every address comes from an
index that was checked against its shard when the shard was opened, and a shard stays mapped while it is referenced.

Letters: N samples, K codebooks, T frames, P prompt dimensions.
"""

from __future__ import annotations

import functools
import mmap

import numpy as np

from pipeline.common.errors import InputError
from pipeline.data.manifest import Manifest
from pipeline.data.npy import NPY_HEADER_BYTES
from pipeline.data.shard import CODES_DTYPE, PROMPT_DTYPE, ShardInfo, iter_samples
from pipeline.data.tar_headers import BLOCK

ALIGN = 128  # bytes; arrays in a shard start at multiples of it
MAX_ITEM_BYTES = 2**21  # of `memory_as_array`, since NumPy counts the bytes of an array in 63 bits
RUN_VERIFY = "`python -m pipeline.shards verify` lists all faults"
_SAMPLES_CHECKED = 8  # per shard, when it is opened


class _ArrayAtAddress:
    """An object that NumPy converts to an array over existing memory."""

    def __init__(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype) -> None:
        self.__array_interface__ = {
            "data": (address, True),
            "shape": shape,
            "strides": strides,
            "typestr": dtype.str,
            "version": 3,
        }


@functools.lru_cache(maxsize=256)
def memory_as_array(size: int) -> np.ndarray:
    """Return all memory as a read-only array of overlapping items, one every 128 bytes.

    The item at an address has the index address // 128 - 1. Items are opaque to NumPy, which copies each as a block.

    Args:
        size: bytes of an item, at most MAX_ITEM_BYTES.
    """
    return np.asarray(_ArrayAtAddress(ALIGN, (2**48 // ALIGN - 1,), (ALIGN,), np.dtype(f"V{size}")))


def array_at(address: int, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """Return a read-only view of the array at an address."""
    return np.asarray(_ArrayAtAddress(address, shape, (shape[1] * dtype.itemsize, dtype.itemsize), dtype))


class MappedShard:
    """One memory-mapped shard of N samples.

    Attributes:
        addresses: int64 [N, 3], per sample: address of its codes, number of frames, address of its prompt.
        view: the bytes of the shard.
    """

    def __init__(self, shard: memoryview, index: np.ndarray, info: ShardInfo, manifest: Manifest, where: str) -> None:
        """Check a shard against its index and the manifest.

        Args:
            shard: bytes of the shard.
            index: int64 [N, 5], as `load_index` returns it.
            info: what the manifest says of the shard.
            manifest: of the dataset.
            where: path of the shard, for messages.

        Raises:
            InputError: the shard does not match.
        """
        check_counts(len(shard), len(index), info, where)
        self.view = shard = _aligned(shard)
        codes, frames, prompts = index[:, 0], index[:, 1], index[:, 2]
        starts = index[:, :3:2]  # [N, 2], of codes and prompts
        ends = (
            codes + manifest.codebooks * frames * CODES_DTYPE.itemsize,
            prompts + manifest.prompt_dim * PROMPT_DTYPE.itemsize,
        )
        inside = frames.min(initial=0) >= 0 and all(x.max(initial=0) <= len(shard) for x in ends)
        if not inside or starts.min(initial=BLOCK) < BLOCK or ((starts - NPY_HEADER_BYTES) % BLOCK).any():
            raise InputError(f"{where} does not match its index: remove the index, or restore the shard")
        self._check_samples(index, manifest, where)
        self._base_address = np.frombuffer(shard, np.uint8).ctypes.data if len(shard) else 0
        self.addresses = index[:, :3] + np.array([self._base_address, 0, self._base_address])

    def codes_offset(self, row: int) -> int:
        """Return the offset of a clip's codes in the shard, in bytes."""
        return int(self.addresses[row, 0]) - self._base_address

    def _check_samples(self, index: np.ndarray, manifest: Manifest, where: str) -> None:
        rows = np.unique(np.linspace(0, len(index) - 1, min(_SAMPLES_CHECKED, len(index))).astype(np.int64))
        for sample in iter_samples(self.view, index[rows], where):
            if (len(sample.codes), len(sample.prompt)) != (manifest.codebooks, manifest.prompt_dim):
                raise InputError(
                    f"{where}: {sample.key} has {len(sample.codes)} codebooks and a prompt of {len(sample.prompt)} "
                    f"where the manifest says {manifest.codebooks} and {manifest.prompt_dim}"
                )


def check_counts(size: int, clips: int, info: ShardInfo, where: str) -> None:
    """Raise InputError unless a shard has the size and the number of clips that the manifest says."""
    if size != info.bytes or clips != info.samples:
        raise InputError(
            f"{where} is truncated or belongs to another dataset ({size} bytes and {clips} clips where the manifest "
            f"says {info.bytes} and {info.samples}): {RUN_VERIFY}"
        )


def _aligned(shard: memoryview) -> memoryview:
    """Return the same bytes at a multiple of ALIGN: mapped files unchanged, others copied."""
    if not len(shard) or np.frombuffer(shard, np.uint8).ctypes.data % ALIGN == 0:
        return shard
    copy = mmap.mmap(-1, len(shard))
    copy[:] = shard
    return memoryview(copy).toreadonly()
