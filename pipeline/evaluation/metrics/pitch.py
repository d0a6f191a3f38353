"""Pitch: whether notes have the pitch of their labels. Datasets without pitch labels have no such metrics."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from pipeline.evaluation.metrics import METRICS, AudioSet, Metric, References

TOLERANCE = 0.5  # semitones


@METRICS.register("pitch")
class PitchAccuracy(Metric):
    """Whether each note is within half a semitone of its label. Floor: labels of other clips."""

    title = "pitch"
    higher_is_better = True
    is_percent = True
    order = 20
    ignores_octaves: ClassVar[bool] = False

    def measure(self, sounds: AudioSet, references: References) -> np.ndarray | None:
        """One value per clip, NaN where it has no label; None: no clip has one."""
        labels = references.pitch_labels
        if np.isnan(labels).all():
            return None
        return np.where(np.isnan(labels), np.nan, is_pitch_correct(sounds.pitches, labels, self.ignores_octaves))

    def measure_floor(self, sounds: AudioSet, references: References) -> np.ndarray | None:
        """The fraction of other labels for which each note would be correct."""
        is_labeled = ~np.isnan(references.pitch_labels)
        if is_labeled.sum() < 2:
            return None
        return chance_of_pitch(sounds.pitches[is_labeled], references.pitch_labels[is_labeled], self.ignores_octaves)


@METRICS.register("pitch_class")
class PitchClassAccuracy(PitchAccuracy):
    """The same where a difference of octaves is correct too."""

    title = "pitch class"
    order = 30
    ignores_octaves = True


def is_pitch_correct(pitches: np.ndarray, labels: np.ndarray, ignore_octaves: bool = False) -> np.ndarray:
    """Whether each pitch is within half a semitone of its label: bool [N], from two [N]. NaN, no pitch, is wrong."""
    difference = pitches - labels
    if ignore_octaves:
        difference = difference - 12 * np.round(difference / 12)
    is_correct: np.ndarray = np.abs(difference) <= TOLERANCE
    return is_correct


def chance_of_pitch(pitches: np.ndarray, labels: np.ndarray, ignore_octaves: bool = False) -> np.ndarray:
    """The fraction of all other clips' labels for which each pitch would be correct: [N], N >= 2."""
    shifts = range(1, len(labels))
    hits = [is_pitch_correct(pitches, np.roll(labels, shift), ignore_octaves) for shift in shifts]
    fractions: np.ndarray = np.mean(hits, axis=0)
    return fractions
