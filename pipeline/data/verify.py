"""Whether a cache is what its manifest says: every byte, every count, every key, every code.

Shards are read once each, by as many processes as asked for; what must hold between shards (keys are unique, no
recording lies in two splits) is checked on what these report.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np

from pipeline.common.errors import InputError
from pipeline.data.build_state import PLAN, BuildPlan, plan_digest
from pipeline.data.manifest import MANIFEST_NAME, Manifest
from pipeline.data.shard import ShardInfo, add_checksums, build_index, checksum, index_name, iter_samples, read_index
from pipeline.data.storage import Storage, open_storage

MAX_KEYS_LISTED = 3  # faults of one kind told of one shard


@dataclass
class ShardReport:
    """What came of one shard. recordings: the paths that its clips were cut from."""

    name: str
    split: str
    faults: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    recordings: set[str] = field(default_factory=set)


def verify(store: Storage, workers: int = 1) -> Iterator[str]:
    """Every fault of a cache, as a line each. Raises InputError where there is no manifest to hold it against."""
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
    """What of the manifest is not as the plan says that it was made from; a cache may be copied without its plan."""
    try:
        plan = BuildPlan.load(store)
    except InputError as error:
        yield str(error)
        return
    if plan is None:
        return
    if manifest.plan != plan_digest(store):
        yield f"{PLAN}: it is not the plan that {MANIFEST_NAME} was made from"
    for part, ours in (("codec", manifest.codec), ("embedder", manifest.embedder)):
        planned = plan.resolved.get(part, {})
        for key in sorted({*ours, *planned}):
            if ours.get(key) != planned.get(key):
                yield f"{MANIFEST_NAME}: {part}.{key} is {ours.get(key)!r}, and {planned.get(key)!r} in {PLAN}"


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def _check_files(store: Storage, names: list[str]) -> Iterator[str]:
    there = store.sizes()
    for name in names:
        if name not in there:
            yield f"{name}: missing"
        elif index_name(name) not in there:
            yield f"{name}: its index {index_name(name)} is missing"
    if len(set(names)) < len(names):
        yield "manifest.json: a shard is listed twice"
    for name in there:
        if name.endswith(".tar") and name not in names:
            yield f"{name}: foreign, the manifest does not know it"


def _check_shards(
    store: Storage, manifest: Manifest, listed: list[tuple[str, ShardInfo]], workers: int
) -> Iterator[ShardReport]:
    rows = [(store.address, manifest, split, shard) for split, shard in listed]
    with ExitStack() as stack:
        if min(workers, len(rows)) > 1:
            pool = stack.enter_context(ProcessPoolExecutor(min(workers, len(rows)), get_context("spawn")))
            yield from pool.map(_check_shard, rows)
        else:
            yield from map(_check_shard, rows)


def _check_shard(row: tuple[str, Manifest, str, ShardInfo]) -> ShardReport:
    """One shard, held against what the manifest says of it."""
    where, manifest, split, said = row
    store = open_storage(where)
    report = ShardReport(said.name, split)
    try:
        shard = store.view(said.name)
    except FileNotFoundError:
        return report  # told by the look at the folder
    if len(shard) != said.bytes:
        report.faults.append(f"{len(shard)} bytes where the manifest says {said.bytes}")
    elif hashlib.sha256(shard).hexdigest() != said.sha256:
        report.faults.append("its bytes are not those that were written (sha256 differs)")
    try:
        _check_contents(report, store, shard, manifest, said)
    except InputError as error:
        report.faults.append(str(error).removeprefix(f"{store.display_path(said.name)}: "))
    return report


def _check_contents(
    report: ShardReport, store: Storage, shard: memoryview, manifest: Manifest, said: ShardInfo
) -> None:
    index = build_index(shard, store.display_path(said.name))
    if store.size(index_name(said.name)) is not None:
        try:
            written, expected = read_index(store.read(index_name(said.name)), said.name)
            fits = np.array_equal(written, index) and expected in (None, checksum(shard))
        except InputError:
            fits = False
        if not fits:
            report.faults.append(f"its index {index_name(said.name)} does not fit it")
    counted = (len(index), int(index[:, 1].sum()))
    if counted != (said.samples, said.frames):
        report.faults.append(f"{counted[0]} samples of {counted[1]} frames, not {said.samples} of {said.frames}")
    faults: dict[str, list[str]] = {}
    for sample in iter_samples(shard, index, store.display_path(said.name)):
        report.keys.append(sample.key)
        report.recordings.add(str(sample.metadata.get("path")))
        for fault in _sample_faults(sample.codes, sample.prompt, sample.metadata, report.split, manifest):
            faults.setdefault(fault, []).append(sample.key)
    if len(set(report.keys)) < len(report.keys):
        report.faults.append("two samples have one key")
    for fault, keys in faults.items():
        more = f" and {len(keys) - MAX_KEYS_LISTED} more" if len(keys) > MAX_KEYS_LISTED else ""
        report.faults.append(f"{fault}: {', '.join(keys[:MAX_KEYS_LISTED])}{more}")


def _sample_faults(
    codes: np.ndarray, prompt: np.ndarray, info: dict[str, Any], split: str, manifest: Manifest
) -> Iterator[str]:
    """codes: uint16 [K, T]; prompt: float16 [D]."""
    size = manifest.codec["codebook_size"]
    if codes.shape[0] != manifest.codebooks:
        yield f"{codes.shape[0]} codebooks where the manifest says {manifest.codebooks}"
    if codes.max(initial=0) >= size:
        yield f"codes of {size} or more"
    if len(prompt) != manifest.prompt_dim:
        yield f"prompts of {len(prompt)} values where the manifest says {manifest.prompt_dim}"
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
        yield "another number of frames than their duration tells"


def rebuild_index(store: Storage, info: ShardInfo) -> None:
    """Write the index of a shard again, from the shard. Raises InputError where that is not what its manifest says."""
    shard = store.view(info.name)
    if hashlib.sha256(shard).hexdigest() != info.sha256:
        raise InputError(
            f"{store.display_path(info.name)} has changed since it was written (its sha256 differs): restore it"
        )
    index = add_checksums(build_index(shard, store.display_path(info.name)), checksum(shard))
    with store.open_atomic(index_name(info.name)) as file:
        np.save(file, index, allow_pickle=False)
