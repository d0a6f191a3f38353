"""Metrics against known cases and against the results of a published tool."""

import numpy as np
import pytest

from pipeline.audio.metrics import mismatched_similarity
from pipeline.evaluation.audio_set import AudioSet
from pipeline.evaluation.metrics.base import summarize
from pipeline.evaluation.metrics.coverage import NEIGHBOURS, neighbourhoods
from pipeline.evaluation.metrics.diversity import vendi_score
from pipeline.evaluation.metrics.frechet_distance import FittedNormal
from pipeline.evaluation.metrics.kernel_distance import FittedKernel
from pipeline.evaluation.metrics.loops import is_looping
from pipeline.evaluation.metrics.pitch import chance_of_pitch, is_pitch_correct
from pipeline.evaluation.metrics.silence import falls_silent


def frechet_distance(sounds: np.ndarray, reference: np.ndarray) -> float:
    return FittedNormal.fit(reference).distance(sounds)


def frechet_distance_limit(sounds: np.ndarray, reference: np.ndarray) -> float:
    return FittedNormal.fit(reference).distance_limit(sounds)


def kernel_distance(sounds: np.ndarray, reference: np.ndarray) -> float:
    return FittedKernel.fit(reference).distance(sounds)


@pytest.mark.parametrize(
    ("n", "m", "D", "scale", "published"),
    [
        (40, 64, 12, 1.0, 87.7716168212615),
        (500, 300, 64, 5.0, 81951.66923521948),
        (64, 191, 192, 1.3, 60253.72957806423),
    ],
)
def test_frechet_matches_the_frechet_audio_distance_package(
    n: int, m: int, D: int, scale: float, published: float
) -> None:
    """Version 0.3.4 on the same embeddings; those of the last case do not have full rank."""
    r = np.random.default_rng(D)
    a, b = r.normal(size=(n, D)) @ r.normal(size=(D, D)) * scale, r.normal(size=(m, D)) * scale + 0.3
    assert frechet_distance(a, b) == pytest.approx(published, rel=1e-6)


def test_frechet_of_shifted_set_is_shift_squared() -> None:
    a = np.random.default_rng(0).normal(size=(50, 8))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 2) == pytest.approx(8 * 4)


@pytest.mark.parametrize(
    ("n", "m", "D", "distance", "limit", "kernel"),
    [
        (40, 63, 12, 6.451911079428438, 5.7563289506824775, 3.966214482386876),
        (500, 301, 64, 30.108212233170235, 28.604771523832422, 2.8594170547892928),
        (64, 191, 192, 213.42707520708063, 189.04130165884, 2.513313071260481),
    ],
)
def test_distances_match_published_tools(n: int, m: int, D: int, distance: float, limit: float, kernel: float) -> None:
    """Of fadtk 1.1.0 (the limit: its distances of the same subsets, and numpy.polyfit) and kadtk 1.1.0."""
    r = np.random.default_rng(D)
    a, b = r.normal(size=(n, D)) @ r.normal(size=(D, D)) / D**0.5, r.normal(size=(m, D)) + 0.3
    assert frechet_distance(a, b) == pytest.approx(distance, rel=1e-4)
    assert frechet_distance_limit(a, b) == pytest.approx(limit, rel=1e-4)
    assert kernel_distance(a, b) == pytest.approx(kernel, rel=1e-4)


@pytest.mark.parametrize(
    ("n", "m", "D", "coverage", "density"),
    [(40, 63, 12, 0.8253968253968254, 0.905), (300, 300, 16, 0.8733333333333333, 1.3166666666666667),
     (64, 64, 192, 0.8125, 0.4875)],
)  # fmt: skip
def test_coverage_and_density_match_prdc(n: int, m: int, D: int, coverage: float, density: float) -> None:
    """Version 0.2 of the package of the paper's authors, with nearest_k=5, on the same embeddings."""
    r = np.random.default_rng(D)
    a, b = r.normal(size=(n, D)) @ r.normal(size=(D, D)) / D**0.5, r.normal(size=(m, D)) + 0.3
    is_like = neighbourhoods(a, b)
    assert is_like.any(1).mean() == pytest.approx(coverage)
    assert is_like.sum(0).mean() / NEIGHBOURS == pytest.approx(density)


def test_coverage_is_low_if_sounds_are_alike() -> None:
    """Copies of the clips cover all; copies of one clip cover its neighbours alone, at the same density."""
    clips = np.random.default_rng(0).normal(size=(50, 4))
    assert neighbourhoods(clips, clips).any(1).all()
    assert neighbourhoods(clips[:1].repeat(50, 0), clips).any(1).mean() < 0.5


def test_limit_and_kernel_distance_depend_less_on_n() -> None:
    """Of two normal distributions with a known Fréchet distance, the shift squared, for 30 sets of 64 sounds."""
    rng, deviations, shift = np.random.default_rng(0), 1 / np.arange(1, 49), 0.05
    reference = rng.normal(size=(3000, 48)) * deviations
    sounds = rng.normal(size=(30, 64, 48)) * deviations + shift
    normal, kernel = FittedNormal.fit(reference), FittedKernel.fit(reference)
    bias = np.mean([normal.distance(part) for part in sounds]) - 48 * shift**2
    bias_of_limit = np.mean([normal.distance_limit(part) for part in sounds]) - 48 * shift**2
    assert abs(bias_of_limit) < 0.3 * bias
    of_all = kernel.distance(sounds.reshape(-1, 48))
    assert np.mean([kernel.distance(part) for part in sounds]) == pytest.approx(of_all, rel=0.1)


def test_kernel_distance_of_one_distribution_is_about_zero() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(500, 8))
    kernel = FittedKernel.fit(reference)
    values = [kernel.distance(rng.normal(size=(20, 8))) for _ in range(200)]
    assert min(values) < 0 < max(values) and abs(np.mean(values)) < 0.1 * np.std(values) + 0.02


def test_interval_covers_true_mean_in_95_percent() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        value = summarize(np.append(rng.normal(size=50), np.nan), 500, trial)
        assert value.interval is not None and value.n == 50
        low, high = value.interval
        assert low <= value.mean <= high
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_pitch_is_correct_within_half_a_semitone() -> None:
    labels = np.array([60.0, 60, 60, 60, 60])
    pitches = np.array([60.4, 59.6, 60.6, 72.2, np.nan])
    assert is_pitch_correct(pitches, labels).tolist() == [1, 1, 0, 0, 0]
    assert is_pitch_correct(pitches, labels, ignore_octaves=True).tolist() == [1, 1, 0, 1, 0]


def test_pitch_chance_uses_labels_of_other_clips() -> None:
    pitches, labels = np.array([60.0, 60, 64]), np.array([60.0, 62, 60])
    assert chance_of_pitch(pitches, labels).tolist() == [0.5, 1.0, 0.0]


def test_mismatched_similarity_uses_other_clips() -> None:
    prompts = np.eye(3)
    assert mismatched_similarity(prompts, prompts).tolist() == [0, 0, 0]
    assert mismatched_similarity(prompts, np.ones((3, 3))) == pytest.approx(1 / 3**0.5)


def test_vendi_score_counts_different_sounds() -> None:
    assert vendi_score(np.eye(7)) == pytest.approx(7)
    assert vendi_score(np.ones((7, 4))) == pytest.approx(1)
    assert vendi_score(np.repeat(np.eye(3), 5, axis=0)) == pytest.approx(3)


def test_silent_end_counts_if_reference_has_sound() -> None:
    tone = np.sin(np.arange(8000) / 9)
    faded = np.where(np.arange(8000) < 5900, tone, 0)
    assert falls_silent(faded, tone)
    assert not falls_silent(faded, faded) and not falls_silent(tone, tone)


def test_loop_needs_one_period_in_all_codebooks() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1024, (4, 80))
    assert not is_looping(codes)
    looped = np.concatenate([codes[:, :30], np.tile(codes[:, :7], 8)], 1)[:, :80]
    assert is_looping(looped)
    broken = looped.copy()
    broken[3, 60] += 1
    assert not is_looping(broken)
    assert is_looping(np.repeat(codes[:, :1], 80, 1))


def test_pitches_of_tones_are_tracked() -> None:
    time = np.arange(24_000) / 24_000
    notes = np.array([57.0, 69, 76.5])
    tones = [np.sin(2 * np.pi * 440 * 2 ** ((note - 69) / 12) * time).astype(np.float32) * 0.3 for note in notes]
    sounds = AudioSet("tones", [], [*tones, np.zeros(24_000, np.float32)], np.zeros((4, 1)), 24_000)
    pitches = sounds.pitches
    assert pitches[:3] == pytest.approx(notes, abs=0.2) and np.isnan(pitches[3])
