"""`StagedDecoder`: decodes chunk by chunk, in stages that keep what their next output depends on.

    Overlap      a function with a limited context, on pieces that overlap
    Recurrent    a function that keeps its own state

Letters: B clips, C channels, t steps at the rate of a stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.audio.codecs.base import Codec


class Stage(Protocol):
    """A part of a decoder that receives its input in chunks."""

    def push(self, x: Tensor | None, is_last: bool) -> Tensor | None:
        """Return the output steps that are now complete.

        Args:
            x: The next steps [B, C, t]; None: no steps.
            is_last: Whether the input ends after them.
        """


class Overlap:
    """Applies a function to overlapping pieces, and drops the outputs whose context is not in the piece."""

    def __init__(
        self, function: Callable[[Tensor], Tensor], ratio: int, before: int | None, after: int | None = None
    ) -> None:
        """Create the stage.

        Args:
            function: Maps [B, C, t] to [B, C', ratio t].
            ratio: The output steps of an input step.
            before: The steps before a step that its outputs depend on; None: all of them, so that the function is
                applied at the end.
            after: The steps after a step that its outputs depend on; None: as many as before it.
        """
        self._function, self._ratio, self._before = function, ratio, before
        self._after = before if after is None else after
        self._input: Tensor | None = None  # the context before the next step, and the steps from it on
        self._next = 0  # the step in _input whose outputs are next

    def push(self, x: Tensor | None, is_last: bool) -> Tensor | None:
        """See `Stage.push`."""
        import torch

        if x is not None:
            self._input = x if self._input is None else torch.cat([self._input, x], dim=-1)
        if self._input is None:
            return None
        steps = self._input.shape[-1]
        end = steps if is_last else 0 if self._before is None or self._after is None else steps - self._after
        if end <= self._next:
            return None
        y = self._function(self._input)[..., self._next * self._ratio : end * self._ratio]
        first = max(0, end - (self._before or 0))
        self._input, self._next = self._input[..., first:], end - first
        return y


class Recurrent:
    """Applies a function that keeps its own state from chunk to chunk."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        """Create the stage. function: maps [B, C, t] to [B, C', t], with the state after the chunks before."""
        self._function = function

    def push(self, x: Tensor | None, is_last: bool) -> Tensor | None:
        """See `Stage.push`."""
        return None if x is None else self._function(x)


class StagedDecoder:
    """A `StreamingDecoder` of stages, the first of which receives codes [B, k, t]."""

    def __init__(self, codec: Codec, stages: Sequence[Stage]) -> None:
        self._codec, self._stages = codec, stages
        self._batch = 1

    def push(self, chunk: Tensor) -> Tensor:
        """Decode codes [B, k, t] and return the samples [B, channels, s] that are now complete."""
        self._batch = len(chunk)
        return self._run(self._codec.validate_codes(chunk), is_last=False)

    def flush(self) -> Tensor:
        """Return the samples [B, channels, s] that remain after the last push."""
        return self._run(None, is_last=True)

    def _run(self, x: Tensor | None, is_last: bool) -> Tensor:
        import torch

        from pipeline.audio.precision import full_precision

        with torch.inference_mode(), full_precision(self._codec.device):
            for stage in self._stages:
                x = stage.push(x, is_last)
        return torch.zeros(self._batch, self._codec.channels, 0, device=self._codec.device) if x is None else x


def count_context(strides: Sequence[int], first: int, block: int, last: int) -> int:
    """The frames on a side of a frame that the samples of a convolutional decoder depend on.

    Args:
        strides: Of the transposed convolutions, each of which reaches one step.
        first: The steps that the layers before the first of them reach, in frames.
        block: The steps that the layers after each of them reach, at its output's rate.
        last: The samples that the last layers reach.
    """
    steps_per_frame, frames = 1, float(first)
    for stride in strides:
        frames += 1 / steps_per_frame
        steps_per_frame *= stride
        frames += block / steps_per_frame
    return math.ceil(frames + last / steps_per_frame)
