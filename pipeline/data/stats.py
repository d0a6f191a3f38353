"""Statistics of a tokenized dataset: hours, bytes, labels, and the usage of each codebook."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.common.errors import InputError
from pipeline.data.labels import MAX_VALUES
from pipeline.data.manifest import Manifest
from pipeline.data.shard import Sample, iter_samples, load_index
from pipeline.data.storage import Storage

MAX_VALUES_SHOWN = 8  # of a label, the most frequent first


def dataset_stats(store: Storage) -> Iterator[str]:
    """Yield lines about a dataset. Reads every shard. Raises InputError if it is missing or damaged."""
    manifest = Manifest.load(store)
    usage = np.zeros((manifest.codebooks, manifest.codec["codebook_size"]), np.int64)
    labels: dict[str, Counter[str]] = {}
    seconds: list[float] = []
    for shards in manifest.splits.values():
        for info in shards:
            shard = store.open(info.name)
            for sample in iter_samples(shard, load_index(store, info.name, shard)):
                count_codes(usage, sample, shard.path)
                seconds.append(sample.codes.shape[1] / manifest.frame_rate)
                count_labels(labels, sample)
    yield from _size_lines(manifest)
    if seconds:
        shortest, middle, longest = np.quantile(seconds, [0, 0.5, 1])
        yield f"clips are {shortest:.2f} to {longest:.2f} s long, median {middle:.2f} s"
    yield from _label_lines(labels, len(seconds))
    yield "codebook   codes used   perplexity"
    for k, (used, perplexity) in enumerate(zip((usage > 0).sum(1), perplexities(usage), strict=True)):
        dead = "   dead: always the same code" if seconds and used <= 1 else ""
        yield f"{k + 1:8d} {used:7d} of {usage.shape[1]} {perplexity:12.1f}{dead}"


def perplexities(usage: np.ndarray) -> np.ndarray:
    """Return the perplexity of each codebook, float [K], from counts of its codes, int [K, codes].

    The perplexity is the number of codes that, used equally often, would carry the same information.
    """
    share = usage / np.maximum(1, usage.sum(1, keepdims=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.exp(-np.nansum(share * np.log(share), axis=1)))


def _size_lines(manifest: Manifest) -> Iterator[str]:
    codec, embedder = manifest.codec, manifest.embedder
    yield f"{manifest.path}"
    channels = " of two channels" if manifest.channels == 2 else ""
    size_of_codes = f"{codec['codebooks']} codebooks{channels} at {codec['frame_rate']:g} Hz"
    yield f"codec {codec['name']} ({codec['weights'][:12]}): {size_of_codes}"
    yield f"embedder {embedder['name']} ({embedder['weights'][:12]}): {embedder['dim']} dimensions"
    yield "split        hours      clips   shards         MB   MB/hour"
    rows = {split: [split] for split in manifest.splits} | ({"all": [*manifest.splits]} if manifest.splits else {})
    for name, splits in rows.items():
        shards = [shard for split in splits for shard in manifest.splits[split]]
        hours, size = sum(map(manifest.hours, splits)), sum(shard.bytes for shard in shards) / 1e6
        rate = size / hours if hours else 0.0
        clips = sum(shard.samples for shard in shards)
        yield f"{name:8} {hours:9.2f} {clips:10,} {len(shards):8,} {size:10,.1f} {rate:9.2f}"
    bits = codec["codebooks"] * math.log2(codec["codebook_size"]) * codec["frame_rate"]
    yield f"codes without metadata, at {bits / 1000:g} kbit/s: {bits * 3600 / 8e6:.2f} MB/hour"
    skipped = len({row["path"] or row["key"] for row in manifest.skipped})  # an input of many clips is one
    yield f"silent clips: {manifest.silent:,}; inputs skipped: {skipped:,}"


def labels_of(sample: Sample) -> dict[str, Any]:
    """Return the labels of a clip by name."""
    labels = sample.metadata.get("labels")
    return labels if isinstance(labels, dict) else {}


def count_labels(labels: dict[str, Counter[str]], sample: Sample) -> None:
    """Count the values of a clip's labels, by label, up to `MAX_VALUES` values each."""
    for name, value in labels_of(sample).items():
        counter = labels.setdefault(name, Counter())
        if len(counter) <= MAX_VALUES:
            counter.update(map(str, value) if isinstance(value, list) else [str(value)])


def count_codes(usage: np.ndarray, sample: Sample, where: str) -> None:
    """Count the codes of a clip of `where` in int64 [K, codes]. Raises InputError if they do not fit."""
    if len(sample.codes) != len(usage) or sample.codes.max(initial=0) >= usage.shape[1]:
        raise InputError(
            f"{where}: {sample.key} does not match the manifest: `python -m pipeline.shards verify` lists all faults"
        )
    for k, codes in enumerate(sample.codes):
        usage[k] += np.bincount(codes, minlength=usage.shape[1])


def _label_lines(labels: dict[str, Counter[str]], clips: int) -> Iterator[str]:
    for name, counter in labels.items():
        if not counter:
            continue
        if len(counter) > MAX_VALUES or (len(counter) > MAX_VALUES_SHOWN and len(counter) >= clips):
            yield f"{name}: a different value for nearly every clip"
            continue
        shown = ", ".join(f"{value} {count:,}" for value, count in counter.most_common(MAX_VALUES_SHOWN))
        more = f", and {len(counter) - MAX_VALUES_SHOWN:,} more values" if len(counter) > MAX_VALUES_SHOWN else ""
        yield f"{name}: {shown}{more}"
