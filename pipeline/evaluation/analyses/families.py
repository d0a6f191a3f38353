"""Metrics by instrument family, or by the values of another label.

Letters: N clips.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.audio.metrics import cosine
from pipeline.data.stats import labels_of
from pipeline.evaluation.analyses import ANALYSES, Analysis, AnalysisInputs, AnalysisResult
from pipeline.evaluation.audio_set import AudioSet
from pipeline.evaluation.metrics import Metric, list_metrics
from pipeline.evaluation.reference_clips import ReferenceClip
from pipeline.evaluation.results import MetricValue, MetricValues

MIN_CLIPS = 5  # of a family that is named as the worst
MAX_FAMILIES = 30  # the largest are shown
log = logging.getLogger(__name__)


@ANALYSES.register("families")
class Families(Analysis):
    """The metrics that have one value per clip, over the clips of each family, beside the codec's reconstructions.

    At the temperature with the highest prompt fidelity.
    """

    title = "families"
    order = 30

    def measure(self, inputs: AnalysisInputs) -> AnalysisResult | None:
        """None: fewer than two families have clips."""
        by, references = inputs.settings.by, inputs.references
        families = group_clips(inputs.clips, by)
        if not families and any(labels_of(clip.sample) for clip in inputs.clips):
            names = ", ".join(sorted({name for clip in inputs.clips for name in labels_of(clip.sample)}))
            log.warning("by=%s: no clip has this label, so families are not measured; labels are %s", by, names)
        if len(families) < 2:
            return None
        temperature, sounds = max(
            inputs.generations.items(), key=lambda item: cosine(references.prompts, item[1].embeddings).mean()
        )
        metrics = list_metrics()
        values, ceilings = (
            measure_families(inputs, each, families, metrics) for each in (sounds, inputs.reconstructions)
        )
        rows = {}
        for family, members in families.items():
            for title, row in ((f"{family} ({len(members)})", values), (f"{family}, codec", ceilings)):
                rows[title] = {metrics[name].title: value for name, value in row[family].items()}
        large = {family: values[family] for family, members in families.items() if len(members) >= MIN_CLIPS}
        text = f"By {by}, at temperature {temperature:g}, which has the highest prompt fidelity; in brackets: clips. "
        percents = [metric.title for metric in metrics.values() if metric.is_percent]
        worst = name_worst(large, ceilings, metrics)
        return AnalysisResult(title=self.title, text=text + worst, rows=rows, percents=percents)


def group_clips(clips: Sequence[ReferenceClip], label: str) -> dict[str, list[int]]:
    """The indices of the clips by value of a label, of the `MAX_FAMILIES` largest; a list is several values."""
    families: dict[str, list[int]] = {}
    for i, clip in enumerate(clips):
        value = labels_of(clip.sample).get(label)
        for each in value if isinstance(value, list) else [] if value is None else [value]:
            families.setdefault(str(each), []).append(i)
    largest = sorted(families, key=lambda family: -len(families[family]))[:MAX_FAMILIES]
    return {family: families[family] for family in sorted(largest)}


def measure_families(
    inputs: AnalysisInputs, sounds: AudioSet, families: Mapping[str, list[int]], metrics: Mapping[str, Metric]
) -> dict[str, MetricValues]:
    """The metrics that have one value per clip over the clips of each family, by family and name."""
    rows: dict[str, MetricValues] = {family: {} for family in families}
    for name, metric in metrics.items():
        values = metric.measure(sounds, inputs.references)
        if isinstance(values, np.ndarray) and len(values) == len(inputs.clips):
            for family, members in families.items():
                if not np.isnan(values[members]).all():
                    rows[family][name] = inputs.summarize(values[members])
    return rows


def name_worst(
    families: Mapping[str, MetricValues], ceilings: Mapping[str, MetricValues], metrics: Mapping[str, Metric]
) -> str:
    """A sentence that names the worst family in each metric: that which is farthest below its own ceiling.

    A family whose interval includes the ceiling is not named.

    Args:
        families: The metrics of the generations, by family and name.
        ceilings: Those of the codec's reconstructions.
        metrics: The metrics by name.
    """
    worst = []
    for name, metric in metrics.items():
        sign, gaps = 1 if metric.higher_is_better else -1, {}
        for family, values in families.items():
            if name in values and name in ceilings[family]:
                low, high = values[name].interval or [0.0, 0.0]
                ceiling = ceilings[family][name].mean
                gaps[family] = 0.0 if low <= ceiling <= high else sign * (ceiling - values[name].mean)
        family = max(gaps, key=lambda each: gaps[each], default="")
        if family and gaps[family] > 0:
            ours, codec = (MetricValue(mean=each[family][name].mean) for each in (families, ceilings))
            unit = " %" * metric.is_percent
            figures = f"{ours.format(metric.is_percent)}{unit} (codec {codec.format(metric.is_percent)}{unit})"
            worst.append(f"{metric.title}: {family}, {figures}")
    if not worst:
        return f"No family of {MIN_CLIPS} clips or more is worse than the codec's reconstructions beyond chance."
    return f"Farthest from the codec's reconstructions, of families of {MIN_CLIPS} clips or more: {'; '.join(worst)}."
