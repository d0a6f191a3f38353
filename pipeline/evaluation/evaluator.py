"""Evaluation of a model on clips that it was not trained on: its loss, and metrics of sounds from the clips' prompts.

Letters: N clips, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.audio import audio_io
from pipeline.data.dataloader import iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.evaluation.audio_set import AudioSet, References
from pipeline.evaluation.controlled_pitch import measure_controlled_pitch, possible_controls
from pipeline.evaluation.generations import generate_all
from pipeline.evaluation.losses import measure_losses
from pipeline.evaluation.metrics import list_metrics
from pipeline.evaluation.metrics.base import summarize
from pipeline.evaluation.reference_clips import (
    ReferenceClip,
    check_dataset,
    max_frames,
    sample_reference_clips,
)
from pipeline.evaluation.results import EvaluationResult, MetricValues, write_results
from pipeline.evaluation.settings import Control, MeasureSettings
from pipeline.generation.loaded_run import LoadedRun

MAX_REFERENCE_CLIPS = 10_000  # to whose embeddings distances are measured
MAX_LOGGED_CLIPS = 16  # whose sounds a tracker gets


@dataclass(frozen=True)
class Evaluation:
    """An evaluation.

    Attributes:
        result: The content of `evaluate.json`.
        clips: The reference clips.
        audio_sets: The codec's reconstructions, then the generations at each temperature.
    """

    result: EvaluationResult
    clips: list[ReferenceClip]
    audio_sets: list[AudioSet]

    def write(self, out: Path) -> None:
        """Write {clip}.{audio set}.wav for every clip and audio set, then evaluate.json."""
        for sounds in self.audio_sets:
            for clip, wav in zip(self.clips, sounds.wavs, strict=True):
                audio_io.write(out / f"{clip.sample.key}.{sounds.name}.wav", wav, sounds.rate)
        write_results(out / "evaluate.json", self.result.to_dict())

    def sounds_by_clip(self, count: int) -> list[tuple[str, dict[str, np.ndarray]]]:
        """The key of each of the first clips, and its sounds by name of the audio set."""
        return [
            (clip.sample.key, {sounds.name: sounds.wavs[i] for sounds in self.audio_sets})
            for i, clip in enumerate(self.clips[:count])
        ]


def evaluate(
    settings: MeasureSettings, run: LoadedRun, on_status: Callable[[str], None], controls: Sequence[Control] = ()
) -> Evaluation:
    """Evaluate a model.

    Args:
        settings: What to evaluate.
        run: The model.
        on_status: Gets a line about each part of the work.
        controls: What controls the pitch when the controlled pitch accuracy is measured; not measured for models
            without a pitch condition.

    Raises:
        InputError: The dataset does not fit the model.
    """
    valid, train = (ShardedDataset(settings.shards, split) for split in (settings.split, settings.baseline))
    for split in (valid, train):
        check_dataset(split, run)
    frames = max_frames(run)
    on_status(f"loss of {len(valid)} clips of {settings.split}")
    losses = measure_losses(run, valid, train, frames)
    clips = sample_reference_clips(valid, settings.n, settings.seed, run, frames)
    on_status(f"generating {len(clips)} clips at {len(settings.temperatures)} temperatures")
    batch = None if settings.batch == "auto" else settings.batch
    codes = generate_all(run, clips, settings.temperatures, settings.sampling, settings.seed, batch)
    on_status("decoding and embedding")
    reconstructions = AudioSet.decode("codec", [clip.codes for clip in clips], run)
    generations = {f"{t:g}": AudioSet.decode(f"t{t:g}", codes[t], run) for t in settings.temperatures}
    batches = islice(iter_once(valid, 256), -(-MAX_REFERENCE_CLIPS // 256))
    embeddings = np.concatenate([part.prompts.numpy().mean(1) for part in batches])
    references = References(clips, reconstructions, embeddings, use_pitch=settings.pitch is not False)
    first = next(iter(generations.values()))
    controlled, controls = {}, possible_controls(run, controls)
    if settings.pitch is not False and controls:
        on_status("generating with other pitches than those of the prompts")
        controlled = measure_controlled_pitch(settings, run, clips, reconstructions, controls)
    results = {
        "loss": losses,
        "temperatures": {name: _measure(sounds, references, settings) for name, sounds in generations.items()},
        "ceiling": _measure(reconstructions, references, settings),
        "floor": _measure(first, references, settings, is_floor=True) if len(clips) > 1 else {},
        "distance": {"embedding": run.embedder.identity, "reference": settings.split, "n": len(embeddings)},
        "settings": {**settings.to_dict(), "n": len(clips)},
        **({"controlled_pitch": controlled} if controlled else {}),
        **run.identity,
    }
    return Evaluation(EvaluationResult.model_validate(results), clips, [reconstructions, *generations.values()])


def _measure(
    sounds: AudioSet, references: References, settings: MeasureSettings, is_floor: bool = False
) -> MetricValues:
    """All metrics that are defined for these sounds."""
    values = {
        name: metric.measure_floor(sounds, references) if is_floor else metric.measure(sounds, references)
        for name, metric in list_metrics().items()
    }
    return {
        name: summarize(value, settings.resamples, settings.seed) for name, value in values.items() if value is not None
    }
