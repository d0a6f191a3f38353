"""The state of a dataset that is being built: its plan, a record of each finished shard, and finally the manifest.

    plan.json                 the requested settings, and every shard with a fingerprint of its inputs
    train-000000.done.json    written after its shard: the inputs and settings of the shard
    manifest.json             written when every shard of the plan has a record, by the process that finishes last

A shard is finished if its record matches the plan. A run can therefore be killed at any time, and machines that do not
communicate can write parts of one plan. No file contains a time or a machine name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, Field, StrictInt, StrictStr

from pipeline.common.errors import InputError
from pipeline.data.labels import LabelCounter, Vocabularies, dump_vocabularies
from pipeline.data.manifest import FORMAT, Manifest, Skipped, read_json, skipped_rows
from pipeline.data.manifest import MANIFEST_NAME as MANIFEST
from pipeline.data.shard import ShardInfo, ShardName, index_name
from pipeline.data.storage import WRITE_TEST, LocalStorage, Storage

PLAN = "plan.json"
_BUILD_FILE = re.compile(r"\w+-\d{6,}(\.tar|\.index\.npy|\.done\.json)")


class _PlanFile(BaseModel):
    """The content of plan.json."""

    requested: dict[str, Any] = Field(alias="asked")
    resolved: dict[str, Any] = Field(alias="made")
    source_fingerprint: StrictStr = Field(alias="tree")
    shards: list[tuple[ShardName, StrictStr, StrictInt, StrictStr]]
    skipped: list[Skipped] = Field(alias="set_aside")
    adjusted: list[Skipped] = []


class _RecordFile(BaseModel):
    """The content of a record."""

    inputs: StrictStr
    resolved: StrictStr = Field(alias="made")
    codes: StrictStr
    shard: ShardInfo | None
    silent: StrictInt
    skipped: list[Skipped] = Field(alias="set_aside")
    adjusted: list[Skipped] = []
    labels: Vocabularies = {}


@dataclass(frozen=True)
class PlannedShard:
    """A shard of the plan: its name, its split, its number of clips, and a fingerprint of their inputs."""

    name: str
    split: str
    clips: int
    inputs: str


@dataclass(frozen=True)
class BuildPlan:
    """Everything that a dataset will contain.

    Attributes:
        requested: the settings as the user gave them.
        resolved: identities of codec and embedder, and the settings that determine the samples.
        source_fingerprint: of the corpus folder.
        shards: all shards, in order.
        skipped: inputs that the corpus skipped, as `skipped_row` returns them.
        adjusted: inputs that it uses in part, such as a recording without its labels, in the form of `skipped`.
    """

    requested: dict[str, Any]
    resolved: dict[str, Any]
    source_fingerprint: str
    shards: list[PlannedShard]
    skipped: list[dict[str, Any]] = field(default_factory=list)
    adjusted: list[dict[str, Any]] = field(default_factory=list)

    @property
    def clips(self) -> int:
        """Number of clips in all shards."""
        return sum(shard.clips for shard in self.shards)

    @classmethod
    def load(cls, store: Storage) -> BuildPlan | None:
        """Read the plan of a dataset; None if it has none. Raises InputError if it is damaged."""
        try:
            file = read_json(store, PLAN, _PlanFile, "remove it and run again, or give another out=")[1]
        except FileNotFoundError:
            return None
        shards = [PlannedShard(*row) for row in file.shards]
        skipped, adjusted = skipped_rows(file.skipped), skipped_rows(file.adjusted)
        return cls(file.requested, file.resolved, file.source_fingerprint, shards, skipped, adjusted)

    def save(self, store: Storage) -> None:
        """Write the plan atomically."""
        shards = [[s.name, s.split, s.clips, s.inputs] for s in self.shards]
        content = {
            "format": FORMAT,
            "asked": self.requested,
            "made": self.resolved,
            "tree": self.source_fingerprint,
            "shards": shards,
            "set_aside": self.skipped,
            **({"adjusted": self.adjusted} if self.adjusted else {}),
        }
        _write_json(store, PLAN, content)


@dataclass(frozen=True)
class ShardRecord:
    """The record of a finished shard.

    Attributes:
        inputs: fingerprint of its clips.
        resolved: digest of the settings.
        codes: digest of the settings without the embedder.
        shard: what was written; None if no clip could be used.
        silent: number of silent clips.
        skipped: inputs that are not in the shard, as `skipped_row` returns them.
        adjusted: clips whose audio differs from their files, in the form of `skipped`.
        labels: the vocabulary of each label of its clips.
    """

    inputs: str
    resolved: str
    codes: str
    shard: ShardInfo | None
    silent: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    adjusted: list[dict[str, Any]] = field(default_factory=list)
    labels: Vocabularies = field(default_factory=dict)

    @property
    def retry(self) -> bool:
        """Whether some clips failed for reasons of the machine, so that the next run writes the shard again."""
        return any("retry" in row for row in self.skipped)

    def save(self, store: Storage, name: str) -> None:
        """Write the record of the shard `name`, which must be complete."""
        content = {**vars(self), "shard": self.shard and self.shard.model_dump()}
        content["made"], content["set_aside"] = content.pop("resolved"), content.pop("skipped")
        if labels := dump_vocabularies(content.pop("labels")):
            content["labels"] = labels
        _write_json(store, record_name(name), content)


def record_name(shard: str) -> str:
    """Return the name of a shard's record: `train-000000.tar` -> `train-000000.done.json`."""
    return shard.removesuffix(".tar") + ".done.json"


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Return a short digest of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def codes_digest(settings: Mapping[str, Any]) -> str:
    """Return a digest of the settings that determine the codes: all except the embedder."""
    return settings_digest({name: value for name, value in settings.items() if name != "embedder"})


def load_records(store: Storage, sizes: Mapping[str, int]) -> dict[str, ShardRecord]:
    """Return the records of all complete shards, by the name of the shard.

    A record is ignored, and its shard written again, if it is damaged, if its shard is incomplete, or if another
    process has removed it to write the shard again.

    Args:
        store: of the dataset.
        sizes: of its files, from `store.sizes()`.
    """
    names = [name.removesuffix(".done.json") + ".tar" for name in sizes if name.endswith(".done.json")]
    contents = store.read_many([record_name(name) for name in names])
    records = {}
    for name in names:
        try:
            file = _RecordFile.model_validate(json.loads(contents[record_name(name)]))
        except (ValueError, KeyError, RecursionError):
            continue
        skipped, adjusted = skipped_rows(file.skipped), skipped_rows(file.adjusted)
        digests = (file.inputs, file.resolved, file.codes)
        record = ShardRecord(*digests, file.shard, file.silent, skipped, adjusted, file.labels)
        if record.shard and record.shard.name != name:
            continue
        is_complete = record.shard and sizes.get(name) == record.shard.bytes and index_name(name) in sizes
        if is_complete or record.shard is None:
            records[name] = record
    return records


def is_done(planned: PlannedShard, record: ShardRecord | None, digest: str) -> bool:
    """Return whether a record shows that a planned shard is finished. digest: of the settings."""
    return record is not None and (record.inputs, record.resolved) == (planned.inputs, digest)


def delete_record(store: Storage, name: str) -> None:
    """Delete the record of a shard before the shard is written again: it must never describe another shard."""
    store.remove(record_name(name))


def delete_shard(store: Storage, name: str) -> None:
    """Delete a shard, its record first, so that no record is left without its shard."""
    for file in (record_name(name), index_name(name), name):
        store.remove(file)


def merge(store: Storage) -> Manifest | list[str]:
    """Write the manifest if all shards are finished, and remove files of shards that are not in the plan.

    Returns:
        The manifest, or the names of the shards that are not finished.

    Raises:
        InputError: the dataset has no plan.
    """
    plan = BuildPlan.load(store)
    if plan is None:
        raise InputError(f"there is no {PLAN} at {store.display_path()}: create a dataset with pipeline.preprocess")
    sizes = store.sizes()
    records, settings = load_records(store, sizes), settings_digest(plan.resolved)
    missing = [shard.name for shard in plan.shards if not is_done(shard, records.get(shard.name), settings)]
    if missing:
        return missing
    old = stale_files(plan, sizes)
    if old:
        delete_manifest(store)
    for name in old:
        store.remove(name)
    if isinstance(store, LocalStorage):
        store.remove_partial(keep=(PLAN, MANIFEST, WRITE_TEST))  # another process may be starting or merging
    manifest = _build_manifest(plan, records, plan_digest(store))
    manifest.save(store)
    return manifest


def stale_files(plan: BuildPlan, sizes: Mapping[str, int]) -> list[str]:
    """Return the files of shards that are no longer in the plan, records first."""
    names = {shard.name for shard in plan.shards}
    stale = [name for name in sizes if _BUILD_FILE.fullmatch(name) and name.partition(".")[0] + ".tar" not in names]
    return sorted(stale, key=lambda name: (not name.endswith(".done.json"), name))


def plan_digest(store: Storage) -> str:
    """Return the digest of the plan, which the manifest records."""
    return hashlib.sha256(store.read(PLAN)).hexdigest()[:16]


def _build_manifest(plan: BuildPlan, records: Mapping[str, ShardRecord], digest: str) -> Manifest:
    splits: dict[str, list[ShardInfo]] = {}
    skipped = list(plan.skipped)
    for planned in plan.shards:
        record = records[planned.name]
        splits.setdefault(planned.split, [])
        if record.shard:
            splits[planned.split].append(record.shard)
        skipped += record.skipped
    silent = sum(records[planned.name].silent for planned in plan.shards)
    settings = plan.resolved
    data = settings["data"] | {name: settings[name] for name in ("bad_amplitude", "prepare") if name in settings}
    adjusted = plan.adjusted + [row for planned in plan.shards for row in records[planned.name].adjusted]
    labels = LabelCounter()
    for planned in plan.shards:
        labels.add_all(records[planned.name].labels)
    return Manifest(
        settings["codec"], settings["embedder"], data, splits, silent, skipped, plan=digest, adjusted=adjusted,
        labels=labels.vocabularies(),
    )  # fmt: skip


def delete_manifest(store: Storage) -> None:
    """Delete the manifest before the dataset changes."""
    store.remove(MANIFEST)


def _write_json(store: Storage, name: str, value: dict[str, Any]) -> None:
    with store.open_atomic(name) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")
