"""`encodecmae_package`: EnCodecMAE through its authors' package, which must be installed separately."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from pipeline.audio.embedders.encodecmae_model import SAMPLE_RATE
from pipeline.audio.precision import full_precision
from pipeline.common.errors import InputError, first_line


def load(model: str | None, device: str | torch.device) -> EncodecMaePackageEmbedder:
    """Load a model by a name that the package knows, e.g. `base`."""
    if model is None:
        raise InputError("embedder.source: encodecmae_package needs the name of a model, e.g. base")
    return EncodecMaePackageEmbedder(model, device)


class EncodecMaePackageEmbedder:
    """The authors' implementation, one clip at a time."""

    best_batch = 1

    def __init__(self, model: str, device: str | torch.device) -> None:
        try:
            from encodecmae import load_model
        except Exception as error:  # not installed; with a torchaudio of another torch: OSError, RuntimeError
            reason = first_line(error)
            raise InputError(
                f"embedder=encodecmae_package: the package encodecmae cannot be imported ({reason}); install it from "
                f"https://github.com/habla-liaa/encodecmae, with a torchaudio that was built for torch "
                f"{torch.__version__}, or use embedder=encodecmae_base, which needs no package"
            ) from error
        self.name, self.device = f"encodecmae_package/{model}", torch.device(device)
        self.model = load_model(model, mode="eval", device=str(device))
        digest = hashlib.sha256()
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode() + value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        self.weights = digest.hexdigest()
        self.dim = self._embed_clip(torch.zeros(SAMPLE_RATE)).shape[0]

    @property
    def identity(self) -> dict[str, Any]:
        """See `Embedder.identity`; `weights` is a sha256 over the names and values of the model's tensors."""
        return {"name": self.name, "weights": self.weights, "sample_rate": SAMPLE_RATE, "dim": self.dim}

    def embed(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embed clips [B, S] to float32 [B, D]."""
        valid = [wav.shape[1]] * len(wav) if lengths is None else lengths.tolist()
        return torch.stack([self._embed_clip(row[:length]) for row, length in zip(wav, valid, strict=True)])

    def _embed_clip(self, wav: Tensor) -> Tensor:
        with full_precision(self.device):
            features = torch.as_tensor(self.model.extract_features_from_array(wav.float().cpu().numpy()))
        return features.float().flatten(0, -2).mean(0)  # v1 returns [T, D], v2 [1, T, D]
