"""`encodecmae_package`: EnCodecMAE through its authors' package, which must be installed separately."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.audio.embedders import EMBEDDERS
from pipeline.audio.embedders.encodecmae import EncodecMaeSettings
from pipeline.common.errors import InputError, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.audio.embedders.base import Embedder


@EMBEDDERS.register("encodecmae_package")
class EncodecMaePackageSettings(EncodecMaeSettings):
    """Settings of a model of the package. source: the name of the model."""

    default_source: ClassVar[str | None] = "base"

    def load(self, device: str | torch.device) -> Embedder:
        """See `EmbedderSettings.load`."""
        return EncodecMaePackageEmbedder(self.source or str(self.default_source), device)

    @classmethod
    def source_of(cls, identity_name: str) -> str | None:
        """See `EmbedderSettings.source_of`: the name ends with that of the model, whose slash could name a download."""
        model = identity_name.partition("/")[2]
        return super().source_of(identity_name) if "/" in model else model or cls.default_source


class EncodecMaePackageEmbedder:
    """The authors' implementation, one clip at a time."""

    best_batch = 1
    sample_rate = 24_000

    def __init__(self, model: str, device: str | torch.device) -> None:
        import torch

        try:
            from encodecmae import load_model
        except Exception as error:  # not installed; with a torchaudio of another torch: OSError, RuntimeError
            reason = first_line(error)
            raise InputError(
                f"embedder=encodecmae_package: the package encodecmae cannot be imported ({reason}); install it from "
                f"https://github.com/habla-liaa/encodecmae, with a torchaudio that was built for torch "
                f"{torch.__version__}, or choose another embedder=, which needs no package"
            ) from error
        self.name, self.device = f"encodecmae_package/{model}", torch.device(device)
        self.model = load_model(model, mode="eval", device=str(device))
        digest = hashlib.sha256()
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode() + value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        self.weights = digest.hexdigest()
        self.dim = self._embed_clip(torch.zeros(self.sample_rate)).shape[0]

    @property
    def identity(self) -> dict[str, Any]:
        """See `Embedder.identity`; `weights` is a sha256 over the names and values of the model's tensors."""
        return {"name": self.name, "weights": self.weights, "sample_rate": self.sample_rate, "dim": self.dim}

    def embed(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embed clips [B, S] to float32 [B, D]."""
        import torch

        valid = [wav.shape[1]] * len(wav) if lengths is None else lengths.tolist()
        return torch.stack([self._embed_clip(row[:length]) for row, length in zip(wav, valid, strict=True)])

    def _embed_clip(self, wav: Tensor) -> Tensor:
        import torch

        from pipeline.audio.precision import full_precision

        with full_precision(self.device):
            features = torch.as_tensor(self.model.extract_features_from_array(wav.float().cpu().numpy()))
        return features.float().flatten(0, -2).mean(0)  # v1 returns [T, D], v2 [1, T, D]
