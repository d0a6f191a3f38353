"""What a generation starts from: sound files as prompt vectors.

Letters: B prompts, S samples, P prompt width.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.sound import audio
from pipeline.sound.codec import Codec
from pipeline.sound.embedder import Embedder

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Prompt:
    """A sound file, read: wav [S] at the embedder's rate; sha256: of the file."""

    path: Path
    sha256: str
    wav: np.ndarray


def read_prompt(path: str | Path, seconds: float, rate: int) -> Prompt:
    """The first `seconds` of a sound file. Raises AudioError for a file that is no sound."""
    path = Path(path)
    wav = audio.read(path, duration=seconds, rate=rate)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if audio.is_silent(wav):
        log.warning("%s is silent: expect silence, or what the model makes of it", path)
    return Prompt(path, digest.hexdigest(), wav)


def embed(embedder: Embedder, wavs: Sequence[np.ndarray]) -> Tensor:
    """Sounds [S] of any lengths -> float32 [B, P], as training saw its prompts: rounded to float16."""
    rows = []
    for first in range(0, len(wavs), embedder.best_batch):
        part = wavs[first : first + embedder.best_batch]
        wav, lengths = pad(part)
        rows.append(embedder.embed(wav, lengths).cpu())
    return torch.cat(rows).half().float()


def decode(codec: Codec, codes: Sequence[Tensor]) -> list[np.ndarray]:
    """Codes [K, T] of any lengths -> sounds [320 T]; those of one length together, as many as the codec likes."""
    wavs: list[np.ndarray] = [np.zeros(0, np.float32)] * len(codes)
    by_length: dict[int, list[int]] = {}
    for i, clip in enumerate(codes):
        by_length.setdefault(clip.shape[1], []).append(i)
    for length, clips in by_length.items():
        for first in range(0, len(clips), codec.best_batch):
            part = clips[first : first + codec.best_batch]
            if length:
                sound = codec.decode(torch.stack([codes[i] for i in part]).long())[:, 0].cpu().numpy()
                for i, wav in zip(part, sound, strict=True):
                    wavs[i] = wav
    return wavs


def pad(wavs: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Sounds [S] -> [B, longest] with zeros behind, and their lengths [B]."""
    lengths = torch.tensor([len(wav) for wav in wavs])
    padded = torch.zeros(len(wavs), int(lengths.max()))
    for row, wav in zip(padded, wavs, strict=True):
        row[: len(wav)] = torch.from_numpy(wav)
    return padded, lengths
