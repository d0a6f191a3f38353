"""Conversion of a dataset to a format of other programs: a folder that is complete or not there."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError
from pipeline.common.files import PARTIAL, check_output_folder
from pipeline.data.formats import FORMATS, ConvertedClip
from pipeline.data.labels import LabelCounter, LabelVocabulary, Vocabularies
from pipeline.data.manifest import Manifest
from pipeline.data.open_shard import check_counts
from pipeline.data.shard import KEY_PATTERN, Sample, iter_samples, load_index
from pipeline.data.storage import Storage

DESCRIPTION = "dataset.json"  # the identities of codec and embedder, in every format


def convert(store: Storage, name: str, out: Path) -> list[str]:
    """Convert a dataset.

    The folder is written under a temporary name and renamed at the end, so that an interrupted conversion leaves none.

    Args:
        store: of the dataset.
        name: of the format.
        out: the folder to create; it must be empty if it exists.

    Returns:
        Lines for the user: what was written, and how to read it.

    Raises:
        InputError: a setting is not valid, a package is missing, or a shard is damaged.
    """
    kind = FORMATS.get(name, "to")
    check_output_folder("out", out)
    if out.exists() and any(out.iterdir()):
        raise InputError(f"out={out}: the folder is not empty; give a new one")
    manifest = Manifest.load(store)
    manifest.splits = {split: shards for split, shards in manifest.splits.items() if manifest.num_samples(split)}
    temporary = out.absolute().with_name(f".{out.absolute().name}{PARTIAL}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        labels = manifest.labels or _count_labels(store, manifest)
        converted = kind(temporary, manifest, labels)
        for split in manifest.splits:
            converted.write(split, _clips(store, manifest, split, labels))
        description = {"codec": manifest.codec, "embedder": manifest.embedder, "splits": _counts(manifest)}
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    clips = ", ".join(f"{count:,} {split}" for split, count in _counts(manifest).items())
    reader = kind.reader.format(out=out, split=next(iter(manifest.splits), "train"))
    return [f"{out}: wrote {clips or 'no'} clips as {name}", f"read it: {reader}"]


def _counts(manifest: Manifest) -> dict[str, int]:
    return {split: manifest.num_samples(split) for split in manifest.splits}


def _samples(store: Storage, manifest: Manifest, split: str) -> Iterator[Sample]:
    """The samples of a split, from shards whose checksums are compared first."""
    for info in manifest.splits[split]:
        try:
            shard = store.open(info.name)
        except FileNotFoundError as error:
            path = store.display_path(info.name)
            raise InputError(f"{path} is in the manifest but does not exist: restore it") from error
        index = load_index(store, info.name, shard, info.sha256)
        check_counts(shard, len(index), info)
        yield from iter_samples(shard, index)


def _clips(store: Storage, manifest: Manifest, split: str, labels: Vocabularies) -> Iterator[ConvertedClip]:
    for sample in _samples(store, manifest, split):
        if not KEY_PATTERN.fullmatch(sample.key):
            raise InputError(f"{store.display_path()}: the key {sample.key!r} cannot be the name of a file")
        metadata, values = sample.metadata, sample.metadata.get("labels") or {}
        seconds = metadata.get("duration", sample.codes.shape[1] / float(manifest.frame_rate))
        yield ConvertedClip(
            key=sample.key, codes=sample.codes, prompt=sample.prompt, seconds=float(seconds),
            labels={name: _label(values.get(name), label) for name, label in labels.items()},
            source=str(metadata.get("path", "")), start=float(metadata.get("start", 0)),
        )  # fmt: skip


def _label(value: Any, label: LabelVocabulary) -> Any:
    """The value of a label as its vocabulary has it: a number, a text or a list of texts; None if there is none."""
    if value is None or label.kind == "number":
        return value
    if label.kind == "tags":
        return [str(tag) for tag in value] if isinstance(value, list) else [str(value)]
    return str(value)


def _count_labels(store: Storage, manifest: Manifest) -> Vocabularies:
    """The vocabularies of a dataset whose manifest has none: that of an older version, or of clips without labels."""
    counter = LabelCounter()
    for sample in itertools.chain.from_iterable(_samples(store, manifest, split) for split in manifest.splits):
        counter.add(sample.metadata.get("labels") or {})
    return counter.vocabularies()
