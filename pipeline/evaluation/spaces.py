"""Spaces in which sounds are compared with a reference: of the prompts, of the codec's latents, of other embedders.

Letters: N sounds, K codebooks, T frames, D width of a latent, P width of a prompt, Q width of a vector of the space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from pipeline.audio.codecs.base import Codec
from pipeline.audio.embedders import EMBEDDERS, load_embedder
from pipeline.audio.embedders.base import Embedder
from pipeline.audio.precision import codec_device
from pipeline.common.errors import InputError
from pipeline.common.messages import unknown_choice
from pipeline.data.dataset import ShardedDataset
from pipeline.data.shard import stack_prompts
from pipeline.evaluation.audio_set import AudioSet
from pipeline.evaluation.reference_clips import ReferenceClip, iter_reference_batches
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.prompts import decode_codes, embed_audio

PROMPT, CODEC = "prompt", "codec"  # in the setting `spaces`, beside names of embedders
SpaceNames = Sequence[str | Mapping[str, str]]
_BATCH = 32  # sounds that are decoded, or whose latents are computed, at once


@dataclass(frozen=True)
class CodedSounds:
    """What spaces read of sounds.

    Attributes:
        codes: [K, T] each.
        prompts: Their vectors in the space of the prompts: float32 [N, P].
    """

    codes: Sequence[Tensor]
    prompts: np.ndarray

    @classmethod
    def of_set(cls, sounds: AudioSet) -> CodedSounds:
        """Generated or decoded sounds."""
        return cls(sounds.codes, sounds.embeddings)

    @classmethod
    def of_clips(cls, clips: Sequence[ReferenceClip]) -> CodedSounds:
        """Clips of a dataset, whose prompts are of the originals."""
        return cls([clip.codes for clip in clips], stack_prompts(clip.sample for clip in clips).mean(1))

    @classmethod
    def of_split(cls, split: ShardedDataset, max_frames: int) -> CodedSounds:
        """The clips of a split that are the reference of distances, cropped to `max_frames`."""
        codes: list[Tensor] = []
        prompts: list[np.ndarray] = []
        for batch in iter_reference_batches(split, max_frames):
            codes += [row[:, :frames].clone() for row, frames in zip(batch.codes, batch.frames.tolist(), strict=True)]
            prompts.append(batch.prompts.numpy().mean(1))
        return cls(codes, np.concatenate(prompts))

    def __len__(self) -> int:
        return len(self.codes)

    def draw(self, count: int, seed: int) -> CodedSounds:
        """Random sounds, without repetition, in their order; fewer than `count` if there are."""
        rows = np.random.default_rng(seed).permutation(len(self))[:count]
        rows.sort()
        return CodedSounds([self.codes[i] for i in rows.tolist()], self.prompts[rows])

    def seconds(self, frame_rate: float) -> float:
        """Their duration together."""
        return sum(codes.shape[1] for codes in self.codes) / frame_rate


class Space(ABC):
    """A space.

    Attributes:
        name: Its name in results.
        identity: What two vectors must share to be comparable, as JSON.
        clips_as: What the vectors of clips of a dataset are of.
        is_cheap: Whether vectors of many clips need no decoding.
    """

    name: str
    identity: Mapping[str, JsonValue]
    clips_as: str
    is_cheap = True

    @abstractmethod
    def embed(self, sounds: CodedSounds) -> np.ndarray:
        """The vectors of sounds: [N, Q]."""

    @property
    def title(self) -> str:
        """The name of what embeds, and the first digits of its weights' digest."""
        return f"{self.identity['name']} {self.identity['weights']!s:.8}"


class PromptSpace(Space):
    """The embedder of the training data. The vectors of clips are those of the dataset."""

    name, clips_as = PROMPT, "originals"

    def __init__(self, run: LoadedRun) -> None:
        self.identity = run.embedder.identity

    def embed(self, sounds: CodedSounds) -> np.ndarray:
        """See `Space.embed`."""
        return sounds.prompts


class CodecSpace(Space):
    """The mean over frames of the codec's latents of the codes: with a residual quantizer, of the sums of its vectors.

    Nothing is encoded or decoded.
    """

    name, clips_as = CODEC, "codes"

    def __init__(self, codec: Codec) -> None:
        self._codec, self.identity = codec, codec.identity

    def embed(self, sounds: CodedSounds) -> np.ndarray:
        """See `Space.embed`."""
        vectors = np.zeros((len(sounds), 0), np.float32)
        by_length: dict[int, list[int]] = {}
        for i, codes in enumerate(sounds.codes):
            by_length.setdefault(codes.shape[1], []).append(i)
        for rows in by_length.values():
            for first in range(0, len(rows), _BATCH):
                part = rows[first : first + _BATCH]
                latents = self._codec.latents(torch.stack([sounds.codes[i] for i in part]))
                assert latents is not None, "has_latents says so"
                means = latents.double().mean(-1).float().cpu().numpy()
                vectors = vectors if vectors.size else np.zeros((len(sounds), means.shape[1]), np.float32)
                vectors[part] = means
        return vectors


class EmbedderSpace(Space):
    """Another embedder, which hears what the codec makes of the codes, also those of the dataset's clips."""

    clips_as, is_cheap = "the codec's reconstructions", False

    def __init__(self, name: str, embedder: Embedder, codec: Codec) -> None:
        self.name, self.identity = name, embedder.identity
        self._embedder, self._codec = embedder, codec

    def embed(self, sounds: CodedSounds) -> np.ndarray:
        """See `Space.embed`."""
        parts = [sounds.codes[first : first + _BATCH] for first in range(0, len(sounds), _BATCH)]
        rate = self._codec.sample_rate
        vectors = [embed_audio(self._embedder, decode_codes(self._codec, part), rate).numpy() for part in parts]
        return np.concatenate(vectors)


def open_spaces(names: SpaceNames, run: LoadedRun) -> list[Space]:
    """The spaces of the setting; without the codec's if it has no latents.

    Raises:
        InputError: As `load_space_embedders` does.
    """
    embedders = load_space_embedders(names, run.device)
    spaces: list[Space] = []
    for name, _ in _parse(names):
        if name == PROMPT:
            spaces.append(PromptSpace(run))
        elif name != CODEC:
            spaces.append(EmbedderSpace(name, embedders[name], run.codec))
        elif run.codec.latents(torch.zeros(1, run.codec.codebooks, 1, dtype=torch.int64)) is not None:
            spaces.append(CodecSpace(run.codec))
    return spaces


def load_space_embedders(names: SpaceNames, device: torch.device) -> dict[str, Embedder]:
    """The embedders that the setting `spaces` names.

    Args:
        names: `prompt`, `codec`, and embedders, each by name or with the place of its weights: {clap: FOLDER}.
        device: The device of the model.

    Raises:
        InputError: A name is unknown or occurs twice, or weights are missing.
    """
    parsed = _parse(names)
    return {
        name: _load(name, source, str(codec_device(device))) for name, source in parsed if name not in (PROMPT, CODEC)
    }


def _parse(names: SpaceNames) -> list[tuple[str, str | None]]:
    """The name of each space and the source of its weights."""
    parsed: list[tuple[str, str | None]] = []
    for entry in names:
        pairs: list[tuple[str, str | None]] = [(entry, None)] if isinstance(entry, str) else [*entry.items()]
        if len(pairs) != 1:
            raise InputError(f"spaces={dict(pairs)}: expected one embedder and its weights, {{EMBEDDER: FOLDER}}")
        parsed += pairs
    known = [PROMPT, CODEC]
    for name, source in parsed:
        if [each for each, _ in parsed].count(name) > 1:
            raise InputError(f"spaces={name}: it is named twice")
        if name in known and source is not None:
            raise InputError(f"spaces={{{name}: {source}}}: {name} has no other weights than the model's")
        if name not in known and name not in EMBEDDERS.names():
            raise InputError(unknown_choice("spaces", name, [*known, *EMBEDDERS.names()], "space"))
    return parsed


@cache
def _load(name: str, source: str | None, device: str) -> Embedder:
    """An embedder; loaded once, because settings are checked before the work."""
    try:
        return load_embedder(name, source, device)
    except InputError as error:
        raise InputError(f"spaces={name}: {error}; {{{name}: FOLDER}} gives the folder with its weights") from error
