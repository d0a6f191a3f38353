"""A model measured on clips that it has not seen: its loss, and what it makes of their prompts.

Letters: N clips, K codebooks, T frames, P prompt width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.audio import audio_io
from pipeline.common.errors import InputError, redact_all
from pipeline.common.files import write_atomic
from pipeline.common.settings import require_min
from pipeline.data.dataloader import ShardedDataset, iter_once
from pipeline.data.random_clips import sample_clips
from pipeline.data.shard import Sample
from pipeline.evaluation import metrics
from pipeline.evaluation.losses import measure_losses
from pipeline.evaluation.metrics import bootstrap_mean
from pipeline.generation.generator import generate
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.prompts import decode_codes, embed_audio
from pipeline.generation.request import parse_sampling
from pipeline.generation.sampling import SamplingParams

MAX_REFERENCE_CLIPS = 10_000  # clips at most that the Fréchet distance compares with


@dataclass(frozen=True)
class ReferenceClip:
    """A clip of the cache: its codes [K, T] as the model knows them, and the sound that the codec makes of them."""

    sample: Sample
    codes: Tensor

    @property
    def pitch(self) -> float:
        """Its label, NaN where it has none."""
        found = self.sample.metadata.get("labels", {}).get("pitch")
        return float("nan") if found is None else float(found)


@dataclass(frozen=True)
class AudioSet:
    """One sound for each of N clips: generations at one temperature, or the codec's reconstructions."""

    name: str
    codes: list[np.ndarray]  # [K, T] each
    wavs: list[np.ndarray]
    embeddings: np.ndarray  # [N, P]
    pitches: np.ndarray | None  # of the clips that have a label


@dataclass(frozen=True)
class Evaluation:
    """All that was measured, as `evaluate.json` holds it, and all that was heard."""

    results: dict[str, Any]
    clips: list[ReferenceClip]
    audio_sets: list[AudioSet]


def evaluate(settings: Mapping[str, Any], instrument: LoadedRun, say: Callable[[str], None]) -> Evaluation:
    """Measure what `conf/evaluate.yaml` describes; say(line) tells what is being done.

    Raises InputError for numbers that measure nothing, and for a cache that does not fit the model.
    """
    require_min(1, settings, "n", "resamples", "batch")
    require_min(0, settings, "temperatures", "seed")
    sampling, seed, resamples = parse_sampling(settings["sampling"]), settings["seed"], settings["resamples"]
    valid, train = (ShardedDataset(settings["shards"], settings[kind]) for kind in ("split", "baseline"))
    for split in (valid, train):
        check_dataset(split, instrument)
    frames = max_frames(instrument)
    say(f"the loss over {len(valid)} clips of {settings['split']}")
    losses = measure_losses(instrument.model, valid, train, frames, instrument.device)
    clips = sample_reference_clips(valid, settings["n"], seed, instrument, frames)
    prompts = np.stack([clip.sample.prompt for clip in clips]).astype(np.float32)
    labels = np.array([clip.pitch for clip in clips])
    wanted = None if settings["pitch"] is False or np.isnan(labels).all() else labels
    say(f"{len(clips)} clips at {len(settings['temperatures'])} temperatures")
    longest = max(clip.codes.shape[1] for clip in clips)
    batch = instrument.best_batch(longest) if settings["batch"] == "auto" else settings["batch"]
    made = generate_all(instrument, clips, settings["temperatures"], sampling, seed, batch)
    say("their sounds")
    real = decode_and_embed("codec", [clip.codes for clip in clips], instrument, wanted)
    voices = {f"{t:g}": decode_and_embed(f"t{t:g}", codes, instrument, wanted) for t, codes in made.items()}
    reference = np.concatenate(
        [b.prompts.numpy() for b in islice(iter_once(valid, 256), -(-MAX_REFERENCE_CLIPS // 256))]
    )
    told = {
        "loss": losses.to_dict(instrument.codec.frame_rate),
        "temperatures": {
            t: compute_metrics(spoken, real, prompts, reference, wanted, resamples, seed)
            for t, spoken in voices.items()
        },
        "ceiling": compute_metrics(real, real, prompts, reference, wanted, resamples, seed),
        "floor": baseline_metrics(next(iter(voices.values())), real, prompts, wanted, resamples, seed),
        "distance": {"embedding": instrument.embedder.identity, "reference": settings["split"], "n": len(reference)},
        "settings": {"n": len(clips), **{key: value for key, value in settings.items() if key != "n"}},
        **instrument.identity,
    }
    return Evaluation(told, clips, [real, *voices.values()])


def check_dataset(split: ShardedDataset, instrument: LoadedRun) -> None:
    """Raises InputError, naming what differs, unless the cache is of the model's codec and embedder."""
    config, manifest = instrument.model.config, split.manifest
    if not len(split):
        raise InputError(f"{manifest.path} has no clips in {split.split}: it has {', '.join(manifest.splits)}")
    manifest.check_codec(config.codec, config.codebooks)
    manifest.check_embedder(config.embedder)
    split.codebooks = config.codebooks


def max_frames(instrument: LoadedRun) -> int:
    """The longest clip that the model's position table takes, or that it was trained on where that is known."""
    config, pattern = instrument.model.config, instrument.model.pattern
    low, high = 0, config.positions
    while low < high:
        middle = (low + high + 1) // 2
        fits = pattern.num_steps(middle + config.end_of_audio) <= config.positions
        low, high = (middle, high) if fits else (low, middle - 1)
    return min(low, instrument.trained_frames or low)


def sample_reference_clips(
    split: ShardedDataset, n: int, seed: int, instrument: LoadedRun, frames: int
) -> list[ReferenceClip]:
    """n clips drawn at random, cut to `frames`. Raises InputError for none."""
    if n < 1:
        raise InputError(f"n={n}: give 1 or more")
    K = instrument.model.config.codebooks
    drawn = sample_clips(split.store, split.manifest, n, seed, split.split)
    return [ReferenceClip(sample, torch.from_numpy(sample.codes[:K, :frames].astype(np.int64))) for sample in drawn]


def generate_all(
    instrument: LoadedRun,
    clips: Sequence[ReferenceClip],
    temperatures: Sequence[float],
    sampling: SamplingParams,
    seed: int,
    batch: int,
) -> dict[float, list[Tensor]]:
    """Codes generated from each clip's prompt at each temperature, as long as the clip: lists of [K, T]."""
    prompts = torch.from_numpy(np.stack([clip.sample.prompt for clip in clips])).float()
    lengths = [clip.codes.shape[1] for clip in clips]
    jobs = [(t, i) for t in temperatures for i in range(len(clips))]
    jobs.sort(key=lambda job: -lengths[job[1]])  # those of a length together
    made: dict[tuple[float, int], Tensor] = {}
    for first in range(0, len(jobs), batch):
        part = jobs[first : first + batch]
        codes, ends = generate(
            instrument.engine,
            prompts[[i for _, i in part]],
            max(lengths[i] for _, i in part),
            [replace(sampling, temperature=t) for t, _ in part],
            [seed + i for _, i in part],
        )
        for (t, i), row, end in zip(part, codes.cpu(), ends.tolist(), strict=True):
            made[t, i] = row[:, : max(1, min(end, lengths[i]))]
    return {t: [made[t, i] for i in range(len(clips))] for t in temperatures}


def decode_and_embed(name: str, codes: Sequence[Tensor], instrument: LoadedRun, labels: np.ndarray | None) -> AudioSet:
    """Decode, embed and track codes [K, T], one a clip. labels: [N], NaN where a clip has no pitch."""
    wavs = decode_codes(instrument.codec, codes)
    embeddings = embed_audio(instrument.embedder, wavs).numpy()
    tracked = None
    if labels is not None:
        heard = [wav for wav, label in zip(wavs, labels, strict=True) if not np.isnan(label)]
        tracked = metrics.track_pitches(heard, instrument.codec.sample_rate)
    return AudioSet(name, [clip.numpy() for clip in codes], wavs, embeddings, tracked)


def compute_metrics(
    spoken: AudioSet,
    real: AudioSet,
    prompts: np.ndarray,
    reference: np.ndarray,
    labels: np.ndarray | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The figures of a voice, as JSON. real: the codec's reconstructions; reference: embeddings of real clips."""

    def share(values: Any) -> dict[str, Any]:
        return bootstrap_mean(np.asarray(list(values)), resamples, seed).to_dict()

    told = {"fidelity": share(metrics.fidelity(prompts, spoken.embeddings))}
    if labels is not None and spoken.pitches is not None:
        known = labels[~np.isnan(labels)]
        told["pitch"] = share(metrics.pitch_correct(spoken.pitches, known))
        told["pitch_class"] = share(metrics.pitch_correct(spoken.pitches, known, octaves=True))
    if len(prompts) > 1:
        told["distance"] = {"mean": metrics.frechet(spoken.embeddings, reference)}
        told["different"] = {"mean": metrics.vendi_score(spoken.embeddings)}
    told["silent"] = share(map(metrics.falls_silent, spoken.wavs, real.wavs))
    told["looping"] = share(map(metrics.is_looping, spoken.codes))
    return told


def baseline_metrics(
    some: AudioSet, real: AudioSet, prompts: np.ndarray, labels: np.ndarray | None, resamples: int, seed: int
) -> dict[str, Any]:
    """What has nothing to do with its prompt reaches: other clips' sounds, other clips' labels."""
    if len(prompts) < 2:
        return {}
    told = {
        "fidelity": bootstrap_mean(metrics.mismatched_similarity(prompts, real.embeddings), resamples, seed).to_dict()
    }
    if labels is not None and some.pitches is not None and len(some.pitches) > 1:
        known = labels[~np.isnan(labels)]
        told["pitch"] = bootstrap_mean(metrics.pitch_chance(some.pitches, known), resamples, seed).to_dict()
        told["pitch_class"] = bootstrap_mean(
            metrics.pitch_chance(some.pitches, known, octaves=True), resamples, seed
        ).to_dict()
    return told


def write_evaluation(found: Evaluation, out: Path, rate: int) -> None:
    """{clip}.{voice}.wav for every clip and voice, and evaluate.json last."""
    for spoken in found.audio_sets:
        for clip, wav in zip(found.clips, spoken.wavs, strict=True):
            audio_io.write(out / f"{clip.sample.key}.{spoken.name}.wav", wav, rate)
    write_json(out / "evaluate.json", found.results)


def write_json(path: Path, told: dict[str, Any]) -> None:
    """Write figures, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(redact_all(told), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
