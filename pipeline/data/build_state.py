"""How a cache gets finished: the plan of its shards, a record of each that is done, and the manifest made of both.

    plan.json                 what was asked for: settings, and every shard with the fingerprint of its inputs
    train-000000.done.json    written after its shard: the inputs and settings that the shard was made from
    manifest.json             written when every shard of the plan has its record, by whoever wrote the last one

A shard is finished if its record fits the plan. So a run may be killed at any moment, and parts of a plan may be
written by machines that never talk to each other. None of these files says when or where it was written.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from pipeline.common.errors import InputError
from pipeline.data.manifest import MANIFEST_NAME as MANIFEST
from pipeline.data.manifest import Manifest, parse_skipped
from pipeline.data.shard import ShardInfo, index_name, validate_shard_name
from pipeline.data.storage import WRITE_TEST, LocalStorage, Storage

PLAN = "plan.json"
FORMAT = 1
_BUILD_FILE = re.compile(r"\w+-\d{6,}(\.tar|\.index\.npy|\.done\.json)")
_T = TypeVar("_T")


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be: its name, its split, how many clips go into it, and the fingerprint of these."""

    name: str
    split: str
    clips: int
    inputs: str


@dataclass(frozen=True)
class BuildPlan:
    """Everything a cache is to hold.

    asked: the settings as the user gives them; made: what they came to (the identities of codec and embedder, and the
    settings that shape the samples); tree: a fingerprint of the corpus folder; set_aside: what the corpus left out, as
    `skipped_row` gives it.
    """

    requested: dict[str, Any]
    resolved: dict[str, Any]
    source_fingerprint: str
    shards: list[PlannedShard]
    skipped: list[dict[str, Any]] = field(default_factory=list)

    @property
    def clips(self) -> int:
        """Clips in all shards."""
        return sum(shard.clips for shard in self.shards)

    @classmethod
    def load(cls, store: Storage) -> BuildPlan | None:
        """The plan of a cache, or None where it has none. Raises InputError for a damaged one."""
        try:
            found = json.loads(store.read(PLAN))
        except FileNotFoundError:
            return None
        except InputError:
            raise
        except (ValueError, RecursionError) as error:
            raise InputError(f"{store.display_path(PLAN)} is damaged ({error}): remove it and run again") from error
        return _parse_json(store.display_path(PLAN), found, cls._parse)

    @classmethod
    def _parse(cls, found: dict[str, Any]) -> BuildPlan:
        shards = [PlannedShard(validate_shard_name(n), str(s), int(c), str(i)) for n, s, c, i in found["shards"]]
        return cls(dict(found["asked"]), dict(found["made"]), str(found["tree"]), shards, list(found["set_aside"]))

    def save(self, store: Storage) -> None:
        """Write it, whole or not at all."""
        shards = [[s.name, s.split, s.clips, s.inputs] for s in self.shards]
        content = {
            "format": FORMAT,
            "asked": self.requested,
            "made": self.resolved,
            "tree": self.source_fingerprint,
            "shards": shards,
            "set_aside": self.skipped,
        }
        _write_json(store, PLAN, content)


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard; shard is None where none of its clips could be used.

    inputs: the fingerprint of its clips; made: the digest of the settings; codes: of those without the embedder;
    adjusted: clips of the shard whose sound is not as their files have it, as dicts of path, key and reason.
    """

    inputs: str
    resolved: str
    codes: str
    shard: ShardInfo | None
    silent: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    adjusted: list[dict[str, Any]] = field(default_factory=list)

    @property
    def retry(self) -> bool:
        """Whether the machine kept some of its clips from being read: the next run makes the shard again."""
        return any("retry" in row for row in self.skipped)

    def save(self, store: Storage, name: str) -> None:
        """Write the record of the shard `name`; its shard must be complete."""
        content = asdict(self)
        content["made"], content["set_aside"] = content.pop("resolved"), content.pop("skipped")
        _write_json(store, record_name(name), content)

    @classmethod
    def _parse(cls, found: dict[str, Any]) -> ShardRecord:
        shard = None if found["shard"] is None else ShardInfo.parse(found["shard"])
        aside = [parse_skipped(row) for row in found["set_aside"]]
        adjusted = [parse_skipped(row) for row in found.get("adjusted", [])]
        return cls(found["inputs"], found["made"], found["codes"], shard, int(found["silent"]), aside, adjusted)


def record_name(shard: str) -> str:
    """`train-000000.tar` -> `train-000000.done.json`."""
    return shard.removesuffix(".tar") + ".done.json"


def settings_digest(settings: Mapping[str, Any]) -> str:
    """A short digest of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def codes_digest(settings: Mapping[str, Any]) -> str:
    """A digest of the settings that codes depend on: all but the embedder."""
    return settings_digest({name: value for name, value in settings.items() if name != "embedder"})


def load_records(store: Storage, sizes: Mapping[str, int]) -> dict[str, ShardRecord]:
    """The records of all shards that stand complete in a cache, by the name of the shard; sizes: `store.sizes()`.

    A damaged record, or one without its shard, is as if it were not there: its shard is made again. So is one that
    another part has taken away since, to write its shard anew.
    """
    names = [name.removesuffix(".done.json") + ".tar" for name in sizes if name.endswith(".done.json")]
    texts = store.read_many([record_name(name) for name in names])
    found = {}
    for name in names:
        try:
            record = ShardRecord._parse(json.loads(texts[record_name(name)]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
        if record.shard and record.shard.name != name:
            continue
        whole = record.shard and sizes.get(name) == record.shard.bytes and index_name(name) in sizes
        if whole or record.shard is None:
            found[name] = record
    return found


def is_done(planned: PlannedShard, record: ShardRecord | None, digest: str) -> bool:
    """Whether a record says that a planned shard is finished. made: the digest of the settings."""
    return record is not None and (record.inputs, record.resolved) == (planned.inputs, digest)


def delete_record(store: Storage, name: str) -> None:
    """Take away the record of a shard that is about to be written anew: it must never speak of another shard."""
    store.remove(record_name(name))


def delete_shard(store: Storage, name: str) -> None:
    """Take a shard out of a cache: its record first, so that no record is left without its shard."""
    for file in (record_name(name), index_name(name), name):
        store.remove(file)


def merge(store: Storage) -> Manifest | list[str]:
    """Write the manifest of a cache whose shards are all finished, and remove what belongs to none of them.

    The names of the shards that are not finished, where there are any. Raises InputError where there is no plan.
    """
    plan = BuildPlan.load(store)
    if plan is None:
        raise InputError(f"there is no {PLAN} at {store.display_path()}: python -m pipeline.preprocess makes a cache")
    sizes = store.sizes()
    found, made = load_records(store, sizes), settings_digest(plan.resolved)
    missing = [shard.name for shard in plan.shards if not is_done(shard, found.get(shard.name), made)]
    if missing:
        return missing
    old = stale_files(plan, sizes)
    if old:
        delete_manifest(store)
    for name in old:
        store.remove(name)
    if isinstance(store, LocalStorage):
        store.remove_partial(keep=(PLAN, MANIFEST, WRITE_TEST))  # another part may be merging too, or starting
    manifest = _manifest(plan, found, plan_digest(store))
    manifest.save(store)
    return manifest


def stale_files(plan: BuildPlan, sizes: Mapping[str, int]) -> list[str]:
    """The files of a cache that were written for a shard that is in the plan no more, records first."""
    names = {shard.name for shard in plan.shards}
    ours = [name for name in sizes if _BUILD_FILE.fullmatch(name) and name.partition(".")[0] + ".tar" not in names]
    return sorted(ours, key=lambda name: (not name.endswith(".done.json"), name))


def plan_digest(store: Storage) -> str:
    """What a manifest says of the plan that it was made from."""
    return hashlib.sha256(store.read(PLAN)).hexdigest()[:16]


def _manifest(plan: BuildPlan, found: Mapping[str, ShardRecord], of_plan: str) -> Manifest:
    splits: dict[str, list[ShardInfo]] = {}
    aside = list(plan.skipped)
    for planned in plan.shards:
        record = found[planned.name]
        splits.setdefault(planned.split, [])
        if record.shard:
            splits[planned.split].append(record.shard)
        aside += record.skipped
    silent = sum(found[planned.name].silent for planned in plan.shards)
    made = plan.resolved
    data = made["data"] | {name: made[name] for name in ("bad_amplitude",) if name in made}
    adjusted = [row for planned in plan.shards for row in found[planned.name].adjusted]
    return Manifest(made["codec"], made["embedder"], data, splits, silent, aside, of_plan, adjusted=adjusted)


def delete_manifest(store: Storage) -> None:
    """Take the manifest away: the cache is about to change."""
    store.remove(MANIFEST)


def _parse_json(where: str, found: Any, parse: Callable[[dict[str, Any]], _T]) -> _T:
    try:
        if found["format"] == FORMAT:
            return parse(found)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where} is malformed ({error!r:.200}): remove it and run again") from error
    raise InputError(f"{where} has format {found['format']!r:.40}, and this program writes {FORMAT}: give another out=")


def _write_json(store: Storage, name: str, value: dict[str, Any]) -> None:
    with store.open_atomic(name) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")
