"""How well a model predicts codes that it has not seen, and how well two that know nothing of context do.

Letters: B clips, K codebooks, T frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.data.dataloader import ShardedDataset, iter_once
from pipeline.models.codec_gpt import CodecGPT

_BATCH = 16


@dataclass(frozen=True)
class ValidationLosses:
    """Cross-entropies in nats a code: of each codebook, in codebook order. clips: how many were read."""

    model: list[float]
    unigram: list[float]
    uniform: float
    clips: int

    def to_dict(self, frame_rate: float) -> dict[str, Any]:
        """As JSON; bits a second count all codebooks."""

        def row(nats: list[float]) -> dict[str, Any]:
            mean = sum(nats) / len(nats)
            bits = sum(nats) / math.log(2) * frame_rate
            return {"nats": mean, "nats_codebook": nats, "bits_second": bits, "perplexity": [math.exp(x) for x in nats]}

        uniform = [self.uniform] * len(self.model)
        return {
            "clips": self.clips,
            "model": row(self.model),
            "unigram": row(self.unigram),
            "uniform": row(uniform),
        }


@torch.inference_mode()
def measure_losses(
    model: CodecGPT, valid: ShardedDataset, train: ShardedDataset, frames: int | None, device: torch.device
) -> ValidationLosses:
    """The loss over every clip of `valid` exactly once, cropped to `frames`; the unigrams are counted in `train`."""
    size, K = model.config.codebook_size, model.config.codebooks
    nats, cells = torch.zeros(2, K, dtype=torch.float64)
    held = torch.zeros(K, size, dtype=torch.float64)
    for batch in iter_once(valid, _BATCH, max_frames=frames):
        found, counted = model(*batch.to(device))
        nats += found.double().cpu()
        cells += counted.cpu()
        held += count_codes(batch.codes, batch.frames, size)
    known = torch.ones(K, size, dtype=torch.float64)  # add-one smoothing: a code never seen is not impossible
    for batch in iter_once(train, 256):
        known += count_codes(batch.codes, batch.frames, size)
    unigram = -(held * (known / known.sum(1, keepdim=True)).log()).sum(1) / held.sum(1)
    return ValidationLosses((nats / cells).tolist(), unigram.tolist(), math.log(size), len(valid))


def count_codes(codes: Tensor, frames: Tensor, size: int) -> Tensor:
    """Codes [B, K, T] with `frames` [B] real frames -> counts float64 [K, size]."""
    real = torch.arange(codes.shape[2]) < frames[:, None]  # [B, T]
    flat = codes.transpose(0, 1)[:, real].long()  # [K, N]
    return torch.stack([torch.bincount(row, minlength=size) for row in flat]).double()
