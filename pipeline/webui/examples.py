"""Example sounds that visitors can use as prompts."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.audio import audio_io
from pipeline.common.errors import InputError
from pipeline.common.sound_files import UNSUPPORTED, unsupported
from pipeline.data.dataset import ShardedDataset
from pipeline.evaluation import run_folder
from pipeline.evaluation.reference_clips import check_dataset, max_frames, sample_reference_clips
from pipeline.generation import prompts
from pipeline.generation.loaded_run import LoadedRun
from pipeline.webui.file_store import FileStore
from pipeline.webui.settings import DemoSettings

log = logging.getLogger("pipeline")


def examples(settings: DemoSettings, loaded: LoadedRun, store: FileStore) -> dict[str, Path]:
    """Copy the sounds of the setting `examples` into the file store, and return their paths by name.

    With `auto` the sounds are clips of the dataset cache that the run was trained on, reconstructed by its codec; an
    empty dict if there is no such cache. Raises InputError for files that do not exist.
    """
    if settings.examples == "auto":
        try:
            return _from_cache(settings, loaded, store)
        except InputError as error:  # the page also works with an export alone, without its dataset cache
            log.warning("the page has no example sounds (examples=FOLDER adds some): %s", error)
            return {}
    files = {}
    for name, path in prompts.find_prompts(settings.examples).items():
        if path.name.lower().endswith(UNSUPPORTED):
            log.warning("examples: %s: %s", path, unsupported(path.suffix, path.suffix))
            continue
        files[name] = store.add_example(path, f"{name}{path.suffix}")
    return files


def _from_cache(settings: DemoSettings, loaded: LoadedRun, store: FileStore) -> dict[str, Path]:
    cache = ShardedDataset(run_folder.training_shards(Path(settings.run[0])), settings.split)
    check_dataset(cache, loaded)
    clips = sample_reference_clips(cache, settings.count, 0, loaded, max_frames(loaded))
    wavs = prompts.decode_codes(loaded.codec, [clip.codes for clip in clips])
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for clip, wav in zip(clips, wavs, strict=True):
            name = _label(clip.sample.key, clip.sample.metadata.get("labels") or {})
            file = Path(folder) / f"{clip.sample.key}.wav"
            audio_io.write(file, wav, loaded.codec.sample_rate)
            files[name] = store.add_example(file, file.name)
    return files


def _label(key: str, labels: Mapping[str, Any]) -> str:
    parts = [str(labels[part]) for part in ("instrument_family_str", "family", "pitch") if part in labels]
    return f"{' '.join(parts)} ({key})" if parts else key
