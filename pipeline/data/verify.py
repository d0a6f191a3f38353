"""Verification of a tokenized dataset against its manifest: every byte, every count, every key, every code.

Each shard is read once, by one of several processes. Properties across shards (keys are unique, no recording is in two
splits) are checked on the reports of these processes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np

from pipeline.common.errors import InputError
from pipeline.data.build_state import PLAN, BuildPlan, plan_digest
from pipeline.data.file_reader import FileReader
from pipeline.data.manifest import MANIFEST_NAME, Manifest
from pipeline.data.shard import (
    ShardInfo,
    build_index,
    index_name,
    iter_samples,
    read_index,
    shard_checksum,
    write_index,
)
from pipeline.data.storage import Storage, open_storage

MAX_KEYS_LISTED = 3  # per shard and kind of fault


@dataclass
class ShardReport:
    """The result of checking one shard.

    Attributes:
        name: of the shard.
        split: that the manifest lists it in.
        faults: one line each.
        keys: of all samples.
        recordings: paths of the audio files of its clips.
    """

    name: str
    split: str
    faults: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    recordings: set[str] = field(default_factory=set)


def verify(store: Storage, workers: int = 1) -> Iterator[str]:
    """Yield every fault of a dataset as a line.

    Args:
        store: of the dataset.
        workers: number of processes.

    Raises:
        InputError: the manifest is missing or damaged.
    """
    manifest = Manifest.load(store)
    yield from _check_plan(store, manifest)
    listed = [(split, shard) for split, shards in manifest.splits.items() for shard in shards]
    yield from _check_files(store, [shard.name for _, shard in listed])
    splits: dict[int, str] = {}
    keys: dict[int, str] = {}
    for report in _check_shards(store, manifest, listed, workers):
        yield from (f"{report.name}: {fault}" for fault in report.faults)
        for key in report.keys:
            other = keys.setdefault(_hash64(key), report.name)
            if other != report.name:
                yield f"{report.name}: the key {key!r} is in {other} too"
        for path in sorted(report.recordings):
            other = splits.setdefault(_hash64(path), report.split)
            if other != report.split:
                yield f"{report.name}: clips of {path!r} are in {report.split} and in {other}"


def _check_plan(store: Storage, manifest: Manifest) -> Iterator[str]:
    """Yield differences between the manifest and its build plan; a dataset may be copied without its plan."""
    try:
        plan = BuildPlan.load(store)
    except InputError as error:
        yield str(error)
        return
    if plan is None:
        return
    if manifest.plan != plan_digest(store):
        yield f"{PLAN}: it is not the plan that {MANIFEST_NAME} was written for"
    for part, identity in (("codec", manifest.codec), ("embedder", manifest.embedder)):
        planned = plan.resolved.get(part, {})
        for key in sorted({*identity, *planned}):
            if identity.get(key) != planned.get(key):
                yield f"{MANIFEST_NAME}: {part}.{key} is {identity.get(key)!r}, but {planned.get(key)!r} in {PLAN}"


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def _check_files(store: Storage, names: list[str]) -> Iterator[str]:
    sizes = store.sizes()
    for name in names:
        if name not in sizes:
            yield f"{name}: missing"
        elif index_name(name) not in sizes:
            yield f"{name}: its index {index_name(name)} is missing"
    if len(set(names)) < len(names):
        yield "manifest.json: a shard is listed twice"
    for name in sizes:
        if name.endswith(".tar") and name not in names:
            yield f"{name}: unknown, the manifest does not list it"


def _check_shards(
    store: Storage, manifest: Manifest, listed: list[tuple[str, ShardInfo]], workers: int
) -> Iterator[ShardReport]:
    rows = [(store.address, manifest, split, shard) for split, shard in listed]
    if min(workers, len(rows)) <= 1:
        yield from map(_check_shard, rows)
        return
    with ProcessPoolExecutor(min(workers, len(rows)), get_context("spawn")) as pool:
        yield from pool.map(_check_shard, rows)


def _check_shard(row: tuple[str, Manifest, str, ShardInfo]) -> ShardReport:
    """Check one shard against the manifest."""
    where, manifest, split, info = row
    store = open_storage(where)
    report = ShardReport(info.name, split)
    try:
        shard = store.open(info.name)
    except FileNotFoundError:
        return report  # reported by `_check_files`
    if shard.size != info.bytes:
        report.faults.append(f"{shard.size} bytes where the manifest says {info.bytes}")
    elif shard.sha256() != info.sha256:
        report.faults.append("its bytes have changed since they were written (sha256 differs)")
    try:
        _check_contents(report, store, shard, manifest, info)
    except InputError as error:
        report.faults.append(str(error).removeprefix(f"{shard.path}: "))
    return report


def _check_contents(
    report: ShardReport, store: Storage, shard: FileReader, manifest: Manifest, info: ShardInfo
) -> None:
    index = build_index(shard)
    try:
        stored = read_index(store, info.name)
        fits = stored is None or (np.array_equal(stored[0], index) and stored[1] == shard_checksum(shard))
    except InputError:
        fits = False
    if not fits:
        report.faults.append(f"its index {index_name(info.name)} does not match it")
    counted = (len(index), int(index[:, 1].sum()))
    if counted != (info.samples, info.frames):
        report.faults.append(f"{counted[0]} samples of {counted[1]} frames, not {info.samples} of {info.frames}")
    faults: dict[str, list[str]] = {}
    for sample in iter_samples(shard, index):
        report.keys.append(sample.key)
        report.recordings.add(str(sample.metadata.get("path")))
        for fault in _sample_faults(sample.codes, sample.prompt, sample.metadata, report.split, manifest):
            faults.setdefault(fault, []).append(sample.key)
    if len(set(report.keys)) < len(report.keys):
        report.faults.append("two samples have the same key")
    for fault, keys in faults.items():
        more = f" and {len(keys) - MAX_KEYS_LISTED} more" if len(keys) > MAX_KEYS_LISTED else ""
        report.faults.append(f"{fault}: {', '.join(keys[:MAX_KEYS_LISTED])}{more}")


def _sample_faults(
    codes: np.ndarray, prompt: np.ndarray, info: dict[str, Any], split: str, manifest: Manifest
) -> Iterator[str]:
    """Yield faults of one sample, without its key. codes: uint16 [K, T]; prompt: float16 [D] or [N, D]."""
    size = manifest.codec["codebook_size"]
    if codes.shape[0] != manifest.codebooks:
        yield f"{codes.shape[0]} codebooks where the manifest says {manifest.codebooks}"
    if codes.max(initial=0) >= size:
        yield f"codes of {size} or more"
    expected = (manifest.prompt_frames, manifest.prompt_dim)
    if (1, *prompt.shape)[-2:] != expected:
        stored, listed = (" x ".join(str(n) for n in shape if n > 1) for shape in (prompt.shape, expected))
        yield f"prompts of {stored} values where the manifest says {listed}"
    if not np.isfinite(prompt).all():
        yield "prompts with NaN or infinite values"
    if info.get("split") != split:
        yield f"of split {info.get('split')!r}, in a shard of {split!r}"
    duration = info.get("duration")
    if (
        not isinstance(duration, (int, float))
        or not 0 <= duration < 1e9
        or abs(math.ceil(round(duration * manifest.frame_rate, 3)) - codes.shape[1]) > 1
    ):
        yield "a number of frames that does not match their duration"


def rebuild_index(store: Storage, info: ShardInfo) -> None:
    """Write the index of a shard again, from the shard. Raises InputError if the shard does not match the manifest."""
    shard = store.open(info.name)
    if shard.sha256() != info.sha256:
        raise InputError(f"{shard.path} has changed since it was written (its sha256 differs): restore it")
    write_index(store, info.name, build_index(shard), shard_checksum(shard))
