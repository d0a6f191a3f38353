"""Audio embedders: one vector per clip, the mean over time of a model's features.

    embedder = load_embedder("encodecmae_tiny")
    prompts = embedder.embed(wav)                  # [B, S] -> [B, D]

Embedders (conf/embedder/): `encodecmae_base` (EnCodecMAE v1, the article's), `encodecmae_mel256_base_st` (v2,
recommended by its authors), `encodecmae_tiny` (ships with this package), `encodecmae_package` (any model, through the
authors' own package). The vectors of two embedders are not comparable; `identity` names the checkpoint.

Letters: B clips, S samples at 24 kHz, T frames, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.common.errors import InputError

if TYPE_CHECKING:
    import torch

    from pipeline.audio.embedders.base import Embedder

NAMES = ("encodecmae_base", "encodecmae_mel256_base_st", "encodecmae_tiny", "encodecmae_package")


def load_embedder(name: str, source: str | None = None, device: str | torch.device = "cpu") -> Embedder:
    """Load an embedder and its weights.

    Example:
        >>> import pipeline, torch
        >>> embedder = pipeline.load_embedder("encodecmae_tiny")
        >>> embedder.embed(torch.zeros(2, 24_000)).shape == (2, embedder.dim)  # [B, S] -> [B, D]
        True

    Args:
        name: One of `NAMES`.
        source: A repository of the Hugging Face hub (`owner/repo`), a file in one (`owner/repo/file.pt`), or a local
            file or folder; for `encodecmae_package` the name of a model.
        device: The device that embeds.

    Raises:
        InputError: The name is unknown, or the weights are missing or damaged.
    """
    if name not in NAMES:
        raise InputError(f"embedder.name={name}: the embedders are {', '.join(NAMES)}")
    if name == "encodecmae_package":
        from pipeline.audio.embedders import encodecmae_package

        return encodecmae_package.load(source, device)
    if name == "encodecmae_tiny":
        from pipeline.audio.embedders import encodecmae_tiny

        return encodecmae_tiny.load(source, device)
    from pipeline.audio.embedders import encodecmae

    return encodecmae.load(name, source, device)
