"""`EncodecMaeEmbedder`: embeds clips of any length and number by the mean of EnCodecMAE's features.

Letters: B clips, S samples at 24 kHz, N chunks, T frames, F vectors of a clip, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.audio.embedders.base import Embedder, pool_frames
from pipeline.audio.encodecmae.model import CHUNK, HOP, SAMPLE_RATE, EncodecMae
from pipeline.audio.precision import full_precision

BEST_BATCH_CPU = 8  # chunks that go through the transformer in one batch
BEST_BATCH_GPU = 64


class EncodecMaeEmbedder(Embedder):
    """Embeds clips by the mean of EnCodecMAE's features, in fp32 under any autocast and TF32 settings."""

    sample_rate = SAMPLE_RATE

    def __init__(self, name: str, model: EncodecMae, weights: str, device: str | torch.device, frames: int = 1) -> None:
        """Wrap a model. weights: the sha256 of the weights file; frames: vectors of a clip."""
        self.name, self.weights, self.frames, self.device = name, weights, frames, torch.device(device)
        self.model = model.to(self.device)
        self.dim = model.arch.dim

    @property
    def best_batch(self) -> int:
        """The best number of clips of a few seconds to embed in one batch: one chunk each."""
        return BEST_BATCH_GPU if self.device.type == "cuda" else BEST_BATCH_CPU

    @torch.inference_mode()
    def embed(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embed clips.

        Args:
            wav: [B, S].
            lengths: [B] valid samples of each row; all of them by default. The samples after them have no effect: row b
                equals the vector of its first lengths[b] samples alone.

        Returns:
            float32 [B, D] on the embedder's device.
        """
        sums, counts, clips = [], [], list[int]()
        for own, features, frames in self._chunk_features(wav, lengths):
            padded = torch.arange(features.shape[1], device=self.device) >= frames[:, None]
            sums.append(features.masked_fill(padded[..., None], 0).sum(1))
            counts.append(frames)
            clips += own
        return _clip_means(torch.cat(sums), torch.cat(counts), clips, len(wav))

    @torch.inference_mode()
    def embed_frames(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """See `Embedder.embed_frames`: [B, S] -> [B, F, D], the mean features of each stretch."""
        if self.frames == 1:
            return self.embed(wav, lengths)[:, None]
        chunks: list[list[Tensor]] = [[] for _ in wav]  # in order: all but the last of a clip have the same length
        for own, features, frames in self._chunk_features(wav, lengths):
            for b, chunk, count in zip(own, features, frames.tolist(), strict=True):
                chunks[b].append(chunk[:count])
        with full_precision(self.device):
            return torch.stack([pool_frames(torch.cat(parts), self.frames) for parts in chunks])

    def _chunk_features(self, wav: Tensor, lengths: Tensor | None) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Batches of N chunks: the clip of each, the features [N, T, D], and the number of frames of each [N]."""
        batch, samples = wav.shape
        valid = [samples] * batch if lengths is None else lengths.tolist()
        assert len(valid) == batch and min(valid) > 0 and max(valid) <= samples, valid
        wav = wav.to(self.device, torch.float32)
        parts = [(b, *part) for b, length in enumerate(valid) for part in self._chunks(wav[b, :length])]
        parts.sort(key=lambda part: len(part[1]), reverse=True)  # batches of chunks of similar length
        for i in range(0, len(parts), self.best_batch):
            own, chunks, attend = zip(*parts[i : i + self.best_batch], strict=True)
            with full_precision(self.device):
                features, frames = self.model(chunks, attend)
            yield list(own), features, frames

    @torch.inference_mode()
    def features(self, wav: Tensor) -> Tensor:
        """Return the features [T, D] of a clip [S], whose mean over time is what `embed` returns."""
        parts = list(self._chunks(wav.to(self.device, torch.float32)))
        with full_precision(self.device):
            return torch.cat([self.model([chunk], [attend])[0][0] for chunk, attend in parts])

    def _chunks(self, wav: Tensor) -> list[tuple[Tensor, int]]:
        """Split [S] into chunks of 4 s, each with the number of frames that attention may see; pad a short clip."""
        arch = self.model.arch
        wav = F.pad(wav, (0, max(0, arch.shortest_tail + 1 - len(wav))))
        chunks = [chunk for chunk in wav.split(CHUNK) if len(chunk) > arch.shortest_tail]
        return [(chunk, (min(len(wav), CHUNK) if arch.masks_by_clip else len(chunk)) // HOP) for chunk in chunks]


def _clip_means(sums: Tensor, counts: Tensor, clips: list[int], batch: int) -> Tensor:
    """Average chunk sums [N, D] over [N] frame counts to clip means [B, D]. clips: the clip of each chunk.

    The chunks of a clip are gathered and added in turn. A product with a matrix of zeros and ones would carry a NaN of
    one clip into the others.
    """
    chunks: list[list[int]] = [[] for _ in range(batch)]
    for i, b in enumerate(clips):
        chunks[b].append(i)
    sums, counts = F.pad(sums, (0, 0, 0, 1)), F.pad(counts, (0, 1))  # index N adds zero
    total, count = sums.new_zeros(batch, sums.shape[1]), counts.new_zeros(batch)
    for turn in range(max(map(len, chunks))):
        at = torch.tensor([own[turn] if turn < len(own) else len(clips) for own in chunks]).to(sums.device)
        total += sums[at]
        count += counts[at]
    return total / count[:, None]
