"""Sounds to pick from."""

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

log = logging.getLogger("pipeline")


def examples(given: Any, split: str, count: int, run: str, instrument: LoadedRun, store: FileStore) -> dict[str, Path]:
    """The sounds that the setting `examples` names, copied into the file store.

    `auto`: clips of a split of the cache that the run was trained on, as its codec gives them back; none where it
    is not there. Raises InputError for files that are not.
    """
    if given == "auto":
        try:
            return _of_cache(split, count, Path(run), instrument, store)
        except InputError as error:  # an export that has left its cache behind plays as well
            log.warning("no examples to pick from (give some: examples=FOLDER): %s", error)
            return {}
    found = {}
    for name, path in prompts.find_prompts(given).items():
        if path.name.lower().endswith(UNSUPPORTED):
            log.warning("examples=%s: %s: %s", given, path, unsupported(path.suffix, path.suffix))
            continue
        found[name] = store.add_example(path, f"{name}{path.suffix}")
    return found


def _of_cache(split: str, count: int, run: Path, instrument: LoadedRun, store: FileStore) -> dict[str, Path]:
    cache = ShardedDataset(run_folder.training_shards(run), split)
    check_dataset(cache, instrument)
    clips = sample_reference_clips(cache, count, 0, instrument, max_frames(instrument))
    wavs = prompts.decode_codes(instrument.codec, [clip.codes for clip in clips])
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        for clip, wav in zip(clips, wavs, strict=True):
            name = _name(clip.sample.key, clip.sample.metadata.get("labels") or {})
            file = Path(folder) / f"{clip.sample.key}.wav"
            audio_io.write(file, wav, instrument.codec.sample_rate)
            made[name] = store.add_example(file, file.name)
    return made


def _name(key: str, labels: Mapping[str, Any]) -> str:
    told = [str(labels[part]) for part in ("instrument_family_str", "family", "pitch") if part in labels]
    return f"{' '.join(told)} ({key})" if told else key
