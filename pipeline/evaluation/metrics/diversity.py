"""Diversity: how many different sounds a set has."""

from __future__ import annotations

import numpy as np

from pipeline.evaluation.metrics import METRICS, AudioSet, Metric, References


@METRICS.register("different")
class Diversity(Metric):
    """The Vendi score of the embeddings of the sounds."""

    title = "different"
    higher_is_better = True
    order = 50

    def measure(self, sounds: AudioSet, references: References) -> float | None:
        """One value for the set, if it has two sounds or more."""
        return vendi_score(sounds.embeddings) if len(sounds.wavs) > 1 else None


def vendi_score(embeddings: np.ndarray) -> float:
    """The effective number of different sounds in a set, 1..N: the Vendi score (Friedman & Dieng 2023).

    It is exp of the entropy of the eigenvalues of the cosine similarities / N. embeddings: [N, P].
    """
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(min=1e-12)
    values = np.linalg.eigvalsh(unit.astype(np.float64) @ unit.T / len(unit)).clip(min=0)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))
