"""Distances from sounds to clips of the dataset in several spaces, and the sounds that are farthest from them.

Letters: N sounds, M clips of the reference, Q width of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from pipeline.evaluation.analyses import ANALYSES, Analysis, AnalysisInputs, AnalysisResult
from pipeline.evaluation.metrics.frechet_distance import MIN_SOUNDS, FittedNormal
from pipeline.evaluation.metrics.kernel_distance import FittedKernel
from pipeline.evaluation.outliers import QUANTILE, OutlierDetector
from pipeline.evaluation.reference_clips import max_frames, sample_reference_clips
from pipeline.evaluation.results import CEILING, MetricValue, MetricValues, temperature_row
from pipeline.evaluation.settings import EvaluateSettings
from pipeline.evaluation.spaces import CodedSounds, Space, load_space_embedders, open_spaces
from pipeline.generation.loaded_run import pick_device

TRAINING, SPLIT = "training clips", "clips of the split"
REAL = f"{100 * QUANTILE:.0f} % of real clips"
OUTLIERS = "outliers"  # the title of the column, after the name of the space
RECORDED, NAMED = 10, 3  # the farthest sounds: of each temperature in evaluate.json, and of all of them in a note
MIN_REFERENCE = 4  # clips: two halves of two


@ANALYSES.register("distances")
class Distances(Analysis):
    """FAD, FAD-inf, KAD and outliers in each space of the setting `spaces`.

    Training clips, and clips of the split compared with its other clips, are real sounds, as many as there are
    generations: they show what a perfect model reaches.
    """

    title = "distances"
    order = 20

    def check(self, settings: EvaluateSettings) -> None:
        """See `Analysis.check`."""
        load_space_embedders(settings.spaces, pick_device(settings.device))

    def measure(self, inputs: AnalysisInputs) -> AnalysisResult | None:
        """None: there is one sound only, or there are too few clips to compare sounds with, or no spaces."""
        run, settings, n = inputs.run, inputs.settings, len(inputs.clips)
        spaces, frames, rate = open_spaces(settings.spaces, run), max_frames(run), run.codec.frame_rate
        reference = CodedSounds.of_split(inputs.split, frames)
        if n < 2 or len(reference) < MIN_REFERENCE or not spaces:
            return None
        clips = sample_reference_clips(inputs.training, n, settings.seed, run, frames)
        sets = {temperature_row(t): CodedSounds.of_set(sounds) for t, sounds in inputs.generations.items()}
        sets |= {CEILING: CodedSounds.of_set(inputs.reconstructions), TRAINING: CodedSounds.of_clips(clips)}
        results = [_measure_space(space, reference, sets, inputs) for space in spaces]
        rows: dict[str, MetricValues] = {}
        for result in results:
            for row, values in result.rows.items():
                rows.setdefault(row, {}).update(values)
        sizes: dict[str, JsonValue] = {
            row: {"n": len(sounds), "seconds": round(sounds.seconds(rate), 2)} for row, sounds in sets.items()
        }
        return AnalysisResult(
            title=self.title,
            text=f"Distances of {n} sounds to clips of {settings.split}: lower is closer. Outliers are at a larger "
            f"Mahalanobis distance from these than {REAL} are.",
            rows={row: values for row, values in rows.items() if values},
            percents=[f"{space.name} {OUTLIERS}" for space in spaces],
            notes=[result.note for result in results],
            details={"spaces": {result.space: result.details for result in results}, "sets": sizes},
        )


@dataclass(frozen=True)
class FittedReference:
    """What distances to a reference are computed from."""

    normal: FittedNormal
    kernel: FittedKernel

    @classmethod
    def fit(cls, vectors: np.ndarray) -> FittedReference:
        """Fit to vectors [M, Q], M >= 2."""
        return cls(FittedNormal.fit(vectors), FittedKernel.fit(vectors))

    def distances(self, vectors: np.ndarray) -> dict[str, float]:
        """The distances of vectors [N, Q] by the titles of their columns; none of fewer than two sounds."""
        if len(vectors) < 2:
            return {}
        limit = {"FAD-inf": self.normal.distance_limit(vectors)} if len(vectors) >= MIN_SOUNDS else {}
        return {"FAD": self.normal.distance(vectors), **limit, "KAD": self.kernel.distance(vectors)}

    def distances_within(self, n: int, seed: int) -> dict[str, float]:
        """The distances of n random clips of the reference to its other clips; none where these are fewer than n."""
        vectors = self.kernel.reference
        if len(vectors) < 2 * n:
            return {}
        rows = np.random.default_rng(seed).permutation(len(vectors))[:n]
        others = self.kernel.without(rows)
        return FittedReference(FittedNormal.fit(others.reference), others).distances(vectors[rows])


@dataclass(frozen=True)
class _SpaceResult:
    """The results in one space: parts of an `AnalysisResult`."""

    space: str
    rows: dict[str, MetricValues]
    note: str
    details: dict[str, JsonValue]


def _measure_space(
    space: Space, reference: CodedSounds, sets: Mapping[str, CodedSounds], inputs: AnalysisInputs
) -> _SpaceResult:
    """Measure all sets of sounds in one space."""
    inputs.show_status(f"distances in the space {space.name}")
    seed = inputs.settings.seed
    reference = reference if space.is_cheap else reference.draw(inputs.settings.embedded_clips, seed)
    vectors = space.embed(reference)
    fitted, detector = FittedReference.fit(vectors), OutlierDetector.calibrate(vectors, seed)
    values: dict[str, dict[str, MetricValue]] = {}
    far: dict[str, np.ndarray] = {}
    for row, sounds in sets.items():
        embedded = space.embed(sounds)
        far[row] = detector.distances(embedded)
        values[row] = {name: MetricValue(mean=value) for name, value in fitted.distances(embedded).items()}
        if detector.threshold is not None:
            values[row][OUTLIERS] = inputs.summarize((far[row] > detector.threshold).astype(float))
    within = fitted.distances_within(len(inputs.clips), seed)
    values[SPLIT] = {name: MetricValue(mean=value) for name, value in within.items()}
    seconds = reference.seconds(inputs.run.codec.frame_rate)
    ranked, note = _rank_outliers(inputs, far, detector.threshold)
    details: dict[str, JsonValue] = {
        "embedding": {**space.identity},
        "reference": {"split": inputs.settings.split, "n": len(reference), "seconds": round(seconds, 2)},
        "embedded": space.clips_as,
        "outlier_threshold": detector.threshold,
        "farthest": ranked,
    }
    return _SpaceResult(
        space.name,
        {row: {f"{space.name} {name}": value for name, value in each.items()} for row, each in values.items()},
        f"{space.name}: {space.title}; reference: {space.clips_as} of {len(reference)} clips, {seconds:.0f} s; {note}",
        details,
    )


def _rank_outliers(
    inputs: AnalysisInputs, far: Mapping[str, np.ndarray], threshold: float | None
) -> tuple[dict[str, JsonValue], str]:
    """The generations that are farthest from the reference, by the title of the row, and a note about the farthest."""
    ranked: dict[str, JsonValue] = {}
    worst: list[tuple[float, str]] = []
    for temperature, sounds in inputs.generations.items():
        row = temperature_row(temperature)
        files = [sounds.file_name(clip) for clip in inputs.clips]
        pairs = sorted(zip(far[row].round(3).tolist(), files, strict=True), reverse=True)
        ranked[row] = [{"file": file, "distance": distance} for distance, file in pairs[:RECORDED]]
        worst = sorted([*worst, *pairs], reverse=True)[:NAMED]
    limit = "" if threshold is None else f" ({REAL}: at most {threshold:.1f})"
    return ranked, f"farthest{limit}: " + ", ".join(f"{file:.200} {distance:.1f}" for distance, file in worst)
