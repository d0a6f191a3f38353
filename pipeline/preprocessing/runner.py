"""Build a dataset, or resume or update one.

Everything that can be refused is refused before any work. A run that was interrupted at any moment is resumed by the
same command. A run that finds a complete and up-to-date dataset says so after a look at the sizes and times of files,
without loading a model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.audio.codecs import CodecSettings
from pipeline.audio.loudness import check_meter
from pipeline.common.console import print_error
from pipeline.common.errors import InputError, MachineError
from pipeline.common.exit_codes import EXIT_FAILED
from pipeline.corpora import Corpus
from pipeline.data import build_state
from pipeline.data.build_state import PLAN, BuildPlan
from pipeline.data.manifest import MANIFEST_NAME as MANIFEST
from pipeline.data.manifest import Manifest
from pipeline.data.shard import index_name
from pipeline.data.storage import LocalStorage, Storage, open_storage
from pipeline.preprocessing import encoder_pool, messages
from pipeline.preprocessing.audio_hash import MeasuredDurations, RecordingWorker, hash_audio
from pipeline.preprocessing.decode import DecodeOptions
from pipeline.preprocessing.encoder import Encoder, load_encoder
from pipeline.preprocessing.near_copies import GroupedCorpus, measure_spectrum
from pipeline.preprocessing.partition import Partition, parse_partition
from pipeline.preprocessing.progress import Progress
from pipeline.preprocessing.settings import PreprocessSettings, changed_settings, check_settings_unchanged
from pipeline.preprocessing.shard_builder import JOB_CLIPS, JobIterator, ShardAssembler, ShardTask
from pipeline.preprocessing.shard_planner import ClipSpool, plan_shards, tree_fingerprint

BATCH_SIZE = {"cpu": 8, "cuda": 64}  # clips; see `Codec.best_batch`


def preprocess(settings: PreprocessSettings, on_finish: Callable[[Storage], None] = lambda store: None) -> int:
    """Build the dataset of these settings, or resume it. Returns the exit code.

    Raises InputError, before any work, for what the user has to correct.

    Args:
        settings: The settings.
        on_finish: Called with the dataset if this run has finished it, before the summary is printed.
    """
    try:
        return _preprocess(settings, on_finish)
    except MachineError as error:
        print_error(str(error))
        return EXIT_FAILED


def _preprocess(settings: PreprocessSettings, on_finish: Callable[[Storage], None]) -> int:
    partition = parse_partition(settings.part)
    store, root, reembed = open_storage(settings.out), settings.data.root, settings.reembed
    old = BuildPlan.load(store)
    if old is None and reembed:
        raise InputError(f"reembed=true: there is no dataset at {store.display_path()}; run once without reembed=true")
    if old and (manifest := _up_to_date_manifest(store, old, settings)):
        print(f"nothing to do: nothing in {root} has changed since {store.display_path()} was finished")
        return messages.print_summary(store, manifest, settings.codec)
    check_settings_unchanged(store, old, settings.without_models(), reembed)  # before MIDI notes are rendered
    devices = encoder_pool.resolve_devices(settings.devices, settings.encoder_workers)
    decode_workers = encoder_pool.resolve_decode_workers(settings.decode_workers, devices)
    keep_truncated = settings.truncated == "keep"
    hasher, measurer = (
        RecordingWorker(measure, decode_workers, settings.decode_timeout) for measure in (hash_audio, measure_spectrum)
    )
    corpus: Corpus = settings.data.open(hasher, MeasuredDurations(keep_truncated))
    if settings.prepare.group_copies:
        corpus = GroupedCorpus(corpus, Path(settings.data.scan_cache_dir), Path(root), measurer)
    if settings.prepare.loudness is not None:
        check_meter()
    store.check_writable()
    encoder = load_encoder(settings.codec, settings.embedder, "cpu")
    resolved = _resolve_settings(settings, encoder)
    check_settings_unchanged(store, old, resolved, reembed)
    with closing(ClipSpool(root)) as spool:
        empty_plan = BuildPlan(settings.requested(), resolved, tree_fingerprint(*settings.source_paths()), [])
        with closing(hasher), closing(measurer):
            plan = plan_shards(
                corpus.clips(), spool, settings.samples_per_shard, old, empty_plan, lambda: corpus.skipped
            )
        _check_file_times_match(store, plan, partition)
        options = DecodeOptions(
            encoder.codec.sample_rate,
            settings.max_seconds,
            BATCH_SIZE[devices[0].partition(":")[0]] if settings.batch == "auto" else settings.batch,
            settings.decode_timeout,
            settings.bad_amplitude,
            keep_truncated,
            settings.prepare,
            encoder.codec.channels,
        )
        load = partial(load_encoder, settings.codec, settings.embedder)
        run = _PreprocessRun(store, plan, old, partition, spool, options, settings.codec)
        return run.run((lambda device: encoder) if devices == ["cpu"] else load, devices, decode_workers, on_finish)


class _PreprocessRun:
    """The work of one process: the shards of its part that are missing or out of date."""

    def __init__(
        self,
        store: Storage,
        plan: BuildPlan,
        old: BuildPlan | None,
        partition: Partition,
        spool: ClipSpool,
        options: DecodeOptions,
        codec: CodecSettings,
    ) -> None:
        self.store, self.plan, self.partition, self.spool, self.options = store, plan, partition, spool, options
        self.codec = codec
        self.is_new_plan = old is None or vars(old) != vars(plan)
        self.sizes = store.sizes()
        self.records = build_state.load_records(store, self.sizes)
        digest = build_state.settings_digest(plan.resolved)
        ours = [shard for i, shard in enumerate(plan.shards) if partition.contains(i)]
        missing = [shard for shard in ours if not self._is_final(shard, digest)]
        self.tasks = [ShardTask(shard, self._has_codes(shard)) for shard in missing]
        self.total = sum(shard.clips for shard in ours)
        self.done = self.total - sum(shard.clips for shard in missing)
        self.num_finished = len(ours) - len(missing)  # shards
        self.written: set[str] = set()  # by this run

    def _is_final(self, shard: build_state.PlannedShard, digest: str) -> bool:
        record = self.records.get(shard.name)
        return record is not None and build_state.is_done(shard, record, digest) and not record.retry

    def _has_codes(self, shard: build_state.PlannedShard) -> bool:
        """Whether an existing shard has the codes of these clips, so that only prompts are missing."""
        record = self.records.get(shard.name)
        if record is None or record.shard is None or record.retry:
            return False
        return (record.inputs, record.codes) == (shard.inputs, build_state.codes_digest(self.plan.resolved))

    def run(
        self,
        load: Callable[..., Any],
        devices: list[str],
        decode_workers: int,
        on_finish: Callable[[Storage], None],
    ) -> int:
        """Write the missing shards, and the manifest once all parts are finished. Returns the exit code."""
        messages.print_plan(self.store, self.plan, self.partition, self.done, self.total, devices)
        progress = Progress(self.total, self.done)
        try:
            self._prepare()
            if self.tasks:
                num_jobs = -(-(self.total - self.done) // JOB_CLIPS)  # more encoders would have nothing to do
                unreadable = self._encode(load, devices[:num_jobs], decode_workers, progress)
                if unreadable:
                    finished = self.num_finished + len(self.written)
                    return messages.print_unreadable(self.store, self.spool.root, unreadable, finished)
            manifest = build_state.merge(self.store)
        except OSError as error:
            missing = [task.planned.name for task in self.tasks if task.planned.name not in self.written]
            return messages.print_write_error(self.store, error, self.num_finished + len(self.written), missing)
        if self.tasks:
            messages.print_speed(progress)
        if isinstance(manifest, Manifest):
            if self.tasks:
                on_finish(self.store)
            return messages.print_summary(self.store, manifest, self.codec)
        _check_file_times_match(self.store, self.plan, self.partition)  # another part may have replaced the plan
        messages.print_unfinished(self.store, self.partition, manifest)
        return 0

    def _prepare(self) -> None:
        """Delete the manifest if one of its shards will change, and save the plan."""
        if self.partition.count == 1 and isinstance(self.store, LocalStorage):
            self.store.remove_partial()
        listed = self._shards_in_manifest() if MANIFEST in self.sizes else set()
        if listed is None or listed & {task.planned.name for task in self.tasks}:
            build_state.delete_manifest(self.store)
        if self.is_new_plan:
            self.plan.save(self.store)

    def _shards_in_manifest(self) -> set[str] | None:
        """The names of the manifest's shards; None where it cannot be read."""
        try:
            manifest = Manifest.load(self.store)
        except InputError:
            return None
        return {shard.name for shards in manifest.splits.values() for shard in shards}

    def _encode(
        self, load: Callable[..., Any], devices: list[str], decode_workers: int, progress: Progress
    ) -> dict[str, str]:
        """Write the shards of the tasks. Returns those of which the machine could read no clip, with a reason."""
        with (
            tempfile.TemporaryDirectory(prefix="preprocess-") as name,
            ShardAssembler(self.store, self.tasks, self.plan.resolved, Path(name), self.written.add) as assembler,
            encoder_pool.EncoderPool(load, devices, decode_workers, self.options) as encoders,
            progress,
        ):
            jobs = JobIterator(self.tasks, self.spool, Path(name), self.options.batch)
            for encoded in encoders.imap_unordered(iter(jobs)):
                assembler.add(encoded)
                progress.advance(encoded.num_clips, encoded.seconds)
        return assembler.unreadable


def _resolve_settings(settings: PreprocessSettings, encoder: Encoder) -> dict[str, Any]:
    """The recorded settings with the identities of codec and embedder, which include hashes of their weights."""
    without_models = settings.without_models()
    models = {"codec": encoder.codec.identity, "embedder": encoder.embedder.identity}
    return {"data": without_models["data"], **models, **without_models}


def _up_to_date_manifest(store: Storage, plan: BuildPlan, settings: PreprocessSettings) -> Manifest | None:
    """The manifest of a dataset that was built with these settings from the corpus as it is now; else None."""
    if plan.requested != settings.requested() or changed_settings(plan, settings.without_models()):
        return None
    if plan.source_fingerprint != tree_fingerprint(*settings.source_paths()):
        return None
    return _complete_manifest(store, plan)


def _complete_manifest(store: Storage, plan: BuildPlan) -> Manifest | None:
    """The manifest of a dataset that matches its plan and has all its files, by their names and sizes; else None.

    Also None where the machine could not read some inputs: sizes and times do not show whether it can now.
    """
    try:
        manifest = Manifest.load(store)
    except InputError:
        return None
    if any("retry" in row for row in manifest.skipped):
        return None
    sizes = store.sizes()
    shards = [shard for shards in manifest.splits.values() for shard in shards]
    is_complete = all(sizes.get(shard.name) == shard.bytes and index_name(shard.name) in sizes for shard in shards)
    is_complete &= all(build_state.record_name(shard.name) in sizes for shard in plan.shards)
    return manifest if is_complete and manifest.plan == build_state.plan_digest(store) else None


def _check_file_times_match(store: Storage, plan: BuildPlan, partition: Partition) -> None:
    """Raises InputError if another part's plan has the same clips but other modification times.

    Parts with copies of a corpus whose modification times differ would replace each other's plan forever.
    """
    other = BuildPlan.load(store) if partition.count > 1 else None
    if other is None or [(s.split, s.clips) for s in other.shards] != [(s.split, s.clips) for s in plan.shards]:
        return
    if not {shard.inputs for shard in other.shards} & {shard.inputs for shard in plan.shards}:
        raise InputError(
            f"{store.display_path(PLAN)} lists other files of the same names: copies of a corpus on several machines "
            "must have the same modification times (cp -a and rsync -t keep them, touch -d sets them); if the files "
            f"were changed on purpose, remove {PLAN} and run every part again"
        )
