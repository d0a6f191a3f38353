"""The validation loss of a model, and of two baselines without context.

Letters: B clips, K codebooks, T frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.data.dataloader import iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.evaluation.results import LossResult, LossResults
from pipeline.generation.loaded_run import LoadedRun

_BATCH = 16


def loss_result(nats: list[float], frame_rate: float) -> LossResult:
    """A loss from the nats per code of each codebook."""
    bits = sum(nats) / math.log(2) * frame_rate
    perplexity = [math.exp(value) for value in nats]
    row = {"nats": sum(nats) / len(nats), "nats_codebook": nats, "bits_second": bits, "perplexity": perplexity}
    return LossResult.model_validate(row)


@torch.inference_mode()
def measure_losses(run: LoadedRun, valid: ShardedDataset, train: ShardedDataset, frames: int) -> LossResults:
    """The loss over every clip of `valid`, read exactly once.

    Args:
        run: The model.
        valid: The clips on which the losses are measured.
        train: The clips in which the unigram baseline counts codes.
        frames: Crop clips to this length.
    """
    size, K = run.model.config.codebook_size, run.model.config.codebooks
    nats, cells = torch.zeros(2, K, dtype=torch.float64)
    valid_counts = torch.zeros(K, size, dtype=torch.float64)
    valid.labels = tuple(run.model.label_conditions)
    for batch in iter_once(valid, _BATCH, max_frames=frames):
        codes, lengths, prompts = batch.to(run.device)
        batch_nats, batch_cells = run.model(codes, lengths, run.model.condition_values(prompts, batch.labels))
        nats += batch_nats.cpu().double()
        cells += batch_cells.cpu()
        valid_counts += count_codes(batch.codes, batch.frames, size)
    train_counts = torch.ones(K, size, dtype=torch.float64)  # add-one smoothing, for codes that training never has
    for batch in iter_once(train, 256):
        train_counts += count_codes(batch.codes, batch.frames, size)
    log_probabilities = (train_counts / train_counts.sum(1, keepdim=True)).log()
    unigram = -(valid_counts * log_probabilities).sum(1) / valid_counts.sum(1)
    by_name = {
        "model": nats / cells,
        "unigram": unigram,
        "uniform": torch.full((K,), math.log(size), dtype=torch.float64),
    }
    rows = {name: loss_result(values.tolist(), run.codec.frame_rate) for name, values in by_name.items()}
    return LossResults(clips=len(valid), **rows)


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
