"""Running sums of the loss, per codebook and over all ranks."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from pipeline.training.distributed import World


class LossMeter:
    """Summed cross-entropy and number of tokens per codebook since the last row of the log, and the time they took."""

    def __init__(self, codebooks: int, device: torch.device, saved: list[float] | None = None) -> None:
        """Create a meter, empty or with sums from a checkpoint.

        Args:
            codebooks: K.
            device: where the sums are kept.
            saved: what `state` returned; for the first rank only, since these are the sums over all ranks.
        """
        device = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        self.sums = torch.zeros(2, codebooks, dtype=torch.float64, device=device)
        if saved:
            self.sums += torch.tensor(saved, dtype=torch.float64, device=device).view(2, codebooks)
        self.restart_timer()

    def restart_timer(self) -> None:
        """Measure time, clips and data wait from now on; the loss sums stay."""
        self.started_at, self.clips, self.data_wait = time.perf_counter(), 0, 0.0

    def add(self, loss_sums: Tensor, num_tokens: Tensor, clips: int) -> None:
        """Add a batch: summed cross-entropy in nats [K], number of tokens [K]."""
        self.sums += torch.stack([loss_sums.detach(), num_tokens]).to(self.sums.device)
        self.clips += clips

    def state(self, world: World) -> list[float]:
        """The sums over all ranks, for a checkpoint; they move to the meter of the first rank. A barrier."""
        total = world.all_reduce_sum(self.sums.flatten().tolist())
        self.sums.copy_(torch.tensor(total if world.is_main else [0.0] * len(total)).view_as(self.sums))
        return total

    def losses(self, world: World, split: str) -> dict[str, float]:
        """Mean cross-entropy in nats over all ranks, in total and per codebook; empties the meter. A barrier."""
        sums = torch.tensor(world.all_reduce_sum(self.sums.flatten().tolist()), dtype=torch.float64)
        loss_sums, num_tokens = sums.view(2, -1)  # [K], [K]
        self.sums.zero_()
        metrics = {f"{split}/loss": float(loss_sums.sum() / num_tokens.sum())}
        for k, (loss, tokens) in enumerate(zip(loss_sums, num_tokens, strict=True)):
            metrics[f"{split}/loss/codebook_{k + 1}"] = float(loss / tokens)
        return metrics
