"""What the listening page lets one hear: the article's studies on one's own model.

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
from pipeline.data.dataloader import ShardedDataset
from pipeline.evaluation.evaluator import ReferenceClip, check_dataset, generate_all, max_frames, sample_reference_clips
from pipeline.generation import interpolation
from pipeline.generation.generator import generate
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.prompts import decode_codes, find_prompts
from pipeline.generation.request import parse_sampling, read_prompts

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class LabeledAudio:
    """wav [S] and what stands below it."""

    label: str
    wav: np.ndarray


@dataclass(frozen=True)
class AudioRow:
    """Sounds side by side."""

    title: str
    sounds: list[LabeledAudio]


@dataclass(frozen=True)
class ReportSection:
    """A section of the page."""

    title: str
    text: str
    rows: list[AudioRow] = field(default_factory=list)


def build_sections(
    settings: Mapping[str, Any], instrument: LoadedRun, say: Callable[[str], None]
) -> list[ReportSection]:
    """All that `conf/report.yaml` asks for. Raises InputError for a cache, clips or prompts that cannot be used."""
    require_min(1, settings, "n", "codebooks", "generations_per_prompt")
    require_min(2, settings, "steps")
    require_min(0, settings, "temperatures", "seed", "num_interpolations", "crossfade_seconds")
    split = ShardedDataset(settings["shards"], settings["split"])
    check_dataset(split, instrument)
    frames = max_frames(instrument)
    clips = sample_reference_clips(split, settings["n"], settings["seed"], instrument, frames)
    if settings["num_interpolations"] and len(clips) < 2:
        raise InputError(f"n={len(clips)}: an interpolation needs two clips; give n=2 or more, or num_interpolations=0")
    say("bit rates")
    found = [bitrate_section(settings, instrument, split, clips)]
    say("temperatures")
    found.append(temperature_section(settings, instrument, clips))
    if settings["prompts"] is not None:
        say("prompts from elsewhere")
        found.append(external_prompt_section(settings, instrument, max(clip.codes.shape[1] for clip in clips)))
    if settings["num_interpolations"]:
        say("interpolations")
        found.append(interpolation_section(settings, instrument, clips))
    return found


def bitrate_section(
    settings: Mapping[str, Any], instrument: LoadedRun, split: ShardedDataset, clips: Sequence[ReferenceClip]
) -> ReportSection:
    """Each clip through the codec with 1, 2, 4... codebooks: from the recording where it is at hand."""
    held, rows = split.manifest.codebooks, []
    whole: Codec | None = None
    for clip in clips:
        original = load_source_audio(settings["corpus_root"], clip.sample.metadata, instrument.codec.sample_rate)
        if original is None:
            codec, codes = instrument.codec, torch.from_numpy(clip.sample.codes.astype(np.int64))[None]
            codec = whole = whole or _with(instrument, held, settings["codec_weights"])
        else:
            codec = whole = whole or _with(instrument, None, settings["codec_weights"])
            codes = codec.encode(torch.from_numpy(original)[None, None])
        counts = [count for count in settings["codebooks"] if count <= codes.shape[1]]
        sounds = [] if original is None else [LabeledAudio("recording", original)]
        for count in counts:
            wav = codec.decode(codes[:, :count])[0, 0].cpu().numpy()
            books = "codebook" if count == 1 else "codebooks"
            used = ", the model's" if count == instrument.model.config.codebooks else ""
            sounds.append(LabeledAudio(f"{count * codec.bandwidth / 1000:g} kbit/s, {count} {books}{used}", wav))
        rows.append(AudioRow(clip.sample.key, sounds))
    text = (
        f"The same clips of {split.split} through {instrument.codec.name} with more and more codebooks. The model "
        f"makes {instrument.model.config.codebooks}: it cannot sound better than the codec does with as many."
    )
    return ReportSection("Bit rate", text, rows)


def _with(instrument: LoadedRun, codebooks: int | None, codec_weights: str | None) -> Codec:
    """The instrument's codec with other codebooks (None: all it has)."""
    count = codebooks or instrument.codec.model.quantizer.n_q
    return load_codec(instrument.codec.name, count, codec_weights, instrument.device)


def temperature_section(
    settings: Mapping[str, Any], instrument: LoadedRun, clips: Sequence[ReferenceClip]
) -> ReportSection:
    """Each clip's prompt at every temperature."""
    sampling, batch = parse_sampling(settings["sampling"]), instrument.best_batch(max(c.codes.shape[1] for c in clips))
    made = generate_all(instrument, clips, settings["temperatures"], sampling, settings["seed"], batch)
    real = decode_codes(instrument.codec, [clip.codes for clip in clips])
    sounds = {t: decode_codes(instrument.codec, codes) for t, codes in made.items()}
    rows = []
    for i, clip in enumerate(clips):
        each = [LabeledAudio(f"temperature {t:g}", wavs[i]) for t, wavs in sounds.items()]
        rows.append(AudioRow(clip.sample.key, [LabeledAudio("prompt, through the codec", real[i]), *each]))
    text = (
        "Generated from the embedding of a clip that the model was not trained on; the same random numbers at every "
        "temperature. Too low and codes run in circles, too high and they leave the prompt."
    )
    return ReportSection("Temperature", text, rows)


def external_prompt_section(settings: Mapping[str, Any], instrument: LoadedRun, frames: int) -> ReportSection:
    """Sound files that are not of the corpus as prompts, some generations each."""
    sampling, seed, takes = parse_sampling(settings["sampling"]), settings["seed"], settings["generations_per_prompt"]
    rows: list[AudioRow] = []
    skipped: list[str] = []
    sources = read_prompts(find_prompts(settings["prompts"]), settings["prompt_seconds"], instrument, skipped)
    for line in skipped:
        log.warning("prompts=%s: skipped %s", settings["prompts"], line)
    for name, source, vector in sources:
        codes, lengths = generate(
            instrument.engine, vector.expand(takes, -1), frames, sampling, [seed + i for i in range(takes)]
        )
        wavs = decode_codes(instrument.codec, [row[:, :n] for row, n in zip(codes, lengths.tolist(), strict=True)])
        rows.append(
            AudioRow(
                name,
                [LabeledAudio("prompt", source.wav), *(LabeledAudio(f"take {i + 1}", w) for i, w in enumerate(wavs))],
            )
        )
    return ReportSection("Prompts from elsewhere", f"Sounds of your own, at temperature {sampling.temperature}.", rows)


def interpolation_section(
    settings: Mapping[str, Any], instrument: LoadedRun, clips: Sequence[ReferenceClip]
) -> ReportSection:
    """Strips of clips on the way from one prompt to another."""
    rate, sampling, rows = instrument.codec.sample_rate, parse_sampling(settings["sampling"]), []
    for i in range(settings["num_interpolations"]):
        ends = [clips[(2 * i + j) % len(clips)] for j in (0, 1)]
        prompts = [torch.from_numpy(clip.sample.prompt.astype(np.float32)) for clip in ends]
        wavs = interpolation_strip(instrument, prompts, ends[0].codes.shape[1], settings, sampling)
        real = decode_codes(instrument.codec, [clip.codes for clip in ends])
        joined = interpolation.crossfade(wavs, round(settings["crossfade_seconds"] * rate))
        sounds = [
            LabeledAudio("from", real[0]),
            LabeledAudio(f"{settings['steps']} clips on the way", joined),
            LabeledAudio("to", real[1]),
        ]
        rows.append(AudioRow(" → ".join(clip.sample.key for clip in ends), sounds))
    text = f"Each clip is made whole from a prompt on the way ({settings['blend']}), with the same random numbers."
    return ReportSection("Interpolation", text, rows)


def interpolation_strip(
    instrument: LoadedRun, prompts: Sequence[Tensor], frames: int, settings: Mapping[str, Any], sampling: Any
) -> list[np.ndarray]:
    """The sounds on the way between prompts [P]."""
    vectors = torch.stack(interpolation.interpolation_path(prompts, settings["steps"], settings["blend"]))
    codes, lengths = generate(instrument.engine, vectors, frames, sampling, [settings["seed"]] * len(vectors))
    return decode_codes(instrument.codec, [row[:, :n] for row, n in zip(codes, lengths.tolist(), strict=True)])
