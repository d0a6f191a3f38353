"""The generations that are nearest to a training clip, each beside this clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue, TypeAdapter, ValidationError

from pipeline.audio import audio_io
from pipeline.common.errors import InputError
from pipeline.data.dataset import ShardedDataset
from pipeline.data.random_clips import sample_clips
from pipeline.evaluation.analyses.memorization import NAME, Pair
from pipeline.evaluation.reference_clips import max_frames
from pipeline.evaluation.sections import SECTIONS, AudioRow, LabeledAudio, ReportInputs, Section, SectionContent
from pipeline.generation.prompts import decode_codes

_PAIRS = TypeAdapter(list[Pair])


@SECTIONS.register("memorization")
class NearestTrainingClips(Section):
    """The pairs that the analysis recorded: files of pipeline.evaluate, and clips of the dataset."""

    title = "Nearest training clips"
    order = 35

    def build(self, inputs: ReportInputs) -> SectionContent | None:
        """A row for each pair whose file and clip exist; None if there is none."""
        result = inputs.analysis(NAME)
        if result is None:
            return None
        codec, folder = inputs.run.codec, Path(inputs.settings.evaluation).parent
        pairs = _parse_pairs(result.details.get("pairs"))
        clips = _decode_clips(inputs, str(result.details.get("baseline")), {pair.training_clip for pair in pairs})
        rows = []
        for pair in pairs:
            path = folder / pair.file
            if pair.training_clip not in clips or pair.file != path.name:
                continue
            try:
                wav = audio_io.read(path, rate=codec.sample_rate, channels=codec.channels)
            except audio_io.AudioError:  # a file that was removed, moved or damaged
                continue
            label = f"training clip with {100 * pair.equal_codes:.0f} % of its codes: {pair.training_clip}"
            generated = f"generated; nearest embedding: {pair.nearest_embedding}, cosine {pair.cosine:.2f}"
            sounds = [LabeledAudio(generated, wav), LabeledAudio(label, clips[pair.training_clip])]
            rows.append(AudioRow(pair.file, sounds))
        text = f"{result.text} Here are the generations with the most codes of one training clip, beside this clip."
        return SectionContent(text, rows=rows) if rows else None


def _parse_pairs(value: JsonValue) -> list[Pair]:
    """The pairs in the result of the analysis; none if they are not those that it writes."""
    try:
        return _PAIRS.validate_python(value)
    except ValidationError:
        return []


def _decode_clips(inputs: ReportInputs, baseline: str, keys: set[str]) -> dict[str, np.ndarray]:
    """The sounds of training clips by key, as long as those that the model generates."""
    run, codes = inputs.run, {}
    try:
        split = ShardedDataset(inputs.settings.shards, baseline)
        for sample in sample_clips(split.store, split.manifest, len(split) if keys else 0, 0, baseline):
            if sample.key in keys:
                clip = sample.codes[: run.model.config.codebooks, : max_frames(run)]
                codes[sample.key] = torch.from_numpy(clip.astype(np.int64))
            if len(codes) == len(keys):
                break
    except InputError:  # the report is of another dataset than the evaluation
        return {}
    return dict(zip(codes, decode_codes(run.codec, [*codes.values()]), strict=True))
