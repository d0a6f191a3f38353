"""Prompt fidelity: how similar a sound is to its prompt."""

from __future__ import annotations

import numpy as np

from pipeline.audio.metrics import cosine, mismatched_similarity
from pipeline.evaluation.metrics import METRICS, AudioSet, Metric, References


@METRICS.register("fidelity")
class PromptFidelity(Metric):
    """The cosine similarity of each prompt and the embedding of its sound. Floor: reconstructions of other clips."""

    title = "prompt fidelity"
    higher_is_better = True
    order = 10

    def measure(self, sounds: AudioSet, references: References) -> np.ndarray:
        """One value per clip."""
        return cosine(references.prompts, sounds.embeddings)

    def measure_floor(self, sounds: AudioSet, references: References) -> np.ndarray:
        """The mean similarity of each prompt and the reconstructions of all other clips."""
        return mismatched_similarity(references.prompts, references.reconstructions.embeddings)
