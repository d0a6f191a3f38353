"""A step captured once and played again: on a GPU, two hundred kernels for the price of one launch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class CudaGraphStep:
    """Calls a function of a number in a tensor [1], whose work lies in the same places whatever the number.

    On a GPU the first call captures it; later ones play it back, all on the caller's stream. The function may wait for
    nothing and ask the GPU nothing. On a CPU it is just called.
    """

    def __init__(self, function: Callable[[Tensor], None], device: torch.device) -> None:
        self._function, self._at = function, torch.zeros(1, dtype=torch.int64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, at: int) -> None:
        self._at.fill_(at)
        if not self._at.is_cuda:
            self._function(self._at)
        elif self._graph is None:
            self._capture()
        else:
            self._graph.replay()

    def _capture(self) -> None:
        """Do the work once in a stream of its own, where libraries set themselves up; then record it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._function(self._at)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):  # records, and does nothing yet
            self._function(self._at)
