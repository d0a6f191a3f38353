"""`encodecmae_package`: EnCodecMAE through its authors' package, which must be installed separately."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, ClassVar

from pipeline.audio.embedders import EMBEDDERS
from pipeline.audio.embedders.base import Embedder, pool_frames, valid_samples
from pipeline.audio.embedders.encodecmae import EncodecMaeSettings
from pipeline.common.errors import InputError, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@EMBEDDERS.register("encodecmae_package")
class EncodecMaePackageSettings(EncodecMaeSettings):
    """Settings of a model of the package. source: the name of the model."""

    default_source: ClassVar[str | None] = "base"

    def load(self, device: str | torch.device) -> Embedder:
        """See `EmbedderSettings.load`."""
        return EncodecMaePackageEmbedder(self.source or str(self.default_source), device, self.frames)

    @classmethod
    def source_of(cls, identity_name: str) -> str | None:
        """See `EmbedderSettings.source_of`: the name ends with that of the model, whose slash could name a download."""
        model = identity_name.partition("/")[2]
        return super().source_of(identity_name) if "/" in model else model or cls.default_source


class EncodecMaePackageEmbedder(Embedder):
    """The authors' implementation, one clip at a time. `weights`: a sha256 over names and values of its tensors."""

    best_batch = 1
    sample_rate = 24_000

    def __init__(self, model: str, device: str | torch.device, frames: int) -> None:
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
        self.name, self.frames, self.device = f"encodecmae_package/{model}", frames, torch.device(device)
        self.model = load_model(model, mode="eval", device=str(device))
        digest = hashlib.sha256()
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode() + value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        self.weights = digest.hexdigest()
        self.dim = self._features(torch.zeros(self.sample_rate)).shape[1]

    def embed(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embed clips [B, S] to float32 [B, D]."""
        import torch

        return torch.stack([self._features(row).mean(0) for row in valid_samples(wav, lengths)])

    def embed_frames(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """See `Embedder.embed_frames`."""
        import torch

        if self.frames == 1:
            return self.embed(wav, lengths)[:, None]
        return torch.stack([pool_frames(self._features(row), self.frames) for row in valid_samples(wav, lengths)])

    def _features(self, wav: Tensor) -> Tensor:
        """[S] -> [T, D]."""
        import torch

        from pipeline.audio.precision import full_precision

        with full_precision(self.device):
            features = torch.as_tensor(self.model.extract_features_from_array(wav.float().cpu().numpy()))
        return features.float().flatten(0, -2)  # v1 returns [T, D], v2 [1, T, D]
