"""Metrics of generated sounds: fidelity to the prompt, pitch, diversity, and typical faults.

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

SEMITONE = 0.5  # a pitch is correct within half a semitone
QUIET = 1e-3  # -60 dBFS
TAIL = 0.25  # the last part of a clip that is checked for silence


@dataclass(frozen=True)
class MeanWithCI:
    """A mean over n clips with its 95 % confidence interval, by bootstrap over clips."""

    mean: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """The mean and its interval, as JSON."""
        return {"mean": self.mean, "interval": [self.low, self.high], "n": self.n}


def bootstrap_mean(values: np.ndarray, resamples: int, seed: int) -> MeanWithCI:
    """The mean of one value per clip [N], N >= 1, with its confidence interval."""
    values = np.asarray(values, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return MeanWithCI(float(values.mean()), float(low), float(high), len(values))


def fidelity(prompts: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """The cosine similarity of each prompt and the embedding of its sound: [N], from two [N, D]."""
    return metrics.cosine(prompts, embeddings)


def mismatched_similarity(prompts: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """The mean cosine similarity of each prompt and the sounds of all other prompts: [N], from two [N, D], N >= 2."""
    cosines = metrics.cosine(prompts[:, None], embeddings[None])
    return (cosines.sum(1) - np.diagonal(cosines)) / (len(prompts) - 1)


def track_pitches(wavs: Sequence[np.ndarray], rate: int) -> np.ndarray:
    """The pitch of each sound as a fractional MIDI note number, NaN if it has none: [N]."""
    if wavs:
        metrics.pitch(wavs[0], rate)  # creates the shared pitch tracker before there are threads
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return np.array(list(pool.map(lambda wav: metrics.pitch(wav, rate), wavs)))


def pitch_correct(pitches: np.ndarray, labels: np.ndarray, octaves: bool = False) -> np.ndarray:
    """Whether each pitch is within half a semitone of its label: 0 or 1, [N], from two [N].

    octaves: Whether a difference of whole octaves is correct too. NaN, no pitch, is wrong.
    """
    difference = pitches - labels
    if octaves:
        difference = difference - 12 * np.round(difference / 12)
    return (np.abs(difference) <= SEMITONE).astype(np.float64)  # NaN compares as false


def pitch_chance(pitches: np.ndarray, labels: np.ndarray, octaves: bool = False) -> np.ndarray:
    """The fraction of all other clips' labels for which each pitch would be correct: [N], N >= 2."""
    hits = np.stack([pitch_correct(pitches, np.roll(labels, shift), octaves) for shift in range(1, len(labels))])
    return hits.mean(0)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance of normal distributions fitted to two sets of embeddings, [N, D] and [M, D], N, M >= 2.

    |mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017; on audio: Kilgour et al. 2019). Biased upwards
    for few clips: compare only results with the same N. The trace is computed from (A^(1/2) B A^(1/2))^(1/2), which is
    symmetric, so that it is exact also for covariances without full rank.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    A, B = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(A)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ B @ root).clip(min=0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(A) + np.trace(B) - 2 * shared)


def vendi_score(embeddings: np.ndarray) -> float:
    """The effective number of different sounds in a set, 1..N: the Vendi score (Friedman & Dieng 2023).

    It is exp of the entropy of the eigenvalues of the cosine similarities / N. embeddings: [N, D].
    """
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(min=1e-12)
    values = np.linalg.eigvalsh(unit.astype(np.float64) @ unit.T / len(unit)).clip(min=0)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def falls_silent(wav: np.ndarray, reference: np.ndarray) -> bool:
    """Whether the last quarter of a sound [S] is silent, and that of a reference of the same length is not."""
    last = max(1, round(len(reference) * TAIL))
    return float(np.abs(wav[-last:]).max()) < QUIET <= float(np.abs(reference[-last:]).max())


def is_looping(codes: np.ndarray) -> bool:
    """Whether the last half of codes [K, T] repeats in all codebooks, with one period of 1..T / 8 frames."""
    half, longest = codes.shape[1] // 2, codes.shape[1] // 8
    return any(np.array_equal(codes[:, -half:], codes[:, -half - p : -p]) for p in range(1, longest + 1))


def flatten_metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of `evaluate.json` with flat names: loss/model, t0.7/pitch, ceiling/fidelity, ..."""
    flat = {f"loss/{name}": results["loss"][name]["nats"] for name in ("model", "unigram", "uniform")}
    flat["loss/bits_second"] = results["loss"]["model"]["bits_second"]
    columns = {"floor": results["floor"], "ceiling": results["ceiling"]}
    columns |= {f"t{temperature}": row for temperature, row in results["temperatures"].items()}
    for column, row in columns.items():
        flat |= {f"{column}/{name}": value["mean"] for name, value in row.items()}
    return flat
