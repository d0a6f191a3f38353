"""A pattern contains every code once, in a valid order, and can be reverted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import InputError
from pipeline.models.pattern import SPECIAL_TOKEN, build_pattern
from pipeline.models.patterns import PATTERNS
from tests.helpers.models import pattern_of

names = st.sampled_from(PATTERNS.names())
codebooks = st.integers(1, 8)
frames = st.integers(1, 40)


def reference_cells(name: str, K: int, T: int) -> list[list[tuple[int, int]]]:
    """The definition of a pattern: the (codebook, frame) pairs of each step."""
    if name in ("parallel", "depth"):
        return [[(k, s) for k in range(K)] for s in range(T)]
    if name == "delay":
        return [[(k, s - k) for k in range(K) if 0 <= s - k < T] for s in range(T + K - 1)]
    if name == "flatten":
        return [[(s % K, s // K)] for s in range(K * T)]
    coarse = [[(0, s)] for s in range(T)]
    return coarse + ([[(k, s) for k in range(1, K)] for s in range(T)] if K > 1 else [])


def reference_sequence(name: str, tokens: torch.Tensor, T: int, S: int) -> torch.Tensor:
    """Tokens [K, T'], of which the first T frames are real -> [K, S]."""
    sequence = torch.full((len(tokens), S), SPECIAL_TOKEN)
    for s, cells in enumerate(reference_cells(name, len(tokens), T)):
        for k, t in cells:
            sequence[k, s] = tokens[k, t]
    return sequence


@given(names, codebooks, frames)
def test_frame_at_step_matches_the_reference(name: str, K: int, T: int) -> None:
    pattern, reference = pattern_of(name, K), reference_cells(name, K, T)
    assert pattern.num_steps(T) == len(reference)
    frame = pattern.frame_at_step(T)
    for s, cells in enumerate(reference):
        assert {(k, int(frame[k, s])) for k in range(K) if frame[k, s] >= 0} == set(cells)


@given(names, codebooks, st.lists(frames, min_size=1, max_size=4))
def test_build_sequence_uses_the_length_of_each_clip(name: str, K: int, lengths: list[int]) -> None:
    T = max(lengths)
    tokens = torch.randint(1, 1025, (len(lengths), K, T))
    for b, n in enumerate(lengths):
        tokens[b, :, n:] = SPECIAL_TOKEN
    sequence = pattern_of(name, K).build_sequence(tokens, torch.tensor(lengths))
    for b, n in enumerate(lengths):
        assert torch.equal(sequence[b], reference_sequence(name, tokens[b], n, sequence.shape[2]))


@given(names, codebooks, st.lists(frames, min_size=1, max_size=4))
def test_gather_positions_selects_the_step_of_each_code(name: str, K: int, lengths: list[int]) -> None:
    pattern, T = pattern_of(name, K), max(lengths)
    hidden = torch.randn(len(lengths), pattern.num_steps(T), 3)
    rows = pattern.gather_positions(hidden, T, torch.tensor(lengths))
    steps = pattern.steps(T, torch.tensor(lengths))
    for b, n in enumerate(lengths):
        for k in range(K):
            assert torch.equal(rows[k, b, :n], hidden[b, steps[b, k, :n]])


@pytest.mark.parametrize("name", PATTERNS.names())
@pytest.mark.parametrize("K", [1, 2, 8])
@pytest.mark.parametrize("T", [1, 2, 300])
def test_revert_sequence_inverts_build_sequence(name: str, K: int, T: int) -> None:
    pattern, tokens = pattern_of(name, K), torch.randint(1, 1025, (2, K, T))
    sequence = pattern.build_sequence(tokens)
    assert torch.equal(pattern.revert_sequence(sequence, T), tokens)
    assert int((sequence != SPECIAL_TOKEN).sum()) == tokens.numel()


def test_num_steps_of_300_frames() -> None:
    """With 8 codebooks: delay adds K - 1 steps, flatten has K times as many, Vall-E doubles the number."""
    num_steps = {name: pattern_of(name, 8).num_steps(300) for name in PATTERNS.names()}
    assert num_steps == {"parallel": 300, "depth": 300, "delay": 307, "flatten": 2400, "valle": 600}


@given(names, codebooks, frames)
def test_coarse_codes_come_before_fine_codes(name: str, K: int, T: int) -> None:
    """Within a frame, no codebook comes before a coarser one; within a codebook, frames are in order."""
    steps = pattern_of(name, K).steps(T)
    assert bool((steps.diff(dim=0) >= 0).all()) and bool((steps.diff(dim=1) > 0).all())


def test_unknown_pattern_is_refused() -> None:
    with pytest.raises(InputError, match="pattern=delya: there is no such pattern; did you mean 'delay'"):
        build_pattern("delya", 8)
