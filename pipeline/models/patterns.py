"""Codebook patterns: how K streams of codes become one sequence.

A pattern is one formula: the step at which code k of frame t is predicted. All else is derived from it. For K = 3
codebooks and T = 4 frames (a cell shows its frame, `.` is an empty cell, steps run to the right):

    parallel       delay            flatten                      vall-e
    0: 0 1 2 3     0: 0 1 2 3 . .   0: 0 . . 1 . . 2 . . 3 . .   0: 0 1 2 3 . . . .
    1: 0 1 2 3     1: . 0 1 2 3 .   1: . 0 . . 1 . . 2 . . 3 .   1: . . . . 0 1 2 3
    2: 0 1 2 3     2: . . 0 1 2 3   2: . . 0 . . 1 . . 2 . . 3   2: . . . . 0 1 2 3

Sources: Copet et al. 2023 (MusicGen, arXiv:2306.05284), Wang et al. 2023 (Vall-E, arXiv:2301.02111).

Letters: B clips, K codebooks, T frames, S steps, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.common.errors import InputError

SPECIAL_TOKEN = 0  # the token of an empty cell; code c has token c + 1

# name -> step(k [K, 1], t [1, T], length, K); length, the number of frames of the clip, is an int or [B, 1, 1]
_STEPS: dict[str, Callable[[Tensor, Tensor, int | Tensor, int], Tensor]] = {
    "parallel": lambda k, t, length, K: t + 0 * k,
    "delay": lambda k, t, length, K: t + k,
    "flatten": lambda k, t, length, K: t * K + k,
    "valle": lambda k, t, length, K: torch.where(k == 0, t, length + t),
}
NAMES = tuple(_STEPS)


@dataclass(frozen=True)
class Pattern:
    """One of the patterns above for K codebooks."""

    name: str
    codebooks: int
    # first step and stride of each codebook: plain integers, which torch.compile treats as constants
    _slices: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.name not in _STEPS:
            raise InputError(f"pattern={self.name}: expected one of {', '.join(NAMES)}")
        if self.codebooks < 1:
            raise InputError(f"a pattern needs at least 1 codebook, not {self.codebooks}")
        first, second = self.steps(2).unbind(1)  # [K], [K]
        object.__setattr__(self, "_slices", tuple(zip(first.tolist(), (second - first).tolist(), strict=True)))

    def steps(self, frames: int, lengths: Tensor | None = None, device: torch.device | str | None = None) -> Tensor:
        """The step of every code. No two frames of one codebook share a step, not even padded frames.

        Args:
            frames: T.
            lengths: real frames of each clip [B]; None: T.
            device: where to put the result, if there are no lengths.

        Returns:
            int64 [K, T], or [B, K, T] with lengths.
        """
        device = lengths.device if lengths is not None else device
        k = torch.arange(self.codebooks, device=device)[:, None]  # [K, 1]
        t = torch.arange(frames, device=device)[None]  # [1, T]
        length = frames if lengths is None else lengths[:, None, None]  # [B, 1, 1]
        steps = _STEPS[self.name](k, t, length, self.codebooks)
        return steps if lengths is None else steps.expand(len(lengths), -1, -1)

    def num_steps(self, frames: int) -> int:
        """S for T frames."""
        return int(self.steps(frames).max()) + 1 if frames else 0

    def build_sequence(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Tokens [B, K, T] -> the sequence [B, K, S], with the special token in empty cells.

        Args:
            tokens: 0..1024, with the special token in padded frames.
            lengths: real frames of each clip [B]; the padding of a clip comes last in its sequence.
        """
        steps = self.steps(tokens.shape[2], lengths, tokens.device).expand_as(tokens)
        sequence = tokens.new_full((*tokens.shape[:2], self.num_steps(tokens.shape[2])), SPECIAL_TOKEN)
        return sequence.scatter_(2, steps, tokens)

    def revert_sequence(self, sequence: Tensor, frames: int, lengths: Tensor | None = None) -> Tensor:
        """The inverse of `build_sequence`: [B, K, S] -> tokens [B, K, T]; the content of padded frames is arbitrary."""
        num_steps = sequence.shape[2]
        assert num_steps == self.num_steps(frames), f"{frames} frames do not have {num_steps} steps"
        return sequence.gather(2, self.steps(frames, lengths, sequence.device).expand(len(sequence), -1, -1))

    def gather_positions(self, hidden: Tensor, frames: int, lengths: Tensor) -> Tensor:
        """The hidden state at the step of every code: [B, S, D] -> [K, B, T, D].

        Only these rows predict a code: under flatten, the logits of all steps would be K times as many. The steps of a
        codebook are evenly spaced, so they are slices, whose gradients are slices too (those of a gather are atomic
        additions).
        """
        if self.name == "valle" and self.codebooks > 1:  # fine codes start where the coarse codes of the clip end
            rows = lengths[:, None] + torch.arange(frames, device=hidden.device)  # [B, T]
            rows = rows + torch.arange(len(hidden), device=hidden.device)[:, None] * hidden.shape[1]
            fine = hidden.flatten(0, 1).index_select(0, rows.flatten()).view(len(hidden), frames, -1)  # [B, T, D]
            return torch.stack([hidden[:, :frames], *[fine] * (self.codebooks - 1)])
        return torch.stack([hidden[:, first::stride][:, :frames] for first, stride in self._slices])

    def frame_at_step(self, frames: int, lengths: Tensor | None = None) -> Tensor:
        """The frame in each cell, -1 in empty cells: int64 [K, S], or [B, K, S] with lengths [B]."""
        steps = self.steps(frames, lengths)
        frame = steps.new_full((*steps.shape[:-1], self.num_steps(frames)), -1)
        frame = frame.scatter_(-1, steps, torch.arange(frames, device=steps.device).expand_as(steps))
        return frame if lengths is None else frame.masked_fill(frame >= lengths[:, None, None], -1)
