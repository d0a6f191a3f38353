"""Evaluation of a model on clips that it was not trained on: its loss, and metrics of sounds from the clips' prompts.

Letters: N clips, K codebooks, T frames, S samples, P prompt width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.common.settings import require_min
from pipeline.data.dataloader import iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.evaluation import metrics
from pipeline.evaluation.losses import measure_losses
from pipeline.evaluation.reference_clips import ReferenceClip, check_dataset, max_frames, sample_reference_clips
from pipeline.generation.generator import generate
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.prompts import decode_codes, embed_audio
from pipeline.generation.settings import SamplingSettings, sampling_settings

MAX_REFERENCE_CLIPS = 10_000  # for the Fréchet distance


@dataclass(frozen=True)
class AudioSet:
    """One sound for each of N clips: generations at one temperature, or the codec's reconstructions.

    Attributes:
        name: "codec", or "t" and the temperature.
        codes: [K, T] each.
        wavs: [S] each.
        embeddings: [N, P].
        pitches: The tracked pitches of the clips that have a pitch label; None if none has.
    """

    name: str
    codes: list[np.ndarray]
    wavs: list[np.ndarray]
    embeddings: np.ndarray
    pitches: np.ndarray | None


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        results: The content of `evaluate.json`.
        clips: The reference clips.
        audio_sets: The codec's reconstructions, then the generations at each temperature.
    """

    results: dict[str, Any]
    clips: list[ReferenceClip]
    audio_sets: list[AudioSet]


@dataclass(frozen=True)
class _References:
    """What the metrics compare generated sounds with.

    Attributes:
        prompts: The prompts of the N clips: float32 [N, P].
        labels: Their pitch labels [N], NaN where a clip has none; None if pitch is not measured.
        reconstructions: The codec's reconstructions of the clips.
        embeddings: Embeddings of up to `MAX_REFERENCE_CLIPS` clips of the split.
        resamples: Bootstrap resamples.
        seed: The seed of the bootstrap.
    """

    prompts: np.ndarray
    labels: np.ndarray | None
    reconstructions: AudioSet
    embeddings: np.ndarray
    resamples: int
    seed: int

    def mean(self, values: Iterable[float] | np.ndarray) -> dict[str, Any]:
        """The mean of one value per clip, with its confidence interval, as JSON."""
        return metrics.bootstrap_mean(np.asarray(list(values)), self.resamples, self.seed).to_dict()


def evaluate(settings: Mapping[str, Any], run: LoadedRun, on_status: Callable[[str], None]) -> Evaluation:
    """Evaluate a model.

    Args:
        settings: Those of conf/evaluate.yaml.
        run: The model.
        on_status: Gets a line about each part of the work.

    Raises:
        InputError: A setting is out of range, or the dataset does not fit the model.
    """
    require_min(1, settings, "n", "resamples", "batch")
    require_min(0, settings, "temperatures", "seed")
    sampling, seed = sampling_settings(**settings["sampling"]), settings["seed"]
    valid, train = (ShardedDataset(settings["shards"], settings[name]) for name in ("split", "baseline"))
    for split in (valid, train):
        check_dataset(split, run)
    frames = max_frames(run)
    on_status(f"loss of {len(valid)} clips of {settings['split']}")
    losses = measure_losses(run.model, valid, train, frames, run.device)
    clips = sample_reference_clips(valid, settings["n"], seed, run, frames)
    prompts = np.stack([clip.sample.prompt for clip in clips]).astype(np.float32)
    pitches = np.array([clip.pitch for clip in clips])
    labels = None if settings["pitch"] is False or np.isnan(pitches).all() else pitches
    on_status(f"generating {len(clips)} clips at {len(settings['temperatures'])} temperatures")
    longest = max(clip.codes.shape[1] for clip in clips)
    batch = run.best_batch(longest) if settings["batch"] == "auto" else settings["batch"]
    codes_by_temperature = generate_all(run, clips, settings["temperatures"], sampling, seed, batch)
    on_status("decoding and embedding")
    reconstructions = decode_and_embed("codec", [clip.codes for clip in clips], run, labels)
    generations = {
        f"{temperature:g}": decode_and_embed(f"t{temperature:g}", codes, run, labels)
        for temperature, codes in codes_by_temperature.items()
    }
    batches = islice(iter_once(valid, 256), -(-MAX_REFERENCE_CLIPS // 256))
    embeddings = np.concatenate([batch.prompts.numpy() for batch in batches])
    references = _References(prompts, labels, reconstructions, embeddings, settings["resamples"], seed)
    results = {
        "loss": losses.to_dict(run.codec.frame_rate),
        "temperatures": {name: compute_metrics(audio, references) for name, audio in generations.items()},
        "ceiling": compute_metrics(reconstructions, references),
        "floor": baseline_metrics(next(iter(generations.values())), references),
        "distance": {"embedding": run.embedder.identity, "reference": settings["split"], "n": len(embeddings)},
        "settings": {"n": len(clips), **{key: value for key, value in settings.items() if key != "n"}},
        **run.identity,
    }
    return Evaluation(results, clips, [reconstructions, *generations.values()])


def generate_all(
    run: LoadedRun,
    clips: Sequence[ReferenceClip],
    temperatures: Sequence[float],
    sampling: SamplingSettings,
    seed: int,
    batch: int,
) -> dict[float, list[Tensor]]:
    """Generate from each clip's prompt at each temperature, as long as the clip.

    Returns:
        By temperature, the codes [K, T] for each clip.
    """
    prompts = torch.from_numpy(np.stack([clip.sample.prompt for clip in clips])).float()
    lengths = [clip.codes.shape[1] for clip in clips]
    order = sorted(range(len(clips)), key=lambda i: -lengths[i])  # so that a batch has clips of similar length
    codes_by_temperature = {}
    for temperature in temperatures:
        own_sampling, codes_by_clip = sampling.model_copy(update={"temperature": temperature}), dict[int, Tensor]()
        for first in range(0, len(order), batch):
            part = order[first : first + batch]
            seeds, frames = [seed + i for i in part], max(lengths[i] for i in part)
            codes, ends = generate(run.engine, prompts[part], frames, own_sampling, seeds)
            for i, row, end in zip(part, codes.cpu(), ends.tolist(), strict=True):
                codes_by_clip[i] = row[:, : max(1, min(end, lengths[i]))]
        codes_by_temperature[temperature] = [codes_by_clip[i] for i in range(len(clips))]
    return codes_by_temperature


def decode_and_embed(name: str, codes: Sequence[Tensor], run: LoadedRun, labels: np.ndarray | None) -> AudioSet:
    """Decode codes [K, T], one per clip, and compute embeddings and pitches.

    labels: [N], NaN where a clip has no pitch; None: pitches are not tracked.
    """
    wavs = decode_codes(run.codec, codes)
    embeddings = embed_audio(run.embedder, wavs, run.codec.sample_rate).numpy()
    pitches = None
    if labels is not None:
        labeled = [wav for wav, label in zip(wavs, labels, strict=True) if not np.isnan(label)]
        pitches = metrics.track_pitches(labeled, run.codec.sample_rate)
    return AudioSet(name, [clip.numpy() for clip in codes], wavs, embeddings, pitches)


def compute_metrics(audio: AudioSet, references: _References) -> dict[str, Any]:
    """The metrics of a set of sounds, as JSON."""
    labels, mean = references.labels, references.mean
    results = {"fidelity": mean(metrics.fidelity(references.prompts, audio.embeddings))}
    if labels is not None and audio.pitches is not None:
        known = labels[~np.isnan(labels)]
        results["pitch"] = mean(metrics.pitch_correct(audio.pitches, known))
        results["pitch_class"] = mean(metrics.pitch_correct(audio.pitches, known, octaves=True))
    if len(references.prompts) > 1:
        results["distance"] = {"mean": metrics.frechet(audio.embeddings, references.embeddings)}
        results["different"] = {"mean": metrics.vendi_score(audio.embeddings)}
    results["silent"] = mean(map(metrics.falls_silent, audio.wavs, references.reconstructions.wavs))
    results["looping"] = mean(map(metrics.is_looping, audio.codes))
    return results


def baseline_metrics(audio: AudioSet, references: _References) -> dict[str, Any]:
    """The metrics of sounds that are unrelated to their prompts: of other clips' sounds and labels, as JSON."""
    labels, mean = references.labels, references.mean
    if len(references.prompts) < 2:
        return {}
    embeddings = references.reconstructions.embeddings
    results = {"fidelity": mean(metrics.mismatched_similarity(references.prompts, embeddings))}
    if labels is not None and audio.pitches is not None and len(audio.pitches) > 1:
        known = labels[~np.isnan(labels)]
        results["pitch"] = mean(metrics.pitch_chance(audio.pitches, known))
        results["pitch_class"] = mean(metrics.pitch_chance(audio.pitches, known, octaves=True))
    return results
