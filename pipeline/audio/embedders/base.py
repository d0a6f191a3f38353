"""The interface of embedders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.audio import audio_io

if TYPE_CHECKING:
    import numpy as np
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


def embed_sounds(embedder: Embedder, wavs: Sequence[np.ndarray], rate: int) -> Tensor:
    """Embed sounds [S] of any lengths in one batch.

    Args:
        embedder: The embedder.
        wavs: The sounds.
        rate: Their sample rate in Hz, from which they are resampled to the embedder's.

    Returns:
        float32 [B, D] on the embedder's device.
    """
    import torch

    wavs = [audio_io.resample(wav, rate, embedder.sample_rate) for wav in wavs]
    lengths = torch.tensor([len(wav) for wav in wavs])
    padded = torch.zeros(len(wavs), int(lengths.max()))
    for row, wav in zip(padded, wavs, strict=True):
        row[: len(wav)] = torch.from_numpy(wav)
    return embedder.embed(padded, lengths)
