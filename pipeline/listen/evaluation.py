"""A model measured on clips that it has not seen: its loss, and what it makes of their prompts.

Letters: N clips, K codebooks, T frames, P prompt width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.draw import draw
from pipeline.cache.shard import Sample
from pipeline.cache.stream import Split
from pipeline.errors import InputError
from pipeline.listen import figures
from pipeline.listen.figures import figure
from pipeline.listen.instrument import Instrument
from pipeline.listen.prompts import decode, embed
from pipeline.lm.choice import Sampling
from pipeline.lm.sampling import generate
from pipeline.sound import audio


@dataclass(frozen=True)
class Voice:
    """One sound for each of N clips: generations at one temperature, or the codec's reconstructions."""

    name: str
    wavs: list[np.ndarray]
    embeddings: np.ndarray  # [N, P]
    pitches: np.ndarray | None  # [N], of the clips that have a label


def check_cache(split: Split, instrument: Instrument) -> None:
    """Raises InputError, naming what differs, unless the cache is of the model's codec and embedder."""
    if not len(split):
        raise InputError(
            f"{split.manifest.where} has no clips in {split.name}: it has {', '.join(split.manifest.splits)}"
        )
    split.manifest.check_codec(instrument.model.config.codec, instrument.model.config.codebooks)
    split.manifest.check_embedder(instrument.model.config.embedder)
    split.codebooks = instrument.model.config.codebooks


def most_frames(instrument: Instrument) -> int:
    """The longest clip that the model's position table takes."""
    pattern, positions, ends = (
        instrument.model.pattern,
        instrument.model.config.positions,
        instrument.model.config.end_of_audio,
    )
    low, high = 0, positions
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if pattern.length(middle + ends) <= positions else (low, middle - 1)
    return low


def clips(split: Split, n: int, seed: int, instrument: Instrument, frames: int) -> list[tuple[Sample, Tensor]]:
    """n clips drawn at random, with their codes [K, T <= frames]."""
    K = instrument.model.config.codebooks
    drawn = draw(split.store, split.manifest, n, seed, split.name)
    return [(sample, torch.from_numpy(sample.codes[:K, :frames].astype(np.int64))) for sample in drawn]


def play(
    instrument: Instrument,
    samples: list[tuple[Sample, Tensor]],
    temperatures: Sequence[float],
    sampling: Sampling,
    seed: int,
    batch: int,
) -> dict[float, list[Tensor]]:
    """Codes generated from each clip's prompt at each temperature, as long as the clip: lists of [K, T]."""
    prompts = torch.from_numpy(np.stack([sample.prompt for sample, _ in samples])).float()
    lengths = [codes.shape[1] for _, codes in samples]
    jobs = [(t, i) for t in temperatures for i in range(len(samples))]
    jobs.sort(key=lambda job: -lengths[job[1]])  # those of a length together
    made: dict[tuple[float, int], Tensor] = {}
    for first in range(0, len(jobs), batch):
        part = jobs[first : first + batch]
        codes, ends = generate(
            instrument.player,
            prompts[[i for _, i in part]],
            max(lengths[i] for _, i in part),
            [replace(sampling, temperature=t) for t, _ in part],
            [seed + i for _, i in part],
        )
        for (t, i), row, end in zip(part, codes.cpu(), ends.tolist(), strict=True):
            made[t, i] = row[:, : min(end, lengths[i])]
    return {t: [made[t, i] for i in range(len(samples))] for t in temperatures}


def voice(name: str, codes: Sequence[Tensor], instrument: Instrument, labels: np.ndarray | None) -> Voice:
    """Decode, embed and track codes [K, T], one a clip. labels: [N], NaN where a clip has no pitch."""
    rate = instrument.codec.sample_rate
    wavs = [wav if len(wav) else np.zeros(instrument.codec.hop, np.float32) for wav in decode(instrument.codec, codes)]
    embeddings = embed(instrument.embedder, wavs).numpy()
    tracked = None
    if labels is not None:
        tracked = figures.pitches([wav for wav, label in zip(wavs, labels, strict=True) if label == label], rate)
    return Voice(name, wavs, embeddings, tracked)


def labels_of(samples: list[tuple[Sample, Tensor]]) -> np.ndarray | None:
    """The pitch of each clip, NaN where its labels have none: [N]; None where no clip has one."""
    found = [sample.info.get("labels", {}).get("pitch") for sample, _ in samples]
    pitches = np.array([np.nan if pitch is None else float(pitch) for pitch in found])
    return None if np.isnan(pitches).all() else pitches


def measured(
    spoken: Voice, prompts: np.ndarray, labels: np.ndarray | None, resamples: int, seed: int
) -> dict[str, Any]:
    """The figures of a voice, as JSON."""
    told: dict[str, Any] = {"fidelity": figure(figures.fidelity(prompts, spoken.embeddings), resamples, seed).told()}
    if labels is not None and spoken.pitches is not None:
        known = labels[~np.isnan(labels)]
        for name, octaves in (("pitch", False), ("pitch_class", True)):
            told[name] = figure(figures.right(spoken.pitches, known, octaves), resamples, seed).told()
    return told


def floors(best: Voice, real: Voice, prompts: np.ndarray, labels: np.ndarray | None, resamples: int, seed: int) -> dict:
    """What a clip that has nothing to do with its prompt reaches: other clips' sounds, other clips' labels."""
    if len(prompts) < 2:
        return {}
    told = {"fidelity": figure(figures.floor(prompts, real.embeddings), resamples, seed).told()}
    if labels is not None and best.pitches is not None:
        known = labels[~np.isnan(labels)]
        if len(known) > 1:
            for name, octaves in (("pitch", False), ("pitch_class", True)):
                told[name] = figure(figures.chance(best.pitches, known, octaves), resamples, seed).told()
    return told


def write_wavs(out: Path, samples: list[tuple[Sample, Tensor]], voices: Sequence[Voice], rate: int) -> None:
    """{key}.{voice}.wav for every clip and voice."""
    for spoken in voices:
        for (sample, _), wav in zip(samples, spoken.wavs, strict=True):
            audio.write(out / f"{sample.key}.{spoken.name}.wav", wav, rate)


def write_json(path: Path, told: dict[str, Any]) -> None:
    """Write figures, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    part.replace(path)
