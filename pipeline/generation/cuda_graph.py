"""A decoding step captured once as a CUDA graph and replayed: one launch instead of about 200 kernel launches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class CudaGraphStep:
    """Runs `function(position)`, captured once as a CUDA graph.

    The function gets the position as a tensor [1] and must use the same tensors at every position. It must not
    synchronize with the GPU. On a GPU the first call captures it, and later calls replay it on the caller's stream. On
    a CPU every call runs the function itself.
    """

    def __init__(self, function: Callable[[Tensor], None], device: torch.device) -> None:
        self._function, self._position = function, torch.zeros(1, dtype=torch.int64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, position: int) -> None:
        self._position.fill_(position)
        if not self._position.is_cuda:
            self._function(self._position)
        elif self._graph is None:
            self._capture()
        else:
            self._graph.replay()

    def _capture(self) -> None:
        """Run the function once on a side stream, where libraries initialize, then record it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._function(self._position)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):  # records the kernels without running them
            self._function(self._position)
