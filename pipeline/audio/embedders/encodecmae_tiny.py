"""`encodecmae_tiny`: the small EnCodecMAE that ships with this package, 192 wide, for offline use and tests."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from pipeline.audio.embedders.encodecmae import EncodecMaeEmbedder
from pipeline.audio.embedders.encodecmae_checkpoint import LAYER, from_state_dict
from pipeline.audio.embedders.encodecmae_model import EncodecMae
from pipeline.audio.weights import report_damage
from pipeline.common.files import sha256_file
from pipeline.common.paths import ASSETS

TINY = ASSETS / "encodecmae_tiny.safetensors"


def load(source: str | None, device: str | torch.device) -> EncodecMaeEmbedder:
    """Load the file `source`, or the one that ships with this package."""
    file = TINY if source is None else Path(source)
    return EncodecMaeEmbedder("encodecmae_tiny", _read_model(file), sha256_file(file), device)


def _read_model(file: Path) -> EncodecMae:
    """Read the layout of v2, with the FFN that all layers share stored once and the number of heads in the metadata."""
    with report_damage(f"embedder.source={file}", "null uses the one that ships with this package"):
        with safe_open(file, "pt") as content:
            state = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
            metadata = content.metadata() or {}
        layers, heads = int(metadata["layers"]), int(metadata["heads"])
        shared = LAYER.format(0) + "ff_layer."
        for key in [key for key in state if key.startswith(shared)]:
            for i in range(1, layers):
                state[LAYER.format(i) + "ff_layer." + key.removeprefix(shared)] = state[key]
        return from_state_dict(state, gin="", heads=heads)
