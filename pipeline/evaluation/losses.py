"""The validation loss of a model, and of two baselines without context.

Letters: B clips, K codebooks, T frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.data.dataloader import iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.models.codec_gpt import CodecGPT

_BATCH = 16


@dataclass(frozen=True)
class ValidationLosses:
    """Mean cross-entropies in nats per code.

    Attributes:
        model: The model's, of each codebook.
        unigram: Those of the code frequencies in training, of each codebook.
        uniform: That of a uniform distribution, the same for each codebook.
        clips: The number of clips that were read.
    """

    model: list[float]
    unigram: list[float]
    uniform: float
    clips: int

    def to_dict(self, frame_rate: float) -> dict[str, Any]:
        """The losses as JSON; bits per second are the sum over all codebooks."""

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
    """The loss over every clip of `valid`, read exactly once.

    Args:
        model: The model.
        valid: The clips on which the losses are measured.
        train: The clips in which the unigram baseline counts codes.
        frames: Crop clips to this length.
        device: The model's device.
    """
    size, K = model.config.codebook_size, model.config.codebooks
    nats, cells = torch.zeros(2, K, dtype=torch.float64)
    valid_counts = torch.zeros(K, size, dtype=torch.float64)
    for batch in iter_once(valid, _BATCH, max_frames=frames):
        batch_nats, batch_cells = model(*batch.to(device))
        nats += batch_nats.double().cpu()
        cells += batch_cells.cpu()
        valid_counts += count_codes(batch.codes, batch.frames, size)
    train_counts = torch.ones(K, size, dtype=torch.float64)  # add-one smoothing, for codes that training never has
    for batch in iter_once(train, 256):
        train_counts += count_codes(batch.codes, batch.frames, size)
    log_probabilities = (train_counts / train_counts.sum(1, keepdim=True)).log()
    unigram = -(valid_counts * log_probabilities).sum(1) / valid_counts.sum(1)
    return ValidationLosses((nats / cells).tolist(), unigram.tolist(), math.log(size), len(valid))


def count_codes(codes: Tensor, frames: Tensor, size: int) -> Tensor:
    """How often each code occurs.

    Args:
        codes: [B, K, T].
        frames: The frames of each clip [B]; what follows is padding.
        size: The size of a codebook.

    Returns:
        Counts, float64 [K, size].
    """
    is_real = torch.arange(codes.shape[2]) < frames[:, None]  # [B, T]
    flat = codes.transpose(0, 1)[:, is_real].long()  # [K, N]
    return torch.stack([torch.bincount(row, minlength=size) for row in flat]).double()
