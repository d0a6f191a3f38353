"""Hugging Face `datasets`: parquet files and a README.md that lists them, also for pandas, polars and DuckDB.

Columns: `key`, `codes` (uint16 [K, T] as lists), `prompt` (float32 [D], or [N, D] where a clip has N vectors),
`seconds`, `split`, `labels` (one field each), `source`, `start`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data.formats import FORMATS, ConvertedClip, DatasetFormat, optional_import
from pipeline.data.labels import LabelVocabulary, Vocabularies
from pipeline.data.manifest import Manifest

GROUP_BYTES = 16 << 20  # of codes and prompts in memory, and in a row group
FILE_BYTES = 512 << 20  # of codes and prompts in a file


@FORMATS.register("huggingface")
class HuggingFaceFormat(DatasetFormat):
    """`data/{split}-{index:05d}.parquet`."""

    reader = "datasets.load_dataset('{out}', split='{split}')"

    def __init__(self, folder: Path, manifest: Manifest, labels: Vocabularies) -> None:
        super().__init__(folder, manifest, labels)
        with optional_import("parquet"):
            import pyarrow
            from pyarrow import parquet
        self._pyarrow, self._parquet = pyarrow, parquet
        (folder / "data").mkdir()
        files = "".join(f"  - split: {split}\n    path: data/{split}-*.parquet\n" for split in manifest.splits)
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")

    def write(self, split: str, clips: Iterator[ConvertedClip]) -> None:
        """Write the files of a split."""
        groups = _groups(clips)
        first = next(groups)
        schema = self._schema(first[0])
        groups = itertools.chain([first], groups)
        for number in itertools.count():
            group = next(groups, None)
            if group is None:
                return
            path, size = self.folder / "data" / f"{split}-{number:05d}.parquet", 0
            with self._parquet.ParquetWriter(path, schema) as file:
                while group:
                    file.write_table(self._pyarrow.Table.from_pylist([_row(clip, split) for clip in group], schema))
                    size += sum(map(_bytes, group))
                    group = next(groups, None) if size < FILE_BYTES else None

    def _schema(self, clip: ConvertedClip) -> Any:
        """The types of the columns. clip: one of the split, with the prompt's number of dimensions."""
        arrow = self._pyarrow
        prompt = arrow.float32()
        for _ in range(clip.prompt.ndim):
            prompt = arrow.list_(prompt)
        columns = {"key": arrow.string(), "codes": arrow.list_(arrow.list_(arrow.uint16())), "prompt": prompt}
        columns |= {"seconds": arrow.float64(), "split": arrow.string()}
        if self.labels:
            columns["labels"] = arrow.struct([(name, self._label_type(label)) for name, label in self.labels.items()])
        columns |= {"source": arrow.string(), "start": arrow.float64()}
        identity = {name: json.dumps(value) for name, value in self._identity().items()}
        return arrow.schema(list(columns.items()), identity)

    def _identity(self) -> dict[str, Any]:
        return {"codec": self.manifest.codec, "embedder": self.manifest.embedder}

    def _label_type(self, label: LabelVocabulary) -> Any:
        arrow = self._pyarrow
        if label.kind == "number":
            whole = label.values is not None and all(value.lstrip("-").isdigit() for value in label.values)
            return arrow.int64() if whole else arrow.float64()
        return arrow.list_(arrow.string()) if label.kind == "tags" else arrow.string()


def _bytes(clip: ConvertedClip) -> int:
    return clip.codes.nbytes + 2 * clip.prompt.nbytes  # prompts are written as float32


def _groups(clips: Iterator[ConvertedClip]) -> Iterator[list[ConvertedClip]]:
    """Consecutive clips, in lists of about `GROUP_BYTES`."""
    group: list[ConvertedClip] = []
    size = 0
    for clip in clips:
        group.append(clip)
        size += _bytes(clip)
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _row(clip: ConvertedClip, split: str) -> dict[str, Any]:
    prompt = clip.prompt.astype("float32")
    return {
        "key": clip.key, "codes": [*clip.codes], "prompt": prompt if prompt.ndim == 1 else [*prompt],
        "seconds": clip.seconds, "split": split, "labels": clip.labels, "source": clip.source, "start": clip.start,
    }  # fmt: skip
