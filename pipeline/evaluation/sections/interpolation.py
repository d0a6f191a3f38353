"""Interpolations from one clip's prompt to another's."""

from __future__ import annotations

import torch

from pipeline.common.errors import InputError
from pipeline.evaluation.sections import SECTIONS, AudioRow, LabeledAudio, ReportInputs, Section, SectionContent
from pipeline.generation import interpolation
from pipeline.generation.prompts import decode_codes


@SECTIONS.register("interpolation")
class Interpolation(Section):
    """`num_interpolations` sounds of `steps` clips each, joined by crossfades."""

    title = "Interpolation"
    order = 50

    def check(self, inputs: ReportInputs) -> None:
        """There are two clips."""
        if inputs.settings.num_interpolations and len(inputs.clips) < 2:
            raise InputError(
                f"n={len(inputs.clips)}: an interpolation needs two clips; give n=2 or more, or num_interpolations=0"
            )

    def build(self, inputs: ReportInputs) -> SectionContent | None:
        """A row for each interpolation."""
        run, settings, clips, rows = inputs.run, inputs.settings, inputs.clips, []
        overlap = round(settings.crossfade_seconds * run.codec.sample_rate)
        for i in range(settings.num_interpolations):
            ends = [clips[(2 * i + j) % len(clips)] for j in (0, 1)]
            prompts = [torch.from_numpy(clip.sample.prompt_vectors) for clip in ends]
            path = torch.stack(interpolation.interpolation_path(prompts, settings.steps, settings.blend))
            wavs = inputs.generate(path, ends[0].codes.shape[1], [settings.seed] * len(path))
            first, last = decode_codes(run.codec, [clip.codes for clip in ends])
            joined = interpolation.crossfade(wavs, overlap)
            labels = ("from", f"{settings.steps} interpolated clips", "to")
            sounds = [LabeledAudio(label, wav) for label, wav in zip(labels, (first, joined, last), strict=True)]
            rows.append(AudioRow(" → ".join(clip.sample.key for clip in ends), sounds))
        text = f"Each clip is generated from an interpolated prompt ({settings.blend}), with the same random numbers."
        return SectionContent(text, rows=rows) if rows else None
