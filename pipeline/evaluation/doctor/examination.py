"""What the doctor reads of a dataset: metadata, codes and prompts of many clips, and the sound of some.

Letters: N clips, K codebooks, T frames, S samples, F frequencies, P prompt width.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from pipeline.audio import metrics
from pipeline.audio.amplitude import mix_sound
from pipeline.audio.codecs import codec_of
from pipeline.audio.embedders import embedder_of
from pipeline.common.errors import InputError
from pipeline.data.manifest import Manifest
from pipeline.data.random_clips import sample_clips
from pipeline.data.shard import Sample, ShardInfo, stack_prompts
from pipeline.data.stats import count_codes, count_labels, labels_of
from pipeline.data.storage import Storage
from pipeline.evaluation.doctor.sound_facts import SoundFacts, sound_facts
from pipeline.generation.prompts import decode_codes, embed_audio

MAX_READ = 20_000  # clips
MAX_READ_CODES = 50_000_000  # of all clips that are read: 100 MB
MAX_SHARD_BYTES = 1 << 30  # of the shards that are opened: each is read once, for its checksum
DECODED_CLIPS, DECODED_SECONDS = 64, 300.0  # with clips=auto, whichever is less
NEAR = 0.99  # cosine similarity of prompts, about their mean, of clips that are nearly the same
_ROWS = 1024  # clips that are compared at once


@dataclass(frozen=True)
class ExamineOptions:
    """Which clips are read and decoded, and where codec and embedder are; as in conf/shards.yaml."""

    clips: Literal["auto"] | int = "auto"
    seed: int = 0
    split: str | None = None
    device: str = "cpu"
    codec_weights: str | None = None
    embedder_weights: str | None = None


@dataclass(frozen=True)
class DecodedClip:
    """A clip through the codec.

    Attributes:
        sample: The clip.
        wav: Its sound, [S] or [S, 2].
        sound: Facts about the sound.
        fidelity: The cosine similarity of its prompt, of the original, and the embedding of `wav`; None: not measured.
        pitch_error: Semitones from the label to the pitch of `wav`, NaN without a pitch; None: no label.
    """

    sample: Sample
    wav: np.ndarray
    sound: SoundFacts
    fidelity: float | None
    pitch_error: float | None


@dataclass(frozen=True)
class Twin:
    """A clip of another split that is also in the first: their keys, and the similarity of their prompts."""

    key: str
    other: str
    similarity: float


@dataclass
class Examination:
    """What was read.

    Attributes:
        manifest: The dataset's manifest.
        samples: All clips, or a random part of a large dataset.
        decoded: Some of these through the codec.
        rate: The sample rate of the sounds in Hz.
        floor: The mean similarity of prompts and the reconstructions of other clips; None: not measured.
        left_out: What could not be examined, and why.
    """

    manifest: Manifest
    samples: list[Sample]
    decoded: list[DecodedClip] = field(default_factory=list)
    rate: int = 0
    floor: float | None = None
    left_out: list[str] = field(default_factory=list)

    @property
    def num_clips(self) -> int:
        """The number of clips of the dataset."""
        return sum(map(self.manifest.num_samples, self.manifest.splits))

    @cached_property
    def seconds(self) -> np.ndarray:
        """The duration of each clip that was read: [N]."""
        return np.array([sample.codes.shape[1] for sample in self.samples]) / self.manifest.frame_rate

    @cached_property
    def usage(self) -> np.ndarray:
        """How often each code occurs: int64 [K, codebook size]."""
        usage = np.zeros((self.manifest.codebooks, self.manifest.codec["codebook_size"]), np.int64)
        for sample in self.samples:
            count_codes(usage, sample, self.manifest.path)
        return usage

    @cached_property
    def labels(self) -> dict[str, dict[str, Counter[str]]]:
        """How often each value of each label occurs, by split and label."""
        labels: dict[str, dict[str, Counter[str]]] = {}
        for sample in self.samples:
            count_labels(labels.setdefault(split_of(sample), {}), sample)
        return labels

    @cached_property
    def label_totals(self) -> dict[str, Counter[str]]:
        """How often each value of each label occurs in all splits, by label."""
        totals: dict[str, Counter[str]] = {}
        for labels in self.labels.values():
            for name, counts in labels.items():
                totals.setdefault(name, Counter()).update(counts)
        return dict(sorted(totals.items()))

    @cached_property
    def num_copies(self) -> int:
        """How many clips have exactly the codes of another clip of their split."""
        seen = Counter((split_of(sample), _digest(sample)) for sample in self.samples)
        return sum(count - 1 for count in seen.values())

    @cached_property
    def twins(self) -> list[Twin]:
        """Clips of other splits that are also, or nearly, in the first split, the most similar first."""
        splits = np.array([split_of(sample) for sample in self.samples])
        first = next((name for name in self.manifest.splits if self.manifest.num_samples(name)), "")
        first = "train" if "train" in splits else first
        own, others = np.flatnonzero(splits == first), np.flatnonzero(splits != first)
        if not len(own) or not len(others):
            return []
        prompts = stack_prompts(self.samples).mean(1)  # [N, P]
        prompts -= prompts.mean(0)
        prompts /= np.linalg.norm(prompts, axis=1, keepdims=True).clip(min=1e-6)
        codes = {_digest(self.samples[i]): int(i) for i in own}
        twins = []
        for start in range(0, len(others), _ROWS):
            rows = others[start : start + _ROWS]
            similarities = prompts[rows] @ prompts[own].T
            for i, nearest in zip(rows.tolist(), similarities.argmax(1).tolist(), strict=True):
                identical = codes.get(_digest(self.samples[i]))
                j = int(own[nearest]) if identical is None else identical
                similarity = 1.0 if identical is not None else float(prompts[i] @ prompts[j])
                if similarity >= NEAR:
                    twins.append(Twin(self.samples[i].key, self.samples[j].key, similarity))
        return sorted(twins, key=lambda twin: -twin.similarity)

    @cached_property
    def fidelities(self) -> np.ndarray:
        """The fidelity of each decoded clip, if it was measured: [N]."""
        return np.array([clip.fidelity for clip in self.decoded if clip.fidelity is not None])

    @cached_property
    def pitch_errors(self) -> np.ndarray:
        """The pitch error of each decoded clip with a label: [N]."""
        return np.array([clip.pitch_error for clip in self.decoded if clip.pitch_error is not None])

    @cached_property
    def spectrum(self) -> np.ndarray:
        """The mean spectrum of the decoded clips in dB, from 0 to half the sample rate: [F]."""
        return np.asarray(np.mean([clip.sound.spectrum for clip in self.decoded], axis=0))

    def worst(self, count: int) -> list[DecodedClip]:
        """The clips that the codec changes most, by their fidelity; none if it was not measured."""
        rows = [clip for clip in self.decoded if clip.fidelity is not None]
        return sorted(rows, key=lambda clip: clip.fidelity or 0.0)[:count]


def split_of(sample: Sample) -> str:
    """The split of a clip, as it says itself."""
    return str(sample.metadata.get("split", ""))


def is_pitch(label: object) -> bool:
    """Whether a label is a MIDI note number."""
    return isinstance(label, (int, float)) and 0 <= label <= 127


def _digest(sample: Sample) -> bytes:
    return hashlib.blake2b(sample.codes.tobytes(), digest_size=16).digest()


def examine(store: Storage, options: ExamineOptions, on_status: Callable[[str], None]) -> Examination:
    """Read a dataset, and decode some clips.

    Args:
        store: The dataset.
        options: How many clips are decoded, and where codec and embedder are.
        on_status: Gets a line about each part of the work.

    Raises:
        InputError: The dataset is missing or damaged.
    """
    manifest = Manifest.load(store)
    frames, clips = (sum(map(f, manifest.splits)) for f in (manifest.num_frames, manifest.num_samples))
    most = max(1, MAX_READ_CODES * max(1, clips) // max(1, frames * manifest.codebooks))
    on_status("reading clips")
    some = replace(manifest, splits=_random_shards(manifest, options.seed))
    samples = list(sample_clips(store, some, min(MAX_READ, most), options.seed, options.split))
    result = Examination(manifest, samples)
    if samples:
        _decode(result, options, on_status)
    return result


def _random_shards(manifest: Manifest, seed: int) -> dict[str, list[ShardInfo]]:
    """The shards of each split, of a large dataset only some: one at least, and `MAX_SHARD_BYTES` in all."""
    draw = np.random.default_rng(seed)
    share = MAX_SHARD_BYTES / max(1, sum(shard.bytes for shards in manifest.splits.values() for shard in shards))
    return {
        split: [shards[i] for i in sorted(draw.permutation(len(shards))[: max(1, int(share * len(shards)))])]
        for split, shards in manifest.splits.items()
    }


def _decode(result: Examination, options: ExamineOptions, on_status: Callable[[str], None]) -> None:
    """Decode random clips, embed them, and track their pitch, as far as codec, embedder and tracker are available."""
    manifest = result.manifest
    try:
        codec = codec_of(manifest.codec, manifest.codebooks, options.codec_weights).open(options.device)
        manifest.check_codec(codec.identity, manifest.codebooks)
    except InputError as error:
        result.left_out.append(f"loudness, silence, clipping, bandwidth and the codec's ceiling: {error}")
        return
    count = options.clips
    if count == "auto":
        count = max(1, min(DECODED_CLIPS, int(DECODED_SECONDS / max(1e-3, float(result.seconds.mean())))))
    rows = np.random.default_rng(options.seed).choice(len(result.samples), len(result.samples), replace=False)
    samples = [result.samples[i] for i in sorted(rows[:count].tolist()) if result.samples[i].codes.shape[1]]
    if not samples:
        return
    on_status(f"decoding {len(samples)} clips")
    wavs = decode_codes(codec, [torch.from_numpy(sample.codes.astype(np.int64)) for sample in samples])
    result.rate = codec.sample_rate
    fidelities = _measure_fidelity(result, samples, wavs, options, on_status)
    errors = _measure_pitch(result, samples, wavs, on_status)
    result.decoded = [
        DecodedClip(sample, wav, sound_facts(wav, result.rate), fidelity, error)
        for sample, wav, fidelity, error in zip(samples, wavs, fidelities, errors, strict=True)
    ]


def _measure_fidelity(
    result: Examination,
    samples: Sequence[Sample],
    wavs: Sequence[np.ndarray],
    options: ExamineOptions,
    on_status: Callable[[str], None],
) -> Sequence[float | None]:
    """The fidelity of each clip; None for all without the embedder of the dataset."""
    on_status(f"embedding {len(wavs)} clips")
    try:
        embedder = embedder_of(result.manifest.embedder, options.embedder_weights).load(options.device)
        result.manifest.check_embedder(embedder.identity)
    except InputError as error:
        result.left_out.append(f"prompt fidelity: {error}")
        return [None] * len(samples)
    embeddings = embed_audio(embedder, wavs, result.rate).numpy()
    prompts = stack_prompts(samples).mean(1)
    if not np.isfinite(prompts).all():
        result.left_out.append("prompt fidelity: prompts have values that are not finite; see pipeline.shards verify")
        return [None] * len(samples)
    if len(samples) > 1:
        result.floor = float(metrics.mismatched_similarity(prompts, embeddings).mean())
    fidelities: list[float] = metrics.cosine(prompts, embeddings).tolist()
    return fidelities


def _measure_pitch(
    result: Examination, samples: Sequence[Sample], wavs: Sequence[np.ndarray], on_status: Callable[[str], None]
) -> list[float | None]:
    """The pitch error of each clip; None for those without a label."""
    labels = [label if is_pitch(label := labels_of(sample).get("pitch")) else None for sample in samples]
    if not any(label is not None for label in labels):
        return [None] * len(samples)
    on_status(f"tracking the pitch of {len(wavs)} clips")
    try:
        return [
            None if label is None else metrics.pitch(mix_sound(wav), result.rate) - label
            for wav, label in zip(wavs, labels, strict=True)
        ]
    except InputError as error:
        result.left_out.append(f"pitch: {error}")
        return [None] * len(samples)
