"""Controlled pitch accuracy: whether sounds have the pitch that a condition requests, not that of their prompts.

Letters: N clips.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.evaluation.analyses import ANALYSES, Analysis, AnalysisInputs, AnalysisResult
from pipeline.evaluation.audio_set import track_pitches
from pipeline.evaluation.generations import generate_all
from pipeline.evaluation.metrics.pitch import is_pitch_correct
from pipeline.evaluation.reference_clips import PITCH, clip_values
from pipeline.evaluation.results import CEILING, ORIGINALS, MetricValue, MetricValues, temperature_row
from pipeline.evaluation.settings import Control
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.prompts import decode_codes
from pipeline.models.conditions import PROMPT

CONDITION_PITCH, PROMPT_PITCH = "condition pitch", "prompt pitch"
_CONDITIONS: dict[Control, tuple[str, ...]] = {"prompt": (PROMPT,), "label": (PITCH,), "both": (PROMPT, PITCH)}


@ANALYSES.register("controlled_pitch")
class ControlledPitch(Analysis):
    """How often sounds have the pitch of the condition, and how often that of the prompt's clip.

    The condition requests the pitch of another clip, drawn by the seed. The prompt alone and the label alone show what
    each of the two does without the other.
    """

    title = "controlled pitch"
    order = 10

    def measure(self, inputs: AnalysisInputs) -> AnalysisResult | None:
        """None: the model has no pitch condition, or the clips have fewer than two pitches."""
        run, settings = inputs.run, inputs.settings
        controls = possible_controls(run, settings.controls)
        if settings.pitch is False or not controls:
            return None
        labels = inputs.references.pitch_labels
        requested = draw_pitches(labels, run, settings.seed)
        kept = np.flatnonzero(~np.isnan(requested)).tolist()
        if not kept:
            return None
        inputs.show_status("generating with other pitches than those of the prompts")
        clips, labels, requested = [inputs.clips[i] for i in kept], labels[kept], requested[kept]
        values = clip_values(run, clips)
        condition = run.model.label_conditions[PITCH]
        values[PITCH] = torch.stack([condition.encode(pitch) for pitch in requested.tolist()])

        def share(pitches: np.ndarray, expected: np.ndarray) -> MetricValue:
            return inputs.summarize(is_pitch_correct(pitches, expected).astype(float))

        rows: dict[str, MetricValues] = {}
        for control in controls:
            own_values = {name: values[name] for name in _CONDITIONS[control]}
            codes = generate_all(
                run, clips, settings.temperatures, settings.sampling, settings.seed, settings.batch_size, own_values
            )
            for temperature, clip_codes in codes.items():
                pitches = track_pitches(decode_codes(run.codec, clip_codes), run.codec.sample_rate)
                rows[f"{control}, {temperature_row(temperature)}"] = {
                    CONDITION_PITCH: share(pitches, requested),
                    PROMPT_PITCH: share(pitches, labels),
                }
        rows[CEILING] = {PROMPT_PITCH: share(inputs.reconstructions.pitches[kept], labels)}
        if (originals := inputs.references.originals) is not None:
            rows[ORIGINALS] = {PROMPT_PITCH: share(originals.pitches[kept], labels)}
        text = "Notes with the pitch that the condition requests, that of another clip, and with that of the prompt."
        return AnalysisResult(title=self.title, text=text, rows=rows, percents=[CONDITION_PITCH, PROMPT_PITCH])


def possible_controls(run: LoadedRun, controls: Sequence[Control]) -> list[Control]:
    """Those of the controls whose conditions the model has; none without a pitch condition."""
    names = {each.name for each in run.model.condition_list}
    return [control for control in controls if PITCH in names and names.issuperset(_CONDITIONS[control])]


def draw_pitches(labels: np.ndarray, run: LoadedRun, seed: int) -> np.ndarray:
    """For each clip [N] the label of another clip with another pitch; NaN where there is none.

    Only pitches that the model knows are drawn.
    """
    condition = run.model.label_conditions[PITCH]
    pitches = np.unique(labels[~np.isnan(labels)])
    pitches = pitches[np.array([condition.knows(pitch) for pitch in pitches.tolist()], bool)]
    generator = np.random.default_rng(seed)
    drawn = np.full(len(labels), np.nan)
    for i, label in enumerate(labels):
        others = pitches[pitches != label]
        if not np.isnan(label) and len(others):
            drawn[i] = generator.choice(others)
    return drawn
