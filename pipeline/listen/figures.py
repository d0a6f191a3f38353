"""Figures with intervals: how near generations come to their prompts, and whether they play the right note.

Letters: N clips, D width of an embedding.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.sound import metrics

SEMITONE = 0.5  # a note is right within half a semitone


@dataclass(frozen=True)
class Figure:
    """A mean over N clips and its 95 % interval by bootstrap over clips."""

    mean: float
    low: float
    high: float
    n: int

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {"mean": self.mean, "interval": [self.low, self.high], "n": self.n}


def figure(values: np.ndarray, resamples: int, seed: int) -> Figure:
    """values: a number a clip [N], N >= 1."""
    values = np.asarray(values, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return Figure(float(values.mean()), float(low), float(high), len(values))


def fidelity(prompts: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Cosine between each prompt and the embedding of what it became: two [N, D] -> [N]."""
    return metrics.cosine(prompts, found)


def floor(prompts: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Mean cosine between each prompt and what all other prompts became: two [N, D], N >= 2 -> [N]."""
    cosines = metrics.cosine(prompts[:, None], found[None])
    return (cosines.sum(1) - np.diagonal(cosines)) / (len(prompts) - 1)


def pitches(wavs: Sequence[np.ndarray], rate: int) -> np.ndarray:
    """The note that each sound plays, as MIDI numbers with fractions; NaN where none is heard: [N]."""
    if wavs:
        metrics.pitch(wavs[0], rate)  # the tracker is made once, before there are threads
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return np.array(list(pool.map(lambda wav: metrics.pitch(wav, rate), wavs)))


def right(found: np.ndarray, labels: np.ndarray, octaves: bool = False) -> np.ndarray:
    """Whether each found pitch is within half a semitone of its label: two [N] -> 0 or 1 [N].

    octaves: whether being off by whole octaves is right too. No pitch heard is wrong.
    """
    off = found - labels
    if octaves:
        off = off - 12 * np.round(off / 12)
    return (np.abs(off) <= SEMITONE).astype(np.float64)  # NaN compares as false


def chance(found: np.ndarray, labels: np.ndarray, octaves: bool = False) -> np.ndarray:
    """How often each found pitch is right for the labels of all other clips: [N], N >= 2."""
    hits = np.stack([right(found, np.roll(labels, shift), octaves) for shift in range(1, len(labels))])
    return hits.mean(0)
