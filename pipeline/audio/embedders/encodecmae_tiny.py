"""`encodecmae_tiny`: the small EnCodecMAE that ships with this package, 192 wide, for offline use and tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pipeline.audio.embedders import EMBEDDERS, EmbedderSettings
from pipeline.common.files import sha256_file
from pipeline.common.paths import ASSETS

if TYPE_CHECKING:
    import torch

    from pipeline.audio.encodecmae.embedder import EncodecMaeEmbedder
    from pipeline.audio.encodecmae.model import EncodecMae

TINY = ASSETS / "encodecmae_tiny.safetensors"


@EMBEDDERS.register("encodecmae_tiny")
class EncodecMaeTinySettings(EmbedderSettings):
    """Settings of the small embedder. source: a file of the same layout; None: the one that ships."""

    title: ClassVar[str] = "the small embedder that ships with the program"
    licence: ClassVar[str] = "It is under the program's licence."

    def load(self, device: str | torch.device) -> EncodecMaeEmbedder:
        """See `EmbedderSettings.load`."""
        from pipeline.audio.encodecmae.embedder import EncodecMaeEmbedder

        file = TINY if self.source is None else Path(self.source)
        return EncodecMaeEmbedder(self.name, _read_model(file), sha256_file(file), device, self.frames)


def _read_model(file: Path) -> EncodecMae:
    """Read the layout of v2, with the FFN that all layers share stored once and the number of heads in the metadata."""
    from safetensors import safe_open

    from pipeline.audio.encodecmae.checkpoint import LAYER, from_state_dict
    from pipeline.audio.weights import report_damage

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
