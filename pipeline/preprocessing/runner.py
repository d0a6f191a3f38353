"""A cache from a corpus: what is asked for, what of it is there, the rest of it made, and all of it told.

Everything that can be refused is refused before any work. Interrupted at any moment, by whatever, the next run of the
same command goes on where this one was; a run that finds everything done says so after a look at the files' sizes and
times, without loading a model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.audio import amplitude
from pipeline.audio.audio_io import RESAMPLER
from pipeline.common.errors import InputError, MachineError
from pipeline.corpora import open_corpus
from pipeline.data import build_state
from pipeline.data.build_state import PLAN, BuildPlan
from pipeline.data.manifest import MANIFEST_NAME as MANIFEST
from pipeline.data.manifest import Manifest
from pipeline.data.shard import index_name
from pipeline.data.storage import LocalStorage, Storage, open_storage
from pipeline.preprocessing import encoder_pool, messages
from pipeline.preprocessing.audio_hash import AudioHasher, MeasuredDurations
from pipeline.preprocessing.decode import DecodeOptions
from pipeline.preprocessing.encoder import load_encoder
from pipeline.preprocessing.partition import Partition, parse_partition
from pipeline.preprocessing.progress import Progress
from pipeline.preprocessing.shard_builder import JOB_CLIPS, JobIterator, ShardAssembler, ShardTask
from pipeline.preprocessing.shard_planner import ClipSpool, plan_shards, tree_fingerprint

LOCATION_SETTINGS = {"root", "scan_cache_dir", "audio", "metadata", "soundfont"}  # settings that locate a corpus
# settings besides data, codec and embedder that a cache's contents depend on, by the names that plan.json records
SHAPING = {
    "samples_per_shard": "samples_per_shard",
    "longest_seconds": "max_seconds",
    "bad_amplitude": "bad_amplitude",
    "truncated": "truncated",
}
BATCH = {"cpu": 8, "cuda": 64}  # clips, as `Codec.best_batch` measured it


def preprocess(cfg: Mapping[str, Any]) -> int:
    """Make the cache that `conf/preprocess.yaml` describes, or resume it. Returns the exit code.

    Raises InputError for whatever the user has to mend, before any work.
    """
    try:
        return _preprocess(cfg)
    except MachineError as error:
        return messages.print_machine_error(error)


def _preprocess(cfg: Mapping[str, Any]) -> int:
    share = parse_partition(cfg["part"])
    _validate_settings(cfg)
    store, root = open_storage(cfg["out"]), cfg["data"]["root"]
    asked = _requested_settings(cfg)
    old = BuildPlan.load(store)
    if old is None and cfg["reembed"]:
        raise InputError(f"reembed=true: there is no cache at {store.display_path()}; run once without reembed=true")
    plain = _settings_without_models(asked)
    same = (
        old
        and (old.requested, old.source_fingerprint) == (asked, _source_fingerprint(cfg))
        and not _changed_settings(old, plain)
    )
    if old and same and (manifest := _finished_manifest(store, old)):
        print(f"nothing to do: nothing in {root} has changed since {store.display_path()} was finished")
        return messages.print_summary(store, manifest, asked["codec"])
    _check_settings_unchanged(store, old, plain, cfg["reembed"])  # before notes are rendered
    names = encoder_pool.resolve_devices(cfg["devices"], cfg["encoder_workers"])
    readers = encoder_pool.resolve_decode_workers(cfg["decode_workers"], names)
    digests = AudioHasher(readers, cfg["decode_timeout"])
    keep = cfg["truncated"] == "keep"
    corpus = open_corpus(cfg["data"], digests, MeasuredDurations(keep))
    store.check_writable()
    batch = BATCH[names[0].partition(":")[0]] if cfg["batch"] == "auto" else cfg["batch"]
    made = _resolved_settings(cfg, plain)
    _check_settings_unchanged(store, old, made, cfg["reembed"])
    with closing(ClipSpool(root)) as spool:
        blank = BuildPlan(asked, made, _source_fingerprint(cfg), [])
        with closing(digests):
            plan = plan_shards(corpus.clips(), spool, cfg["samples_per_shard"], old, blank, lambda: corpus.skipped)
        _check_file_times_match(store, plan, share)
        rate, policy = made["codec"]["sample_rate"], cfg["bad_amplitude"]
        reading = DecodeOptions(rate, cfg["max_seconds"], batch, cfg["decode_timeout"], policy, keep)
        load = partial(load_encoder, cfg["codec"], cfg["embedder"])
        return _PreprocessRun(store, plan, old, share, spool, reading).run(load, names, readers)


class _PreprocessRun:
    """One process's share of a plan."""

    def __init__(
        self,
        store: Storage,
        plan: BuildPlan,
        old: BuildPlan | None,
        share: Partition,
        spool: ClipSpool,
        reading: DecodeOptions,
    ) -> None:
        self.store, self.plan, self.share, self.spool, self.reading = store, plan, share, spool, reading
        self.is_new = old is None or vars(old) != vars(plan)
        self.sizes = store.sizes()
        self.records = build_state.load_records(store, self.sizes)
        made = build_state.settings_digest(plan.resolved)
        mine = [shard for i, shard in enumerate(plan.shards) if share.contains(i)]
        todo = [shard for shard in mine if not self._is_final(shard, made)]
        self.tasks = [ShardTask(shard, self._has_codes(shard)) for shard in todo]
        self.total = sum(shard.clips for shard in mine)
        self.done = self.total - sum(shard.clips for shard in todo)
        self.num_finished = len(mine) - len(todo)  # shards
        self.written: set[str] = set()  # by this run

    def _is_final(self, shard: build_state.PlannedShard, made: str) -> bool:
        record = self.records.get(shard.name)
        return record is not None and build_state.is_done(shard, record, made) and not record.retry

    def _has_codes(self, shard: build_state.PlannedShard) -> bool:
        record = self.records.get(shard.name)
        if record is None or record.shard is None or record.retry:
            return False
        return (record.inputs, record.codes) == (shard.inputs, build_state.codes_digest(self.plan.resolved))

    def run(self, load: Callable[..., Any], names: list[str], readers: int) -> int:
        """Write what is missing; the exit code."""
        messages.print_plan(self.store, self.plan, self.share, self.done, self.total, names)
        progress = Progress(self.total, self.done)
        try:
            self._prepare()
            if self.tasks:
                jobs = -(-(self.total - self.done) // JOB_CLIPS)  # no use for more encoders
                unread = self._encode(load, names[:jobs], readers, progress)
                if unread:
                    return messages.print_unreadable(
                        self.store, self.spool.root, unread, self.num_finished + len(self.written)
                    )
            manifest = build_state.merge(self.store)
        except OSError as error:
            missing = [task.planned.name for task in self.tasks if task.planned.name not in self.written]
            return messages.print_write_error(self.store, error, self.num_finished + len(self.written), missing)
        if self.tasks:
            messages.print_speed(progress)
        if isinstance(manifest, Manifest):
            return messages.print_summary(self.store, manifest, self.plan.requested["codec"])
        _check_file_times_match(self.store, self.plan, self.share)  # it may have replaced our plan in the meantime
        messages.print_unfinished(self.store, self.share, manifest)
        return 0

    def _prepare(self) -> None:
        """Take the manifest away if its shards are to change, and say what is planned."""
        if self.share.count == 1 and isinstance(self.store, LocalStorage):
            self.store.remove_partial()
        listed = self._shards_in_manifest() if MANIFEST in self.sizes else set()
        if listed is None or listed & {task.planned.name for task in self.tasks}:
            build_state.delete_manifest(self.store)
        if self.is_new:
            self.plan.save(self.store)

    def _shards_in_manifest(self) -> set[str] | None:
        """The shards that the manifest knows; None where it cannot be read."""
        try:
            manifest = Manifest.load(self.store)
        except InputError:
            return None
        return {shard.name for shards in manifest.splits.values() for shard in shards}

    def _encode(self, load: Callable[..., Any], names: list[str], readers: int, progress: Progress) -> dict[str, str]:
        """Write the shards of the tasks; those none of whose clips the machine could read, with a reason."""
        with (
            tempfile.TemporaryDirectory(prefix="preprocess-") as folder,
            ShardAssembler(
                self.store, self.tasks, self.spool, self.plan.resolved, Path(folder), self.written.add
            ) as assembly,
            encoder_pool.EncoderPool(load, names, readers, self.reading) as encoders,
            progress,
        ):
            for encoded in encoders.imap_unordered(
                iter(JobIterator(self.tasks, self.spool, Path(folder), self.reading.batch))
            ):
                assembly.add(encoded)
                progress.advance(len(encoded.clips), sum(getattr(found, "seconds", 0.0) for found in encoded.clips))
        return assembly.unreadable


def _validate_settings(cfg: Mapping[str, Any]) -> None:
    amplitude.check_policy(cfg["bad_amplitude"])
    if cfg["truncated"] not in ("skip", "keep"):
        raise InputError(f"truncated={cfg['truncated']}: expected skip or keep")
    for name in ("samples_per_shard", "max_seconds", "decode_timeout", "batch"):
        value = cfg[name]
        if not (value == "auto" and name == "batch") and (isinstance(value, str) or not value > 0):
            raise InputError(f"{name}={value}: expected a number above 0")


def _requested_settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a cache's contents depend on, as they were given."""
    data = {name: value for name, value in cfg["data"].items() if name not in ("root", "scan_cache_dir")}
    return {"data": data, "codec": cfg["codec"], "embedder": cfg["embedder"], **_shaping_settings(cfg)}


def _shaping_settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    return {recorded: cfg[name] for recorded, name in SHAPING.items()}


def _source_fingerprint(cfg: Mapping[str, Any]) -> str:
    """What all files of the corpus look like, those that lie elsewhere too."""
    elsewhere = [cfg["data"].get(name) for name in sorted(LOCATION_SETTINGS - {"root", "scan_cache_dir"})]
    return tree_fingerprint(cfg["data"]["root"], *[place for place in elsewhere if place])


def _settings_without_models(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Of these settings, what shapes the samples and is known before a model is loaded; and the resampler."""
    data = {name: value for name, value in asked["data"].items() if name not in LOCATION_SETTINGS}
    data["resampler"] = RESAMPLER
    return {"data": data, **{name: asked[name] for name in SHAPING}}


def _resolved_settings(cfg: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the identities of codec and embedder, hashes of their weights included."""
    encoder = load_encoder(cfg["codec"], cfg["embedder"], "cpu")
    rates = encoder.codec.sample_rate, encoder.embedder.identity["sample_rate"]
    if rates[0] != rates[1]:
        raise InputError(
            f"codec={cfg['codec']['name']} hears {rates[0]} Hz and its embedder {rates[1]} Hz: choose another"
        )
    models = {"codec": encoder.codec.identity, "embedder": encoder.embedder.identity}
    return {"data": plain["data"], **models, **plain}


def _finished_manifest(store: Storage, plan: BuildPlan) -> Manifest | None:
    """The manifest of a cache that fulfils its plan and whose files are all there, by their names and sizes.

    None where the machine could not read some inputs: no look at sizes and times tells whether it can now.
    """
    try:
        manifest = Manifest.load(store)
    except InputError:
        return None
    if any("retry" in row for row in manifest.skipped):
        return None
    sizes = store.sizes()
    shards = [shard for shards in manifest.splits.values() for shard in shards]
    whole = all(sizes.get(shard.name) == shard.bytes and index_name(shard.name) in sizes for shard in shards)
    whole &= all(build_state.record_name(shard.name) in sizes for shard in plan.shards)
    return manifest if whole and manifest.plan == build_state.plan_digest(store) else None


def _check_settings_unchanged(store: Storage, old: BuildPlan | None, made: Mapping[str, Any], reembed: bool) -> None:
    """made: all settings, or as many as are known yet."""
    if old is None:
        return
    changed, before, now = _changed_settings(old, made), _flatten(old.resolved), _flatten(made)
    if reembed:
        changed = [name for name in changed if not name.startswith("embedder.")]
    if changed:
        told = ", ".join(
            f"{SHAPING.get(name, name)}={_shorten(before.get(name))} (now {_shorten(now.get(name))})"
            for name in changed
        )
        embedder_only = all(name.startswith("embedder.") for name in changed)
        hint = "; reembed=true embeds it anew and keeps its codes" if embedder_only else ""
        raise InputError(f"{store.display_path()} was made with {told}: give another out=, or remove it{hint}")


def _changed_settings(old: BuildPlan, made: Mapping[str, Any]) -> list[str]:
    """The settings that are not those of a plan, by their dotted names. made: all settings, or some."""
    before, now = _flatten({name: old.resolved.get(name, {}) for name in made}), _flatten(made)
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _check_file_times_match(store: Storage, plan: BuildPlan, share: Partition) -> None:
    """Parts that read copies of a corpus whose times of change differ would replace each other's plan for ever."""
    there = BuildPlan.load(store) if share.count > 1 else None
    if there is None or [(s.split, s.clips) for s in there.shards] != [(s.split, s.clips) for s in plan.shards]:
        return
    if not {shard.inputs for shard in there.shards} & {shard.inputs for shard in plan.shards}:
        raise InputError(
            f"{store.display_path(PLAN)} lists other files of the same names: copies of a corpus on several machines "
            "must have the same times of change (cp -a and rsync -t keep them, touch -d sets them); if the files were "
            f"changed on purpose, remove {PLAN} and run every part again"
        )


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."
