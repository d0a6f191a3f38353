"""Evaluation of a model on clips that it was not trained on: its loss, and metrics of sounds from the clips' prompts.

Letters: N clips, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.audio import audio_io
from pipeline.data.dataset import ShardedDataset
from pipeline.evaluation.analyses import Analysis, AnalysisInputs
from pipeline.evaluation.audio_set import AudioSet, References
from pipeline.evaluation.generations import generate_all
from pipeline.evaluation.losses import measure_losses
from pipeline.evaluation.metrics import list_metrics
from pipeline.evaluation.metrics.base import summarize
from pipeline.evaluation.protocols import matching
from pipeline.evaluation.reference_clips import (
    ReferenceClip,
    check_dataset,
    iter_reference_batches,
    max_frames,
    sample_reference_clips,
)
from pipeline.evaluation.results import EvaluationResult, MetricValues, write_results
from pipeline.evaluation.settings import EvaluateSettings, MeasureSettings
from pipeline.generation.loaded_run import LoadedRun

MAX_LOGGED_CLIPS = 16  # whose sounds a tracker gets


@dataclass(frozen=True)
class Evaluation:
    """An evaluation.

    Attributes:
        result: The content of `evaluate.json`.
        run: The model.
        split: The split that was measured.
        training: The split of the baseline.
        references: The reference clips, and what their sounds are compared with.
        generations: The sounds generated from the prompts of these clips, by temperature.
    """

    result: EvaluationResult
    run: LoadedRun
    split: ShardedDataset
    training: ShardedDataset
    references: References
    generations: Mapping[float, AudioSet]

    @property
    def clips(self) -> Sequence[ReferenceClip]:
        """The reference clips."""
        return self.references.clips

    @property
    def audio_sets(self) -> list[AudioSet]:
        """The codec's reconstructions, then the generations at each temperature."""
        return [self.references.reconstructions, *self.generations.values()]

    def write(self, out: Path) -> None:
        """Write {clip}.{audio set}.wav for every clip and audio set, then evaluate.json."""
        for sounds in self.audio_sets:
            for clip, wav in zip(self.clips, sounds.wavs, strict=True):
                audio_io.write(out / sounds.file_name(clip), wav, sounds.rate)
        write_results(out / "evaluate.json", self.result.to_dict())

    def sounds_by_clip(self, count: int) -> list[tuple[str, dict[str, np.ndarray]]]:
        """The key of each of the first clips, and its sounds by name of the audio set."""
        return [
            (clip.sample.key, {sounds.name: sounds.wavs[i] for sounds in self.audio_sets})
            for i, clip in enumerate(self.clips[:count])
        ]


def evaluate(settings: MeasureSettings, run: LoadedRun, on_status: Callable[[str], None]) -> Evaluation:
    """Evaluate a model.

    Args:
        settings: What to evaluate.
        run: The model.
        on_status: Gets a line about each part of the work.

    Raises:
        InputError: The dataset does not fit the model or the protocol, or recordings are not in `corpus_root`.
    """
    valid, train = (ShardedDataset(settings.shards, split) for split in (settings.split, settings.baseline))
    for split in (valid, train):
        check_dataset(split, run)
    settings.protocol.check(valid.manifest)
    frames = max_frames(run)
    on_status(f"loss of {len(valid)} clips of {settings.split}")
    losses = measure_losses(run, valid, train, frames)
    clips, protocol = settings.protocol.select(sample_reference_clips(valid, settings.n, settings.seed, run, frames))
    originals = None if settings.corpus_root is None else AudioSet.read(settings.corpus_root, clips, run)
    on_status(f"generating {len(clips)} clips at {len(settings.temperatures)} temperatures")
    codes = generate_all(run, clips, settings.temperatures, settings.sampling, settings.seed, settings.batch_size)
    on_status("decoding and embedding")
    reconstructions = AudioSet.decode("codec", [clip.codes for clip in clips], run)
    generations = {t: AudioSet.decode(f"t{t:g}", codes[t], run) for t in settings.temperatures}
    embeddings = np.concatenate([batch.prompts.numpy().mean(1) for batch in iter_reference_batches(valid)])
    bad_labels = matching(clips, settings.protocol.bad_labels)
    references = References(clips, reconstructions, embeddings, settings.pitch is not False, originals, {*bad_labels})
    first = next(iter(generations.values()))
    results = {
        "loss": losses,
        "temperatures": {f"{t:g}": _measure(sounds, references, settings) for t, sounds in generations.items()},
        "ceiling": _measure(reconstructions, references, settings),
        "floor": _measure(first, references, settings, is_floor=True) if len(clips) > 1 else {},
        **({} if originals is None else {"originals": _measure(originals, references, settings)}),
        "distance": {"embedding": run.embedder.identity, "reference": settings.split, "n": len(embeddings)},
        **({} if settings.protocol.title is None else {"protocol": protocol}),
        "settings": {**settings.to_dict(), "n": len(clips)},
        **run.identity,
    }
    return Evaluation(EvaluationResult.model_validate(results), run, valid, train, references, generations)


def analyze(
    evaluation: Evaluation,
    settings: EvaluateSettings,
    analyses: Mapping[str, Analysis],
    on_status: Callable[[str], None],
) -> Evaluation:
    """The evaluation with the results of those analyses that are defined for it."""
    inputs = AnalysisInputs(
        settings,
        evaluation.run,
        evaluation.split,
        evaluation.training,
        evaluation.references,
        evaluation.generations,
        show_status=on_status,
    )
    results = {name: analysis.measure(inputs) for name, analysis in analyses.items()}
    measured = {name: result for name, result in results.items() if result is not None}
    return replace(evaluation, result=evaluation.result.model_copy(update={"analyses": measured}))


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
