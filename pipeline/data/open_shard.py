"""A shard that is open for random access, after its checks.

Letters: N samples, K codebooks, T frames.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from pipeline.common.errors import InputError
from pipeline.data.file_reader import FileReader
from pipeline.data.manifest import Manifest
from pipeline.data.npy import NPY_HEADER_BYTES
from pipeline.data.shard import CODES_DTYPE, PROMPT_DTYPE, ShardInfo, iter_samples
from pipeline.data.tar_headers import BLOCK

RUN_VERIFY = "`python -m pipeline.shards verify` lists all faults"
_SAMPLES_CHECKED = 8  # per shard, when it is opened


class OpenShard:
    """One open shard of N samples.

    Attributes:
        reader: its bytes.
        rows: int64 [N, 3], per sample: offset of its codes, number of frames, offset of its prompt.
        labels: the value of each sample, by the name of the label; None where a sample does not have it.
    """

    def __init__(
        self, reader: FileReader, index: np.ndarray, info: ShardInfo, manifest: Manifest, labels: Sequence[str] = ()
    ) -> None:
        """Check a shard against its index and the manifest.

        Args:
            reader: the shard.
            index: int64 [N, 5], as `load_index` returns it.
            info: what the manifest says of the shard.
            manifest: of the dataset.
            labels: names of the labels to read.

        Raises:
            InputError: the shard does not match, or the metadata of a sample is damaged.
        """
        check_counts(reader, len(index), info)
        codes, frames, prompts = index[:, 0], index[:, 1], index[:, 2]
        starts = index[:, :3:2]  # [N, 2], of codes and prompts
        ends = (
            codes + manifest.codebooks * frames * CODES_DTYPE.itemsize,
            prompts + manifest.prompt_frames * manifest.prompt_dim * PROMPT_DTYPE.itemsize,
        )
        inside = frames.min(initial=0) >= 0 and all(x.max(initial=0) <= reader.size for x in ends)
        if not inside or starts.min(initial=BLOCK) < BLOCK or ((starts - NPY_HEADER_BYTES) % BLOCK).any():
            raise InputError(f"{reader.path} does not match its index: remove the index, or restore the shard")
        self.reader, self.rows = reader, index[:, :3]
        self._check_samples(index, manifest)
        self.labels = _read_labels(reader, index, labels) if labels else {}

    def _check_samples(self, index: np.ndarray, manifest: Manifest) -> None:
        rows = np.unique(np.linspace(0, len(index) - 1, min(_SAMPLES_CHECKED, len(index))).astype(np.int64))
        expected = (manifest.codebooks, manifest.prompt_frames, manifest.prompt_dim)
        for sample in iter_samples(self.reader, index[rows]):
            shape = (len(sample.codes), *sample.prompt_vectors.shape)
            if shape != expected:
                raise InputError(
                    f"{self.reader.path}: {sample.key} has {describe_shape(shape)} where the manifest says "
                    f"{describe_shape(expected)}"
                )


def _read_labels(reader: FileReader, index: np.ndarray, names: Sequence[str]) -> dict[str, list[object]]:
    """The labels of all samples, by name; equal values share one object."""
    columns: dict[str, list[object]] = {name: [] for name in names}
    known: dict[str, object] = {}
    for start, size in index[:, 3:].tolist():
        try:
            metadata = json.loads(reader.read(start, size))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{reader.path}: the metadata of a sample is damaged ({error}): {RUN_VERIFY}") from error
        labels = metadata.get("labels") if isinstance(metadata, dict) else None
        for name, column in columns.items():
            value = labels.get(name) if isinstance(labels, dict) else None
            column.append(known.setdefault(repr(value), value))
    return columns


def describe_shape(shape: tuple[int, int, int]) -> str:
    """The number of codebooks, of prompt vectors and of their values, in words."""
    codebooks, vectors, values = shape
    prompt = f"a prompt of {values} values" if vectors == 1 else f"{vectors} prompt vectors of {values} values"
    return f"{codebooks} codebooks and {prompt}"


def check_counts(shard: FileReader, clips: int, info: ShardInfo) -> None:
    """Raise InputError unless a shard has the size and the number of clips that the manifest says."""
    if shard.size != info.bytes or clips != info.samples:
        raise InputError(
            f"{shard.path} is truncated or belongs to another dataset ({shard.size} bytes and {clips} clips where the "
            f"manifest says {info.bytes} and {info.samples}): {RUN_VERIFY}"
        )
