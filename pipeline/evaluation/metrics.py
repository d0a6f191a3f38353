"""Figures of generations: nearness to their prompts, the right note, spread, and what goes wrong with sounds.

Letters: N clips, D width of an embedding, K codebooks, T frames, S samples.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.audio import metrics

SEMITONE = 0.5  # a note is right within half a semitone
QUIET = 1e-3  # -60 dBFS
TAIL = 0.25  # share of a clip in which it must not have fallen silent


@dataclass(frozen=True)
class MeanWithCI:
    """A mean over N clips and its 95 % interval by bootstrap over clips."""

    mean: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"mean": self.mean, "interval": [self.low, self.high], "n": self.n}


def bootstrap_mean(values: np.ndarray, resamples: int, seed: int) -> MeanWithCI:
    """values: a number a clip [N], N >= 1."""
    values = np.asarray(values, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return MeanWithCI(float(values.mean()), float(low), float(high), len(values))


def fidelity(prompts: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Cosine between each prompt and the embedding of what it became: two [N, D] -> [N]."""
    return metrics.cosine(prompts, found)


def mismatched_similarity(prompts: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Mean cosine between each prompt and what all other prompts became: two [N, D], N >= 2 -> [N]."""
    cosines = metrics.cosine(prompts[:, None], found[None])
    return (cosines.sum(1) - np.diagonal(cosines)) / (len(prompts) - 1)


def track_pitches(wavs: Sequence[np.ndarray], rate: int) -> np.ndarray:
    """The note that each sound plays, as MIDI numbers with fractions; NaN where none is heard: [N]."""
    if wavs:
        metrics.pitch(wavs[0], rate)  # the tracker is made once, before there are threads
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return np.array(list(pool.map(lambda wav: metrics.pitch(wav, rate), wavs)))


def pitch_correct(found: np.ndarray, labels: np.ndarray, octaves: bool = False) -> np.ndarray:
    """Whether each found pitch is within half a semitone of its label: two [N] -> 0 or 1 [N].

    octaves: whether being off by whole octaves is right too. No pitch heard is wrong.
    """
    off = found - labels
    if octaves:
        off = off - 12 * np.round(off / 12)
    return (np.abs(off) <= SEMITONE).astype(np.float64)  # NaN compares as false


def pitch_chance(found: np.ndarray, labels: np.ndarray, octaves: bool = False) -> np.ndarray:
    """How often each found pitch is right for the labels of all other clips: [N], N >= 2."""
    hits = np.stack([pitch_correct(found, np.roll(labels, shift), octaves) for shift in range(1, len(labels))])
    return hits.mean(0)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance between the normal distributions of two sets of embeddings [N, D] and [M, D], N, M >= 2.

    |mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017; on audio: Kilgour et al. 2019). Biased upwards
    for few clips: compare figures of one N only. The root's trace is that of (A^(1/2) B A^(1/2))^(1/2), which is
    symmetric and so exact for covariances without full rank.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    A, B = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(A)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ B @ root).clip(min=0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(A) + np.trace(B) - 2 * shared)


def vendi_score(embeddings: np.ndarray) -> float:
    """How many different sounds a set [N, D] seems to hold, 1..N: the Vendi score under the cosine of embeddings.

    exp of the entropy of the eigenvalues of their similarities / N (Friedman & Dieng 2023).
    """
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(min=1e-12)
    values = np.linalg.eigvalsh(unit.astype(np.float64) @ unit.T / len(unit)).clip(min=0)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def falls_silent(wav: np.ndarray, like: np.ndarray) -> bool:
    """Whether the last quarter of a sound [S] is silent where that of another of its length is not."""
    last = max(1, round(len(like) * TAIL))
    return float(np.abs(wav[-last:]).max()) < QUIET <= float(np.abs(like[-last:]).max())


def is_looping(codes: np.ndarray) -> bool:
    """Whether the last half of codes [K, T] goes round and round: all codebooks repeat with one period of 1..T / 8."""
    half, most = codes.shape[1] // 2, codes.shape[1] // 8
    return any(np.array_equal(codes[:, -half:], codes[:, -half - p : -p]) for p in range(1, most + 1))


def flatten_metrics(told: Mapping[str, Any]) -> dict[str, float]:
    """The figures of `evaluate.json` by one name each: loss/model, t0.7/pitch, ceiling/fidelity..."""
    found = {f"loss/{name}": told["loss"][name]["nats"] for name in ("model", "unigram", "uniform")}
    found["loss/bits_second"] = told["loss"]["model"]["bits_second"]
    columns = {"floor": told["floor"], "ceiling": told["ceiling"]}
    columns |= {f"t{t}": row for t, row in told["temperatures"].items()}
    for title, row in columns.items():
        found |= {f"{title}/{name}": value["mean"] for name, value in row.items()}
    return found
