"""Other ways to read a shard: with the webdataset package, and the index that its tar headers give."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import webdataset as wds

from pipeline.data.file_reader import FileReader
from pipeline.data.shard import MEMBERS, Sample, build_index
from pipeline.data.storage import split_path


def read_with_webdataset(address: str | Path) -> Iterator[Sample]:
    """Yield all samples of a shard in order, as webdataset reads them."""
    store, name = split_path(address)
    stream = [{"url": store.display_path(name), "stream": io.BytesIO(store.read(name))}]
    members = wds.tariterators.tar_file_expander(stream, handler=wds.reraise_exception)
    for sample in wds.tariterators.group_by_keys(members):
        codes, prompt = (np.load(io.BytesIO(sample[member]), allow_pickle=False) for member in MEMBERS[:2])
        yield Sample(sample["__key__"], codes, prompt, json.loads(sample["json"]))


def scan_index(address: str | Path) -> np.ndarray:
    """Return the index of a shard from its tar headers: int64 [N, 5]."""
    store, name = split_path(address)
    return build_index(store.open(name))


def open_bytes(data: bytes, path: str = "the shard") -> FileReader:
    """Return a reader of bytes, as of a file with this path."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return FileReader(file, path)
