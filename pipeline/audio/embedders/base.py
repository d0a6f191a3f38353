"""The interface of embedders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Embedder(Protocol):
    """Maps each clip, at `sample_rate` in Hz, to one vector of width `dim`."""

    dim: int
    sample_rate: int

    @property
    def identity(self) -> dict[str, Any]:
        """The properties that two vectors must share to be comparable: name, weights, sample_rate, dim."""

    @property
    def best_batch(self) -> int:
        """The best number of clips of a few seconds to embed in one batch."""

    def embed(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embed clips.

        Args:
            wav: [B, S].
            lengths: [B] valid samples of each row; all of them by default.

        Returns:
            float32 [B, D].
        """
