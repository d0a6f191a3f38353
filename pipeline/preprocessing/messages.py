"""What a run says to its user: the plan first, the outcome last."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipeline.common.console import print_error
from pipeline.common.errors import MachineError
from pipeline.common.settings import format_override
from pipeline.data.build_state import BuildPlan
from pipeline.data.manifest import Manifest
from pipeline.data.storage import Storage
from pipeline.preprocessing.partition import Partition
from pipeline.preprocessing.progress import Progress

DEFAULT_CODEC = {"name": "encodec_24khz", "codebooks": 8, "weights_dir": None}  # conf/exp/delay_gpt2.yaml's codec
MAX_NAMED = 5  # skipped inputs that are named on the screen, or one of each kind; the manifest names them all


def print_plan(store: Storage, plan: BuildPlan, share: Partition, done: int, total: int, devices: list[str]) -> None:
    """Before the work."""
    part = (
        "" if share.count == 1 else f", of which part {share.number}/{share.count} (by {share.source}): {total:,} clips"
    )
    print(f"{store.display_path()}: {plan.clips:,} clips in {len(plan.shards):,} shards{part}")
    if done:
        print(f"finished before: {done:,} clips")
    if done < total:
        print(f"encoding on {', '.join(f'{n} x {d}' for d, n in Counter(devices).items())}", flush=True)


def print_speed(progress: Progress) -> None:
    """How fast it went."""
    hours, minutes = progress.seconds / 3600, progress.wall / 60
    print(f"this run: {hours:.2f} h of audio in {minutes:.1f} min, {progress.speed:,.1f} x real time")


def print_unfinished(store: Storage, share: Partition, missing: list[str]) -> None:
    """A part is done, the whole is not."""
    print(
        f"part {share.number}/{share.count} is finished; {len(missing):,} shards of other parts are not yet; "
        f"the last part to finish writes the manifest of {store.display_path()}"
    )


def print_summary(store: Storage, manifest: Manifest, codec: Mapping[str, Any]) -> int:
    """What a finished cache holds, and what may be done with it; the exit code: 1 for a cache without any clip.

    codec: the settings, as they were given.
    """
    shards = [shard for shards in manifest.splits.values() for shard in shards]
    hours = {split: manifest.hours(split) for split in manifest.splits}
    clips = sum(shard.samples for shard in shards)
    print(
        f"{store.display_path()}: {sum(hours.values()):.2f} h in {clips:,} clips ({_listed(hours)}), "
        f"{len(shards):,} shards, {sum(shard.bytes for shard in shards) / 1e6:,.1f} MB"
    )
    if manifest.silent:
        print(f"silent, and kept: {manifest.silent:,} clips")
    _named("adjusted", manifest.adjusted)
    _named("skipped", manifest.skipped)
    if retried := sum("retry" in row for row in manifest.skipped):
        print(f"not read for reasons of the machine: {retried:,} of these; run the same command again to retry them")
    if not clips:
        print(
            f"error: {store.display_path()} has no clip to train on: every input was skipped for the reasons above; "
            "correct the inputs or the settings and run the same command again",
            file=sys.stderr,
        )
        return 1
    print(f"next: {training_command(store.display_path(), codec)}")
    return 0


def _named(what: str, rows: list[dict[str, Any]]) -> None:
    """Print the inputs that were skipped, or adjusted: how many of each kind, and some by name, one of each kind."""
    clips: Counter[tuple[str, str]] = Counter()  # of each file and kind: a file of many clips is one line
    reasons: dict[tuple[str, str], str] = {}
    for row in rows:
        file = row["path"] or row["key"], row["reason"].partition(":")[0]
        clips[file] += 1
        reasons.setdefault(file, row["reason"])
    if not clips:
        return
    kinds = Counter(kind for _, kind in clips)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    print(f"{what}: {len({path for path, _ in clips}):,} inputs ({counts}); manifest.json names them all")
    first = {kind: (path, kind) for path, kind in reversed(clips)}
    shown = [file for file in clips if first[file[1]] == file]
    shown += [file for file in clips if first[file[1]] != file][: max(0, MAX_NAMED - len(shown))]
    for file in shown:
        print(f"  {file[0]!r}: {reasons[file]}" + (f" ({clips[file]:,} clips)" if clips[file] > 1 else ""))


def training_command(shards: str, codec: Mapping[str, Any]) -> str:
    """The command that trains on shards of a codec of these settings."""
    other = {
        "codec" if name == "name" else f"codec.{name}": codec[name]
        for name in DEFAULT_CODEC
        if codec[name] != DEFAULT_CODEC[name]
    }
    if codec["name"] == "encodec_embedded":  # what cannot fetch a codec has no pretrained GPT-2 either
        other["model"] = "tiny"
    words = [format_override(name, value) for name, value in {**other, "shards": shards}.items()]
    return shlex.join(["deepspeed", "pipeline/train.py", "+exp=delay_gpt2", *words])


def _listed(hours: dict[str, float]) -> str:
    return ", ".join(f"{split} {value:.2f} h" for split, value in hours.items())


def print_machine_error(error: MachineError) -> int:
    """The machine kept the run from its work; the exit code."""
    print_error(str(error))
    return 1


def print_unreadable(store: Storage, root: str, shards: Mapping[str, str], whole: int) -> int:
    """Shards none of whose clips the machine could read, each with a reason, are not written; the exit code."""
    name, reason = next(iter(shards.items()))
    more = f" and of {len(shards) - 1:,} other shards" if len(shards) > 1 else ""
    print(
        f"error: {store.display_path()}: no clip of {name}{more} could be read ({reason}): check that data.root={root} "
        f"is there and can be read, and run the same command again; {whole} shards are whole and stay",
        file=sys.stderr,
    )
    return 1


def print_write_error(store: Storage, error: OSError, whole: int, missing: list[str]) -> int:
    """A full disk, or one that fails: what is there stays; the exit code."""
    why = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
    more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
    print(
        f"error: writing to {store.display_path()} failed: {why}; {whole} shards are whole and stay, not written: "
        f"{', '.join(missing[:MAX_NAMED]) or 'manifest.json'}{more}; make room and run the same command again",
        file=sys.stderr,
    )
    return 1
