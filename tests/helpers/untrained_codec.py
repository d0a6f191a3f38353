"""EnCodec's architecture with random weights, for tests and benchmarks that do not need Meta's."""

from __future__ import annotations

import torch

from pipeline.audio.codecs.encodec_24khz import Encodec24khzSettings
from pipeline.audio.encodec.codec import EncodecCodec, create_package_model, replace_seanet
from pipeline.audio.encodec.package import EncodecModel


def untrained_codec(codebooks: int, device: str | torch.device = "cpu", seed: int = 0) -> EncodecCodec:
    """Return a codec of Meta's architecture with random weights."""
    model = replace_seanet(untrained_encodec(seed))
    settings = Encodec24khzSettings(name="untrained", codebooks=codebooks, channels=1, weights_dir=None)
    return EncodecCodec(settings, model, f"random, seed {seed}", device, is_waveform_codec=True)


def untrained_encodec(seed: int = 0) -> EncodecModel:
    """Return the package's 24 kHz model with random weights and codebooks that produce many different codes."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        model = create_package_model()
        for name, weight in model.named_parameters():
            if name.endswith("weight_g"):
                weight.mul_(1.5)  # at 1 the output hardly depends on the input
        noise = model.encoder(torch.randn(8, 1, 24_000) * torch.rand(8, 1, 1))  # [8, 128, 75]
        mean, spread = noise.mean((0, 2)), noise.std((0, 2))
        for i, layer in enumerate(model.quantizer.vq.layers):
            book = layer.get_buffer("_codebook.embed")
            book.normal_().mul_(spread / 2 if i == 0 else spread / 4).add_(mean if i == 0 else 0)
    return model
