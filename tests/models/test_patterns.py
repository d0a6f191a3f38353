"""A pattern places every code once, in an order a listener could follow, and gives it back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import InputError
from pipeline.models.patterns import NAMES, SPECIAL_TOKEN, Pattern

names = st.sampled_from(NAMES)
codebooks = st.integers(1, 8)
frames = st.integers(1, 40)


def slow_layout(name: str, K: int, T: int) -> list[list[tuple[int, int]]]:
    """The definition in words: for each step, the (codebook, frame) pairs it holds."""
    if name == "parallel":
        return [[(k, s) for k in range(K)] for s in range(T)]
    if name == "delay":
        return [[(k, s - k) for k in range(K) if 0 <= s - k < T] for s in range(T + K - 1)]
    if name == "flatten":
        return [[(s % K, s // K)] for s in range(K * T)]
    coarse = [[(0, s)] for s in range(T)]
    return coarse + ([[(k, s) for k in range(1, K)] for s in range(T)] if K > 1 else [])


def slow_apply(name: str, tokens: torch.Tensor, T: int, S: int) -> torch.Tensor:
    """tokens [K, T'] of which the first T frames are real -> [K, S]."""
    laid = torch.full((len(tokens), S), SPECIAL_TOKEN)
    for s, cells in enumerate(slow_layout(name, len(tokens), T)):
        for k, t in cells:
            laid[k, s] = tokens[k, t]
    return laid


@given(names, codebooks, frames)
def test_layout_is_the_definition(name: str, K: int, T: int) -> None:
    pattern = Pattern(name, K)
    layout = slow_layout(name, K, T)
    assert pattern.num_steps(T) == len(layout)
    held = pattern.frame_at_step(T)
    for s, cells in enumerate(layout):
        assert {(k, int(held[k, s])) for k in range(K) if held[k, s] >= 0} == set(cells)


@given(names, codebooks, st.lists(frames, min_size=1, max_size=4))
def test_each_clip_of_a_batch_is_laid_out_at_its_own_length(name: str, K: int, lengths: list[int]) -> None:
    T = max(lengths)
    tokens = torch.randint(1, 1025, (len(lengths), K, T))
    for b, n in enumerate(lengths):
        tokens[b, :, n:] = SPECIAL_TOKEN
    laid = Pattern(name, K).build_sequence(tokens, torch.tensor(lengths))
    for b, n in enumerate(lengths):
        assert torch.equal(laid[b], slow_apply(name, tokens[b], n, laid.shape[2]))


@given(names, codebooks, st.lists(frames, min_size=1, max_size=4))
def test_what_predicts_a_code_is_picked_from_its_step(name: str, K: int, lengths: list[int]) -> None:
    pattern, T = Pattern(name, K), max(lengths)
    hidden = torch.randn(len(lengths), pattern.num_steps(T), 3)
    picked = pattern.gather_positions(hidden, T, torch.tensor(lengths))
    steps = pattern.steps(T, torch.tensor(lengths))
    for b, n in enumerate(lengths):
        for k in range(K):
            assert torch.equal(picked[k, b, :n], hidden[b, steps[b, k, :n]])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("K", [1, 2, 8])
@pytest.mark.parametrize("T", [1, 2, 300])
def test_revert_inverts_apply(name: str, K: int, T: int) -> None:
    pattern, tokens = Pattern(name, K), torch.randint(1, 1025, (2, K, T))
    laid = pattern.build_sequence(tokens)
    assert torch.equal(pattern.revert_sequence(laid, T), tokens)
    assert int((laid != SPECIAL_TOKEN).sum()) == tokens.numel()


def test_lengths_of_the_article() -> None:
    """300 frames of 8 codebooks: delay adds K - 1 steps, flatten has K times as many, Vall-E twice."""
    lengths = {name: Pattern(name, 8).num_steps(300) for name in NAMES}
    assert lengths == {"parallel": 300, "delay": 307, "flatten": 2400, "valle": 600}


@given(names, codebooks, frames)
def test_coarse_codes_come_no_later_than_the_fine_ones_of_their_frame(name: str, K: int, T: int) -> None:
    steps = Pattern(name, K).steps(T)
    assert bool((steps.diff(dim=0) >= 0).all()) and bool((steps.diff(dim=1) > 0).all())


def test_an_unknown_pattern_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="delya.*one of parallel, delay, flatten, valle"):
        Pattern("delya", 8)
