"""Sound files in as prompt vectors, codes out as sounds.

Letters: B prompts, K codebooks, T frames, S samples, P prompt width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.audio import amplitude, audio_io, find_files
from pipeline.audio.codecs.base import Codec
from pipeline.audio.embedders.base import Embedder
from pipeline.common.errors import InputError
from pipeline.common.files import sha256_file

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class SourceAudio:
    """A sound file, read: wav [S] mono at the codec's rate; sha256: of the file."""

    path: Path
    sha256: str
    wav: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """As JSON: enough to know it again."""
        return {"path": str(self.path.absolute()), "sha256": self.sha256}


def read_source(path: str | Path, seconds: float, rate: int) -> SourceAudio:
    """The first `seconds` of a sound file. Raises AudioError for a file that is no sound."""
    path = Path(path)
    faults: list[str] = []
    sound = audio_io.read(path, duration=seconds, rate=rate, on_fault=faults.append)
    wav, note = amplitude.apply_policy(sound, "scale", faults)
    if wav is None:
        raise audio_io.AudioError(str(path), note)
    if note:
        log.warning("%s: %s", path, note)
    if audio_io.is_silent(wav):
        log.warning("%s is silent: expect what the model makes of silence", path)
    return SourceAudio(path, sha256_file(path), wav)


def prompt_vector(embedder: Embedder, source: SourceAudio) -> Tensor:
    """The prompt vector [P] of a sound. Raises AudioError where it has values that are not finite."""
    vector = embed_audio(embedder, [source.wav])[0]
    if not bool(vector.isfinite().all()):
        peak = float(np.abs(source.wav).max())
        reason = f"not finite: its embedding has NaN or infinite values (its peak is {peak:.3g}, full scale is 1)"
        raise audio_io.AudioError(str(source.path), f"{reason}; scale the sound to full scale")
    return vector


def find_prompts(given: Any) -> dict[str, Path]:
    """The sound files that the setting `prompt` names (files, folders, globs, a list of them), each by its own name.

    Raises InputError for what is not there.
    """
    paths: list[str] = []
    for one in [] if given is None else [given] if isinstance(given, str) else map(str, given):
        matches = _matching(one) if set("*?[") & set(one) and not Path(one).exists() else [one]
        if not matches:
            raise InputError(f"prompt={one}: no file matches")
        paths += matches
    return find_files.find_audio_files("prompt", paths)


def _matching(pattern: str) -> list[str]:
    """Files and folders that fit a pattern; hidden ones, such as the `._` files of a Mac, only where it says so."""
    parts = Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if set("*?[") & set(part))
    found = Path(*parts[:first]).glob(str(Path(*parts[first:])))
    return sorted(str(path) for path in found if parts[-1].startswith(".") or not path.name.startswith("."))


def embed_audio(embedder: Embedder, wavs: Sequence[np.ndarray]) -> Tensor:
    """Sounds [S] of any lengths -> float32 [B, P], as training saw its prompts: rounded to float16."""
    rows = []
    for first in range(0, len(wavs), embedder.best_batch):
        part = wavs[first : first + embedder.best_batch]
        wav, lengths = pad_batch(part)
        rows.append(embedder.embed(wav, lengths).cpu())
    return torch.cat(rows).half().float()


def decode_codes(codec: Codec, codes: Sequence[Tensor]) -> list[np.ndarray]:
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


def pad_batch(wavs: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Sounds [S] -> [B, longest] with zeros behind, and their lengths [B]."""
    lengths = torch.tensor([len(wav) for wav in wavs])
    padded = torch.zeros(len(wavs), int(lengths.max()))
    for row, wav in zip(padded, wavs, strict=True):
        row[: len(wav)] = torch.from_numpy(wav)
    return padded, lengths
