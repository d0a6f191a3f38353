"""Generations from sound files that are not in the corpus."""

from __future__ import annotations

import logging

from pipeline.evaluation.sections import SECTIONS, AudioRow, LabeledAudio, ReportInputs, Section, SectionContent
from pipeline.generation.prompts import find_prompts
from pipeline.generation.request import read_prompts

log = logging.getLogger("pipeline")


@SECTIONS.register("external_prompts")
class ExternalPrompts(Section):
    """Several generations for each sound file of `prompts`; files that cannot be read are skipped and logged."""

    title = "External prompts"
    order = 40

    def check(self, inputs: ReportInputs) -> None:
        """The files exist."""
        find_prompts(inputs.settings.prompts)

    def build(self, inputs: ReportInputs) -> SectionContent | None:
        """A row for each file."""
        run, settings, rows = inputs.run, inputs.settings, []
        skipped: list[str] = []
        if settings.prompts is None:
            return None
        frames = max(clip.codes.shape[1] for clip in inputs.clips)
        seeds = [settings.seed + i for i in range(settings.generations_per_prompt)]
        prompts = read_prompts(find_prompts(settings.prompts), settings.prompt_seconds, run, skipped)
        for line in skipped:
            log.warning("prompts=%s: skipped %s", settings.prompts, line)
        for prompt in prompts:
            wavs = inputs.generate(prompt.vector.expand(len(seeds), -1, -1), frames, seeds)
            generations = [LabeledAudio(f"generation {i + 1}", wav) for i, wav in enumerate(wavs)]
            rows.append(AudioRow(prompt.name, [LabeledAudio("prompt", prompt.source.wav), *generations]))
        temperature = settings.sampling.to_dict()["temperature"]
        return SectionContent(f"Your own sounds, at temperature {temperature}.", rows=rows)
