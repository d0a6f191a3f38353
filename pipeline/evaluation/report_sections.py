"""The sections of the report: the article's studies, repeated on a run.

Letters: K codebooks, T frames, S samples, P prompt width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.audio.codecs import load_codec
from pipeline.audio.codecs.base import Codec
from pipeline.audio.recordings import load_source_audio
from pipeline.common.errors import InputError
from pipeline.common.settings import require_min
from pipeline.data.dataset import ShardedDataset
from pipeline.evaluation.evaluator import generate_all
from pipeline.evaluation.reference_clips import ReferenceClip, check_dataset, max_frames, sample_reference_clips
from pipeline.generation import interpolation
from pipeline.generation.generator import generate
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.prompts import decode_codes, find_prompts
from pipeline.generation.request import read_prompts
from pipeline.generation.settings import SamplingSettings, sampling_settings

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class LabeledAudio:
    """A sound, wav [S], and the label below it."""

    label: str
    wav: np.ndarray


@dataclass(frozen=True)
class AudioRow:
    """Sounds next to each other."""

    title: str
    sounds: list[LabeledAudio]


@dataclass(frozen=True)
class ReportSection:
    """A section of the report."""

    title: str
    text: str
    rows: list[AudioRow] = field(default_factory=list)


def build_sections(
    settings: Mapping[str, Any], run: LoadedRun, on_status: Callable[[str], None]
) -> list[ReportSection]:
    """All sections for which `conf/report.yaml` asks.

    Raises:
        InputError: The dataset, the clips or the prompts cannot be used.
    """
    require_min(1, settings, "n", "codebooks", "generations_per_prompt")
    require_min(2, settings, "steps")
    require_min(0, settings, "temperatures", "seed", "num_interpolations", "crossfade_seconds")
    split = ShardedDataset(settings["shards"], settings["split"])
    check_dataset(split, run)
    clips = sample_reference_clips(split, settings["n"], settings["seed"], run, max_frames(run))
    if settings["num_interpolations"] and len(clips) < 2:
        raise InputError(f"n={len(clips)}: an interpolation needs two clips; give n=2 or more, or num_interpolations=0")
    on_status("bit rates")
    sections = [bitrate_section(settings, run, split, clips)]
    on_status("temperatures")
    sections.append(temperature_section(settings, run, clips))
    if settings["prompts"] is not None:
        on_status("external prompts")
        sections.append(external_prompt_section(settings, run, max(clip.codes.shape[1] for clip in clips)))
    if settings["num_interpolations"]:
        on_status("interpolations")
        sections.append(interpolation_section(settings, run, clips))
    return sections


def bitrate_section(
    settings: Mapping[str, Any], run: LoadedRun, split: ShardedDataset, clips: Sequence[ReferenceClip]
) -> ReportSection:
    """Each clip through the codec with 1, 2, 4... codebooks: from the original recording if there is one.

    Otherwise from the codes in the dataset, and then with at most as many codebooks as these have.
    """
    rows = []
    codec: Codec | None = None  # with all codebooks that are available
    for clip in clips:
        original = load_source_audio(settings["corpus_root"], clip.sample.metadata, run.codec.sample_rate)
        available = split.manifest.codebooks if original is None else None
        codec = codec or _load_codec(run, available, settings["codec_weights"])
        if original is None:
            codes = torch.from_numpy(clip.sample.codes.astype(np.int64))[None]
        else:
            codes = codec.encode(torch.from_numpy(original)[None, None])
        sounds = [] if original is None else [LabeledAudio("recording", original)]
        for count in settings["codebooks"]:
            if count <= codes.shape[1]:
                wav = codec.decode_clip(codes[0, :count])
                sounds.append(LabeledAudio(_bitrate_label(codec, count, run), wav))
        rows.append(AudioRow(clip.sample.key, sounds))
    text = (
        f"The same clips of {split.split} through {run.codec.name} with more and more codebooks. The model generates "
        f"{run.model.config.codebooks}: it cannot sound better than the codec does with this number."
    )
    return ReportSection("Bit rate", text, rows)


def _bitrate_label(codec: Codec, codebooks: int, run: LoadedRun) -> str:
    noun = "codebook" if codebooks == 1 else "codebooks"
    note = ", the model's" if codebooks == run.model.config.codebooks else ""
    return f"{codebooks * codec.bandwidth / 1000:g} kbit/s, {codebooks} {noun}{note}"


def _load_codec(run: LoadedRun, codebooks: int | None, codec_weights: str | None) -> Codec:
    """The run's codec with another number of codebooks; None: all that it has."""
    return load_codec(run.codec.name, codebooks or run.codec.max_codebooks, codec_weights, run.device)


def temperature_section(settings: Mapping[str, Any], run: LoadedRun, clips: Sequence[ReferenceClip]) -> ReportSection:
    """Generations from each clip's prompt at every temperature."""
    sampling, batch = sampling_settings(**settings["sampling"]), run.best_batch(max(c.codes.shape[1] for c in clips))
    codes = generate_all(run, clips, settings["temperatures"], sampling, settings["seed"], batch)
    reconstructions = decode_codes(run.codec, [clip.codes for clip in clips])
    wavs = {temperature: decode_codes(run.codec, clip_codes) for temperature, clip_codes in codes.items()}
    rows = []
    for i, clip in enumerate(clips):
        sounds = [LabeledAudio("prompt, through the codec", reconstructions[i])]
        sounds += [LabeledAudio(f"temperature {temperature:g}", each[i]) for temperature, each in wavs.items()]
        rows.append(AudioRow(clip.sample.key, sounds))
    text = (
        "Generated from the embedding of a clip that the model was not trained on, with the same random numbers at "
        "every temperature. If it is too low, codes repeat in loops; if it is too high, they leave the prompt."
    )
    return ReportSection("Temperature", text, rows)


def external_prompt_section(settings: Mapping[str, Any], run: LoadedRun, frames: int) -> ReportSection:
    """Generations from sound files that are not in the corpus."""
    sampling = sampling_settings(**settings["sampling"])
    seed, count = settings["seed"], settings["generations_per_prompt"]
    rows: list[AudioRow] = []
    skipped: list[str] = []
    prompts = read_prompts(find_prompts(settings["prompts"]), settings["prompt_seconds"], run, skipped)
    for line in skipped:
        log.warning("prompts=%s: skipped %s", settings["prompts"], line)
    for name, source, vector in prompts:
        wavs = _generate_wavs(run, vector.expand(count, -1), frames, sampling, [seed + i for i in range(count)])
        generations = [LabeledAudio(f"generation {i + 1}", wav) for i, wav in enumerate(wavs)]
        rows.append(AudioRow(name, [LabeledAudio("prompt", source.wav), *generations]))
    return ReportSection(
        "External prompts", f"Your own sounds, at temperature {settings['sampling']['temperature']}.", rows
    )


def interpolation_section(settings: Mapping[str, Any], run: LoadedRun, clips: Sequence[ReferenceClip]) -> ReportSection:
    """Interpolations from one clip's prompt to another's."""
    rate, sampling, rows = run.codec.sample_rate, sampling_settings(**settings["sampling"]), []
    for i in range(settings["num_interpolations"]):
        ends = [clips[(2 * i + j) % len(clips)] for j in (0, 1)]
        prompts = [torch.from_numpy(clip.sample.prompt.astype(np.float32)) for clip in ends]
        path = torch.stack(interpolation.interpolation_path(prompts, settings["steps"], settings["blend"]))
        wavs = _generate_wavs(run, path, ends[0].codes.shape[1], sampling, [settings["seed"]] * len(path))
        first, last = decode_codes(run.codec, [clip.codes for clip in ends])
        joined = interpolation.crossfade(wavs, round(settings["crossfade_seconds"] * rate))
        sounds = [
            LabeledAudio("from", first),
            LabeledAudio(f"{settings['steps']} interpolated clips", joined),
            LabeledAudio("to", last),
        ]
        rows.append(AudioRow(" → ".join(clip.sample.key for clip in ends), sounds))
    text = f"Each clip is generated from an interpolated prompt ({settings['blend']}), with the same random numbers."
    return ReportSection("Interpolation", text, rows)


def _generate_wavs(
    run: LoadedRun, prompts: Tensor, frames: int, sampling: SamplingSettings, seeds: Sequence[int]
) -> list[np.ndarray]:
    """The sounds [S] generated from prompts [B, P]."""
    codes, lengths = generate(run.engine, prompts, frames, sampling, seeds)
    return decode_codes(run.codec, [row[:, :n] for row, n in zip(codes, lengths.tolist(), strict=True)])
