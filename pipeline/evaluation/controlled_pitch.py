"""Controlled pitch accuracy: whether sounds have the pitch that a condition requests, not that of their prompts.

Letters: N clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch

from pipeline.common.errors import InputError
from pipeline.evaluation.audio_set import AudioSet, track_pitches
from pipeline.evaluation.generations import generate_all
from pipeline.evaluation.metrics.base import summarize
from pipeline.evaluation.metrics.pitch import is_pitch_correct
from pipeline.evaluation.reference_clips import PITCH, ReferenceClip, clip_values
from pipeline.evaluation.results import MetricValue, MetricValues
from pipeline.evaluation.settings import Control, MeasureSettings
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.prompts import decode_codes
from pipeline.models.conditions import PROMPT
from pipeline.models.conditions.base import LabelCondition

CONDITION_PITCH, PROMPT_PITCH = "condition pitch", "prompt pitch"
CEILING = "ceiling (codec)"
_CONDITIONS: dict[Control, tuple[str, ...]] = {"prompt": (PROMPT,), "label": (PITCH,), "both": (PROMPT, PITCH)}


def possible_controls(run: LoadedRun, controls: Sequence[Control]) -> list[Control]:
    """Those of the controls whose conditions the model has; none without a pitch condition."""
    names = {each.name for each in run.model.condition_list}
    return [control for control in controls if PITCH in names and names.issuperset(_CONDITIONS[control])]


def measure_controlled_pitch(
    settings: MeasureSettings,
    run: LoadedRun,
    clips: Sequence[ReferenceClip],
    reconstructions: AudioSet,
    controls: Sequence[Control],
) -> dict[str, MetricValues]:
    """How often sounds have the pitch of the condition, and how often that of the prompt's clip.

    The condition requests the pitch of another clip, drawn by the seed. The prompt alone and the label alone show what
    each of the two does without the other.

    Args:
        settings: How sounds are generated.
        run: The model.
        clips: The clips that supply the prompts.
        reconstructions: The codec's reconstructions of these clips: the ceiling, at the pitch of their own labels.
        controls: Which conditions the model gets; see `possible_controls`.

    Returns:
        By row, such as "both, temperature 0.7", the two fractions. Empty: the clips have fewer than two pitches.
    """
    labels = np.array([clip.pitch for clip in clips])
    requested = draw_pitches(labels, run, settings.seed)
    kept = np.flatnonzero(~np.isnan(requested)).tolist()
    if not kept:
        return {}
    own_clips, labels, requested = [clips[i] for i in kept], labels[kept], requested[kept]
    values = clip_values(run, own_clips)
    condition = run.model.label_conditions[PITCH]
    values[PITCH] = torch.stack([condition.encode(pitch) for pitch in requested.tolist()])
    batch = None if settings.batch == "auto" else settings.batch
    rows: dict[str, MetricValues] = {}
    for control in controls:
        own_values = {name: values[name] for name in _CONDITIONS[control]}
        codes = generate_all(run, own_clips, settings.temperatures, settings.sampling, settings.seed, batch, own_values)
        for temperature, clip_codes in codes.items():
            pitches = track_pitches(decode_codes(run.codec, clip_codes), run.codec.sample_rate)
            rows[f"{control}, temperature {temperature:g}"] = {
                CONDITION_PITCH: _share(pitches, requested, settings),
                PROMPT_PITCH: _share(pitches, labels, settings),
            }
    rows[CEILING] = {PROMPT_PITCH: _share(reconstructions.pitches[kept], labels, settings)}
    return rows


def draw_pitches(labels: np.ndarray, run: LoadedRun, seed: int) -> np.ndarray:
    """For each clip [N] the label of another clip with another pitch; NaN where there is none.

    Only pitches that the model knows are drawn.
    """
    condition = run.model.label_conditions[PITCH]
    pitches = np.unique(labels[~np.isnan(labels)])
    pitches, generator = pitches[_are_known(pitches, condition)], np.random.default_rng(seed)
    drawn = np.full(len(labels), np.nan)
    for i, label in enumerate(labels):
        others = pitches[pitches != label]
        if not np.isnan(label) and len(others):
            drawn[i] = generator.choice(others)
    return drawn


def _are_known(pitches: np.ndarray, condition: LabelCondition) -> np.ndarray:
    """Which pitches [N] training had: bool [N]."""
    is_known = np.zeros(len(pitches), bool)
    for i, pitch in enumerate(pitches.tolist()):
        with suppress(InputError):
            condition.encode(pitch)
            is_known[i] = condition.warning(pitch) is None
    return is_known


def _share(pitches: np.ndarray, expected: np.ndarray, settings: MeasureSettings) -> MetricValue:
    """The fraction of sounds within half a semitone of the expected pitches [N], with its interval."""
    return summarize(is_pitch_correct(pitches, expected).astype(float), settings.resamples, settings.seed)
