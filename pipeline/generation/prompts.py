"""Prompt vectors from sound files, and sounds from codes.

Letters: B sounds, K codebooks, T frames, S samples, N prompt vectors of a sound, P prompt width.
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
from pipeline.audio.codecs.base import Codec, to_array
from pipeline.audio.embedders.base import Embedder, pad_sounds
from pipeline.common.files import expand_globs, sha256_file

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class SourceAudio:
    """A sound file that is an input of a generation.

    Attributes:
        path: The file.
        sha256: The sha256 of the file.
        wav: The sound, [S] or stereo [S, 2], at the codec's sample rate.
    """

    path: Path
    sha256: str
    wav: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Path and sha256, as JSON for a sidecar."""
        return {"path": str(self.path.absolute()), "sha256": self.sha256}


def read_source(path: str | Path, seconds: float, codec: Codec) -> SourceAudio:
    """Read the first `seconds` of a sound file for a codec; sounds above full scale are scaled down.

    Raises:
        AudioError: The file cannot be read as sound.
    """
    path = Path(path)
    faults: list[str] = []
    sound = audio_io.read(
        path, duration=seconds, rate=codec.sample_rate, channels=codec.channels, on_fault=faults.append
    )
    wav, note = amplitude.apply_policy(sound, "scale", faults)
    if wav is None:
        raise audio_io.AudioError(str(path), note)
    if note:
        log.warning("%s: %s", path, note)
    if audio_io.is_silent(wav):
        log.warning("%s is silent: it is used as a prompt of silence", path)
    return SourceAudio(path, sha256_file(path), wav)


def prompt_vector(embedder: Embedder, source: SourceAudio, rate: int) -> Tensor:
    """The prompt [N, P] of a sound at a sample rate, rounded to float16, like the prompts of a dataset.

    Raises:
        AudioError: The embedding has values that are not finite.
    """
    vectors = embedder.embed_frames(*pad_sounds(embedder, [source.wav], rate))[0].cpu().half().float()
    if not bool(vectors.isfinite().all()):
        peak = float(np.abs(source.wav).max())
        reason = f"not finite: its embedding has NaN or infinite values (its peak is {peak:.3g}, full scale is 1)"
        raise audio_io.AudioError(str(source.path), f"{reason}; scale the sound to full scale")
    return vectors


def text_vectors(embedder: Embedder, text: str) -> Tensor:
    """The prompt [N, P] of a description of a sound: the same vector for all stretches.

    Raises:
        InputError: The embedder reads no text.
    """
    return embedder.embed_text([text])[0].cpu().half().float().expand(embedder.frames, -1)


def find_prompts(setting: Any) -> dict[str, Path]:
    """The sound files that the setting `prompt` names, by unique names.

    Args:
        setting: A file, a folder, a glob, a list of them, or None.

    Raises:
        InputError: A file does not exist, or a glob matches none.
    """
    patterns = [] if setting is None else [setting] if isinstance(setting, str) else [*map(str, setting)]
    return find_files.find_audio_files("prompt", expand_globs("prompt", patterns))


def embed_audio(embedder: Embedder, wavs: Sequence[np.ndarray], rate: int) -> Tensor:
    """A vector, float32 [B, P], for each sound [S] at a rate; rounded to float16, like the prompts of a dataset."""
    batch = embedder.best_batch
    rows = [embedder.embed(*pad_sounds(embedder, wavs[i : i + batch], rate)).cpu() for i in range(0, len(wavs), batch)]
    return torch.cat(rows).half().float()


def decode_codes(codec: Codec, codes: Sequence[Tensor]) -> list[np.ndarray]:
    """Decode codes [K, T] of any lengths to sounds, [S] or [S, 2]; codes of the same length are decoded in batches."""
    wavs = [codec.silence(0)] * len(codes)
    by_length: dict[int, list[int]] = {}
    for i, clip in enumerate(codes):
        by_length.setdefault(clip.shape[1], []).append(i)
    for length, clips in by_length.items():
        for first in range(0, len(clips), codec.best_batch):
            batch = clips[first : first + codec.best_batch]
            if length:
                sounds = codec.decode(torch.stack([codes[i] for i in batch]).long()).cpu()
                for i, wav in zip(batch, sounds, strict=True):
                    wavs[i] = to_array(wav)
    return wavs
