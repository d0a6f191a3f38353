"""What the command prints: the plan first, the result last."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Mapping
from typing import Any

import yaml

from pipeline.audio.codecs import CodecSettings
from pipeline.common.console import COLUMNS, format_duration, print_error, print_next
from pipeline.common.paths import CONF
from pipeline.common.settings import format_override
from pipeline.data.build_state import BuildPlan
from pipeline.data.labels import describe_vocabulary
from pipeline.data.manifest import Manifest
from pipeline.data.storage import Storage
from pipeline.data.training_length import suggest_steps
from pipeline.preprocessing.partition import Partition
from pipeline.preprocessing.progress import Progress

MAX_NAMED = 5  # skipped inputs that are printed, or one of each kind; the manifest names all


def print_plan(
    store: Storage, plan: BuildPlan, partition: Partition, done: int, total: int, devices: list[str]
) -> None:
    """Print the size of the plan, and which part of it this process builds."""
    part = (
        ""
        if partition.count == 1
        else f", of which part {partition.number}/{partition.count} (by {partition.source}): {total:,} clips"
    )
    _print(f"{store.display_path()}: {plan.clips:,} clips in {len(plan.shards):,} shards{part}")
    if done:
        print(f"finished before: {done:,} clips")
    if done < total:
        print(f"encoding on {', '.join(f'{n} x {d}' for d, n in Counter(devices).items())}", flush=True)


def print_speed(progress: Progress) -> None:
    """Print how much audio was encoded, and how fast."""
    audio, wall = format_duration(progress.seconds), format_duration(progress.wall)
    print(f"this run: {audio} of audio in {wall}, {progress.speed:,.1f} x real time")


def print_unfinished(store: Storage, partition: Partition, missing: list[str]) -> None:
    """Print that this part is finished while others are not."""
    _print(
        f"part {partition.number}/{partition.count} is finished; {len(missing):,} shards of other parts are not yet; "
        f"the last part to finish writes the manifest of {store.display_path()}"
    )


def print_summary(store: Storage, manifest: Manifest, codec: CodecSettings) -> int:
    """Print what a finished dataset contains and the command that trains on it.

    Args:
        store: The dataset's storage.
        manifest: Its manifest.
        codec: The settings of the codec.

    Returns:
        The exit code: 1 for a dataset without any clip.
    """
    shards = [shard for shards in manifest.splits.values() for shard in shards]
    seconds = {split: 3600 * manifest.hours(split) for split in manifest.splits}
    clips = sum(shard.samples for shard in shards)
    _print(
        f"{store.display_path()}: {format_duration(sum(seconds.values()))} of audio in {clips:,} clips, "
        f"{len(shards):,} shards, {sum(shard.bytes for shard in shards) / 1e6:,.1f} MB"
    )
    print("  " + ", ".join(f"{split} {format_duration(duration)}" for split, duration in seconds.items()))
    if manifest.silent:
        print(f"silent, but kept by an older version: {manifest.silent:,} clips")
    if manifest.labels:
        names = (f"{name} ({describe_vocabulary(label)})" for name, label in manifest.labels.items())
        _print(f"labels: {', '.join(names)}")
    _print_examples("adjusted", manifest.adjusted)
    _print_examples("skipped", manifest.skipped)
    if retried := sum("retry" in row for row in manifest.skipped):
        _print(f"could not be read for now: {retried:,} of these; run the same command again to retry them")
    if not clips:
        print_error(
            f"{store.display_path()} has no clip to train on: every input was skipped for the reasons above; "
            "correct the inputs or the settings and run the same command again"
        )
        return 1
    print_next(training_command(store.display_path(), manifest.num_samples("train"), codec))
    return 0


def _print_examples(what: str, rows: list[dict[str, Any]]) -> None:
    """Print how many inputs were skipped or adjusted, and the names of some, at least one of each kind."""
    clips: Counter[tuple[str, str]] = Counter()  # per file and kind: a file of many clips is one line
    reasons: dict[tuple[str, str], str] = {}
    for row in rows:
        file = row["path"] or row["key"], row["reason"].partition(":")[0]
        clips[file] += 1
        reasons.setdefault(file, row["reason"])
    if not clips:
        return
    kinds = Counter(kind for _, kind in clips)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    _print(f"{what}: {len({path for path, _ in clips}):,} inputs ({counts}); manifest.json names them all")
    first = {kind: (path, kind) for path, kind in reversed(clips)}
    shown = [file for file in clips if first[file[1]] == file]
    shown += [file for file in clips if first[file[1]] != file][: max(0, MAX_NAMED - len(shown))]
    for file in shown:
        _print(f"  {file[0]!r}: {reasons[file]}" + (f" ({clips[file]:,} clips)" if clips[file] > 1 else ""))


def training_command(shards: str, clips: int, codec: CodecSettings) -> list[str]:
    """The command that trains on shards.

    The run folder is named after the dataset, and the steps are those that `suggest_steps` suggests for one process.

    Args:
        shards: The address of the dataset.
        clips: The number of its clips to train on.
        codec: The settings of its codec.
    """
    train = yaml.safe_load((CONF / "train.yaml").read_text())
    (default_codec,) = [choice["codec"] for choice in train["defaults"] if "codec" in choice]
    file = CONF / "codec" / f"{codec.name}.yaml"  # a plug-in's is elsewhere
    defaults = yaml.safe_load(file.read_text()) if file.is_file() else {"name": codec.name}
    settings = {f"codec.{name}": value for name, value in codec.to_dict().items() if value != defaults.get(name)}
    if codec.name != default_codec:
        settings = {"codec": codec.name, **settings}
    if not codec.needs_download:  # a machine that cannot download a codec has no pretrained GPT-2 either
        settings["model"] = "tiny"
    settings |= {"shards": shards, "run": f"runs/{re.split(r'[/:]', shards.rstrip('/'))[-1]}"}
    steps = suggest_steps(clips, train["trainer"]["micro_batch"])
    if steps < train["trainer"]["steps"]:
        settings["trainer.steps"] = steps
    return ["deepspeed", "pipeline/train.py", *(format_override(name, value) for name, value in settings.items())]


def _print(line: str) -> None:
    """Print a line; one that is longer than a terminal is wide is continued on the next, indented."""
    print(textwrap.fill(line, COLUMNS, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False))


def print_unreadable(store: Storage, root: str, shards: Mapping[str, str], num_finished: int) -> int:
    """Print the shards of which no clip could be read, with a reason. Returns the exit code."""
    name, reason = next(iter(shards.items()))
    more = f" and of {len(shards) - 1:,} other shards" if len(shards) > 1 else ""
    print_error(
        f"{store.display_path()}: no clip of {name}{more} could be read ({reason}): check that data.root={root} "
        f"is there and can be read, and run the same command again; {num_finished} finished shards are kept"
    )
    return 1


def print_write_error(store: Storage, error: OSError, num_finished: int, missing: list[str]) -> int:
    """Print that writing failed, as on a full disk. Returns the exit code."""
    reason = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
    more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
    print_error(
        f"writing to {store.display_path()} failed: {reason}; {num_finished} finished shards are kept; "
        f"not written: {', '.join(missing[:MAX_NAMED]) or 'manifest.json'}{more}; make room and run the same command "
        "again"
    )
    return 1
