"""Sequences of tokens under a codebook pattern, all derived from the steps of each codebook.

The drawings in `pipeline.models.patterns` are for K = 3 codebooks and T = 4 frames: a cell shows its frame, `.` is an
empty cell, steps run to the right.

Letters: B clips, K codebooks, T frames, S steps, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.common.errors import InputError
from pipeline.common.settings import parse_settings
from pipeline.models.patterns import PATTERNS
from pipeline.models.patterns.base import CodebookSteps, PatternSettings

SPECIAL_TOKEN = 0  # the token of an empty cell; code c has token c + 1


@dataclass(frozen=True)
class Pattern:
    """A pattern for K codebooks.

    Attributes:
        settings: The pattern.
        codebooks: K.
    """

    settings: PatternSettings
    codebooks: int
    # plain integers, which torch.compile treats as constants
    _distinct: tuple[CodebookSteps, ...] = field(init=False, repr=False, compare=False)
    _of_codebook: tuple[int, ...] = field(init=False, repr=False, compare=False)  # the index of its steps in _distinct

    def __post_init__(self) -> None:
        if self.codebooks < 1:
            raise InputError(f"a pattern needs at least 1 codebook, not {self.codebooks}")
        steps = [self.settings.codebook_steps(k, self.codebooks) for k in range(self.codebooks)]
        assert all(s.first >= 0 and s.stride >= 1 and s.passes >= 0 for s in steps), f"{self.name}: {steps}"
        object.__setattr__(self, "_distinct", tuple(dict.fromkeys(steps)))
        object.__setattr__(self, "_of_codebook", tuple(self._distinct.index(s) for s in steps))

    @property
    def name(self) -> str:
        """The name of the pattern."""
        return self.settings.name

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
        t = torch.arange(frames, device=device)  # [T]
        length = frames if lengths is None else lengths[:, None]  # [B, 1]
        steps = [first + passes * length + stride * t for first, stride, passes in self._distinct]  # each [T] or [B, T]
        return torch.stack([steps[i] for i in self._of_codebook], dim=-2)

    def num_steps(self, frames: int) -> int:
        """S for T frames."""
        return 1 + max(s.first + s.stride * (frames - 1) + s.passes * frames for s in self._distinct) if frames else 0

    def steps_before_slide(self, frames: int) -> int:
        """The number of steps of a full window of this many frames that are generated before the window slides."""
        return self.settings.steps_before_slide(frames, self.num_steps(frames))

    def build_sequence(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Tokens [B, K, T] -> the sequence [B, K, S], with the special token in empty cells.

        Args:
            tokens: codes + 1, with the special token in padded frames.
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

        Only these rows predict a code: under flatten, the logits of all steps would be K times as many. Where the steps
        do not depend on the length, they are slices, whose gradients are slices too (those of a gather are atomic
        additions). Codebooks after a pass share one gather.
        """
        gathered = [self._gather(hidden, frames, lengths, steps) if steps.passes else None for steps in self._distinct]
        rows = []
        for i in self._of_codebook:
            first, stride, _ = self._distinct[i]
            shared = gathered[i]
            rows.append(hidden[:, first::stride][:, :frames] if shared is None else shared)  # [B, T, D]
        return torch.stack(rows)

    @staticmethod
    def _gather(hidden: Tensor, frames: int, lengths: Tensor, steps: CodebookSteps) -> Tensor:
        """The hidden states [B, T, D] at these steps."""
        B, S, _ = hidden.shape
        index = steps.first + steps.stride * torch.arange(frames, device=hidden.device)  # [T]
        index = index + steps.passes * lengths[:, None] + S * torch.arange(B, device=hidden.device)[:, None]  # [B, T]
        return hidden.flatten(0, 1).index_select(0, index.flatten()).view(B, frames, -1)

    def frame_at_step(self, frames: int, lengths: Tensor | None = None) -> Tensor:
        """The frame in each cell, -1 in empty cells: int64 [K, S], or [B, K, S] with lengths [B]."""
        steps = self.steps(frames, lengths)
        frame = steps.new_full((*steps.shape[:-1], self.num_steps(frames)), -1)
        frame = frame.scatter_(-1, steps, torch.arange(frames, device=steps.device).expand_as(steps))
        return frame if lengths is None else frame.masked_fill(frame >= lengths[:, None, None], -1)


def build_pattern(name: str, codebooks: int, options: Mapping[str, object] | None = None) -> Pattern:
    """The pattern of a name, for this many codebooks.

    Args:
        name: the name.
        codebooks: K.
        options: its other settings, if it has any.

    Raises:
        InputError: there is no such pattern, or its settings are not valid.
    """
    return Pattern(pattern_settings(name, options), codebooks)


def pattern_settings(name: str, options: Mapping[str, object] | None = None) -> PatternSettings:
    """The settings of a pattern; see `build_pattern`."""
    return parse_settings(PATTERNS.get(name, "pattern"), {**(options or {}), "name": name}, "pattern.")
