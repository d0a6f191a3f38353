"""DAC's architecture with small layers and random weights, as `codec.weights_dir` of a DAC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import DacConfig, DacModel


def small_dac(seed: int = 0, **changes: Any) -> DacModel:
    """A model that produces many different codes. changes: fields of `DacConfig`."""
    sizes = {"encoder_hidden_size": 4, "decoder_hidden_size": 32, "sampling_rate": 44_100, "n_codebooks": 9}
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        model = DacModel(DacConfig(**(sizes | changes))).eval()
        for name, weight in model.named_parameters():
            if weight.ndim == 3 and "alpha" not in name:
                weight.normal_(std=(1.2 if name.startswith("encoder") else 0.7) / weight[0].numel() ** 0.5)
            elif "codebook" in name:
                weight.normal_()
    return model


def write_dac(folder: Path, seed: int = 0, **changes: Any) -> DacModel:
    """Save the model of `small_dac` to a folder."""
    model = small_dac(seed, **changes)
    model.save_pretrained(folder)
    return model
