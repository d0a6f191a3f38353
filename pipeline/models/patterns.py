"""Codebook patterns: how K streams of codes are laid out as one sequence.

A pattern is one formula, the step at which code k of frame t stands; everything else derives from it. With K = 3
codebooks and T = 4 frames (a cell shows the frame it holds, `.` is *empty*; steps run to the right):

    parallel       delay            flatten                      vall-e
    0: 0 1 2 3     0: 0 1 2 3 . .   0: 0 . . 1 . . 2 . . 3 . .   0: 0 1 2 3 . . . .
    1: 0 1 2 3     1: . 0 1 2 3 .   1: . 0 . . 1 . . 2 . . 3 .   1: . . . . 0 1 2 3
    2: 0 1 2 3     2: . . 0 1 2 3   2: . . 0 . . 1 . . 2 . . 3   2: . . . . 0 1 2 3

Sources: Copet et al. 2023 (MusicGen, arXiv:2306.05284), Wang et al. 2023 (Vall-E, arXiv:2301.02111).

Letters: B clips, K codebooks, T frames, S steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.common.errors import InputError

SPECIAL_TOKEN = 0  # the token of a cell that holds no code; code c is token c + 1

# name -> step(k [K, 1], t [1, T], n, K): n, the clip's own number of frames, is an int or [B, 1, 1]
_STEPS: dict[str, Callable[[Tensor, Tensor, int | Tensor, int], Tensor]] = {
    "parallel": lambda k, t, n, K: t + 0 * k,
    "delay": lambda k, t, n, K: t + k,
    "flatten": lambda k, t, n, K: t * K + k,
    "valle": lambda k, t, n, K: torch.where(k == 0, t, n + t),
}
NAMES = tuple(_STEPS)


@dataclass(frozen=True)
class Pattern:
    """One of the layouts above for K codebooks."""

    name: str
    codebooks: int
    _slices: tuple[tuple[int, int], ...] = field(
        init=False, repr=False, compare=False
    )  # numbers: a compiler reads them

    def __post_init__(self) -> None:
        if self.name not in _STEPS:
            raise InputError(f"there is no pattern '{self.name}': pattern is one of {', '.join(NAMES)}")
        if self.codebooks < 1:
            raise InputError(f"a pattern needs at least 1 codebook, not {self.codebooks}")
        first, second = self.steps(2).unbind(
            1
        )  # of two frames: where a codebook starts, and how far apart its steps are
        object.__setattr__(self, "_slices", tuple(zip(first.tolist(), (second - first).tolist(), strict=True)))

    def steps(self, frames: int, lengths: Tensor | None = None, device: torch.device | str | None = None) -> Tensor:
        """The step of every code: int64 [K, T], or [B, K, T] where the clips of a batch have lengths [B] of their own.

        No two frames of one codebook share a step, padded frames (t >= lengths[b]) included.
        """
        device = lengths.device if lengths is not None else device
        k = torch.arange(self.codebooks, device=device)[:, None]
        t = torch.arange(frames, device=device)[None]
        n = frames if lengths is None else lengths[:, None, None]
        steps = _STEPS[self.name](k, t, n, self.codebooks)
        return steps if lengths is None else steps.expand(len(lengths), -1, -1)

    def num_steps(self, frames: int) -> int:
        """How many steps T frames take."""
        return int(self.steps(frames).max()) + 1 if frames else 0

    def build_sequence(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Lay tokens [B, K, T] (0..1024, EMPTY where padded) out as [B, K, S], EMPTY wherever no code stands.

        With lengths [B], each clip is laid out at its own length, its padding last.
        """
        steps = self.steps(tokens.shape[2], lengths, tokens.device).expand_as(tokens)
        laid = tokens.new_full((*tokens.shape[:2], self.num_steps(tokens.shape[2])), SPECIAL_TOKEN)
        return laid.scatter_(2, steps, tokens)

    def revert_sequence(self, laid: Tensor, frames: int, lengths: Tensor | None = None) -> Tensor:
        """The inverse of `apply`: [B, K, S] -> tokens [B, K, T]; padded frames hold whatever stood there."""
        assert laid.shape[2] == self.num_steps(frames), f"{laid.shape[2]} steps are not those of {frames} frames"
        return laid.gather(2, self.steps(frames, lengths, laid.device).expand(len(laid), -1, -1))

    def gather_positions(self, hidden: Tensor, frames: int, lengths: Tensor) -> Tensor:
        """What stands at the step of every code: [B, S, D] -> [K, B, T, D], clips laid out at their own lengths [B].

        Only these rows predict a code: under flatten, all logits of all steps would be K times as many. A codebook's
        steps are evenly spaced, so they are slices, whose gradients are slices too (a gather's would be atomic adds).
        """
        if self.name == "valle" and self.codebooks > 1:  # its fine codes start where the clip's own coarse ones end
            at = lengths[:, None] + torch.arange(frames, device=hidden.device)
            at = at + torch.arange(len(hidden), device=hidden.device)[:, None] * hidden.shape[1]
            fine = hidden.flatten(0, 1).index_select(0, at.flatten()).view(len(hidden), frames, -1)
            return torch.stack([hidden[:, :frames], *[fine] * (self.codebooks - 1)])
        return torch.stack([hidden[:, s::d][:, :frames] for s, d in self._slices])

    def frame_at_step(self, frames: int, lengths: Tensor | None = None) -> Tensor:
        """Which frame stands at each step: int64 [K, S] (or [B, K, S] with lengths [B]), -1 where the cell is empty."""
        steps = self.steps(frames, lengths)
        held = steps.new_full((*steps.shape[:-1], self.num_steps(frames)), -1)
        held = held.scatter_(-1, steps, torch.arange(frames, device=steps.device).expand_as(steps))
        return held if lengths is None else held.masked_fill(held >= lengths[:, None, None], -1)
