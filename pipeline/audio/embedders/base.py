"""The interface of embedders.

Letters: B clips, S samples, N vectors of a clip, T frames of features, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.audio import amplitude, audio_io
from pipeline.common.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Embedder(ABC):
    """Maps a clip to one vector, or to one for each of its stretches.

    Attributes:
        name: Its name, as `embedder=` or with `/VARIANT` after it.
        weights: A digest of the weights.
        sample_rate: In Hz, of the clips.
        dim: Width of a vector.
        frames: Vectors of a clip that `embed_frames` returns.
        reads_text: Whether it has `embed_text`, so that words can be prompts.
    """

    name: str
    weights: str
    sample_rate: int
    dim: int
    frames: int = 1
    reads_text: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """The properties that the vectors of two clips must share; the number of vectors only if it is not 1."""
        frames = {"frames": self.frames} if self.frames > 1 else {}
        return {
            "name": self.name,
            "weights": self.weights,
            "sample_rate": self.sample_rate,
            "dim": self.dim,
            **frames,
        }

    @property
    @abstractmethod
    def best_batch(self) -> int:
        """The best number of clips of a few seconds to embed in one batch."""

    @abstractmethod
    def embed(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embed clips, each as one vector.

        Args:
            wav: [B, S].
            lengths: [B] valid samples of each row; all of them by default.

        Returns:
            float32 [B, D].
        """

    def embed_frames(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embed clips, each as one vector for each of `frames` stretches of equal duration.

        Without another definition each stretch is embedded as a clip. A model that has features over time embeds the
        clip and averages those of each stretch: see `pool_frames`.

        Args:
            wav: [B, S].
            lengths: [B] valid samples of each row; all of them by default.

        Returns:
            float32 [B, N, D].
        """
        if self.frames == 1:
            return self.embed(wav, lengths)[:, None]
        rows = [_stretch(clip, i, self.frames) for clip in valid_samples(wav, lengths) for i in range(self.frames)]
        vectors: Tensor = self.embed(*_pad(rows)).unflatten(0, (len(wav), self.frames))
        return vectors

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Embed texts, so that the vector of a text is near those of the sounds that it describes.

        Returns:
            float32 [B, D].

        Raises:
            InputError: The embedder reads no text.
        """
        raise InputError(f"prompt_text={texts[0]}: the embedder {self.name} reads no text: give a sound, prompt=a.wav")


def valid_samples(wav: Tensor, lengths: Tensor | None) -> list[Tensor]:
    """The clips [S] of a batch [B, S] without their padding. lengths: [B], or None for clips without padding."""
    valid = [wav.shape[1]] * len(wav) if lengths is None else lengths.tolist()
    return [row[:length] for row, length in zip(wav, valid, strict=True)]


def _stretch(wav: Tensor, i: int, count: int) -> Tensor:
    """Stretch i of `count` of a clip [S]; at least one sample."""
    start = min(len(wav) * i // count, len(wav) - 1)
    return wav[start : max(len(wav) * (i + 1) // count, start + 1)]


def pool_frames(features: Tensor, count: int) -> Tensor:
    """The mean features of `count` stretches of equal duration: [T, D] -> [count, D].

    A frame at the border of two stretches belongs to each in part, so the mean of all stretches is that of all frames.
    """
    import torch

    frames = len(features)
    edges = torch.arange(count + 1, dtype=torch.float64) * frames / count
    frame = torch.arange(frames, dtype=torch.float64)
    overlap = torch.minimum(frame + 1, edges[1:, None]) - torch.maximum(frame, edges[:-1, None])  # [count, T]
    weights = overlap.clamp(min=0) * count / frames
    pooled: Tensor = weights.to(features) @ features
    return pooled


def pad_sounds(embedder: Embedder, wavs: Sequence[np.ndarray], rate: int) -> tuple[Tensor, Tensor]:
    """A batch for an embedder.

    Args:
        embedder: The embedder.
        wavs: Sounds of any lengths, [S] or [S, 2], of which the embedder gets the mono mix (`amplitude.mix_sound`).
        rate: Their sample rate in Hz, from which they are resampled to the embedder's.

    Returns:
        The sounds, padded: float32 [B, S], and their lengths: [B].
    """
    import torch

    mixes = [amplitude.mix_sound(wav) for wav in wavs]
    return _pad([torch.from_numpy(audio_io.resample(wav, rate, embedder.sample_rate)) for wav in mixes])


def _pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    import torch

    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.zeros(len(rows), int(lengths.max()), device=rows[0].device)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded, lengths
