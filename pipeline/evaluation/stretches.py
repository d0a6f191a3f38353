"""Measures of each stretch of a long sound: how long a sound keeps what it begins with.

Letters: N sounds, M stretches, K codebooks, T frames, S samples, P prompt width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.audio.metrics import cosine
from pipeline.evaluation.audio_set import track_pitches
from pipeline.evaluation.metrics.loops import is_looping
from pipeline.evaluation.metrics.pitch import is_pitch_correct
from pipeline.evaluation.metrics.silence import QUIET
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.prompts import embed_audio


@dataclass(frozen=True)
class Clip:
    """The clip that supplies the prompt of a long sound.

    Attributes:
        prompt: [P].
        pitch: Its label, or NaN.
        level: The level of the codec's reconstruction, in dBFS.
    """

    prompt: np.ndarray
    pitch: float
    level: float


def stretch_edges(length: float, stretch: float) -> list[float]:
    """The seconds at which stretches begin and end; the last is the length, and its stretch may be shorter."""
    edges = [float(edge) for edge in np.arange(0, length, stretch)]
    is_short = len(edges) > 1 and length - edges[-1] < stretch / 2  # too short to compare: part of the one before it
    return [*(edges[:-1] if is_short else edges), length]


def measure_stretches(
    wav: np.ndarray, codes: np.ndarray, clip: Clip, edges: Sequence[float], run: LoadedRun
) -> dict[str, np.ndarray]:
    """The measures [M] of each stretch of a sound. What is missing after the end of a sound is silence.

    Args:
        wav: [S] or [S, 2].
        codes: [K, T], up to the end of the sound.
        clip: The clip that supplied its prompt.
        edges: See `stretch_edges`.
        run: The model.

    Returns:
        By name. Fractions are 0 or 1. ended: whether the sound ended before the end of the stretch.
    """
    rate, frame_rate = run.codec.sample_rate, run.codec.frame_rate
    samples = [round(edge * rate) for edge in edges]
    padded = np.zeros((samples[-1], *wav.shape[1:]), np.float32)
    padded[: len(wav)] = wav[: samples[-1]]
    parts = [padded[start:end] for start, end in itertools.pairwise(samples)]
    frames = [round(edge * frame_rate) for edge in edges]
    level = np.array([level_of(part) for part in parts]) - clip.level
    measures = {
        "prompt fidelity": cosine(clip.prompt, embed_audio(run.embedder, parts, rate).numpy()),
        "silent": np.array([np.abs(part).max() < QUIET for part in parts], float),
        "loops": np.array([is_looping(codes[:, start:end]) for start, end in itertools.pairwise(frames)], float),
        "level": level,
        "change": level - level[0],
        "ended": np.array([codes.shape[1] < end for end in frames[1:]], float),
    }
    if not np.isnan(clip.pitch):
        measures["pitch"] = is_pitch_correct(track_pitches(parts, rate), np.full(len(parts), clip.pitch)).astype(float)
    return measures


def level_of(wav: np.ndarray) -> float:
    """The level of a sound, [S] or [S, 2], as dB of its RMS against full scale; at least that of a quiet sound."""
    rms = float(np.sqrt(np.square(wav, dtype=np.float64).mean())) if wav.size else 0.0
    return float(20 * np.log10(max(rms, QUIET)))
