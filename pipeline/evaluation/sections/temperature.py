"""Generations at each temperature."""

from __future__ import annotations

from pipeline.evaluation.generations import generate_all
from pipeline.evaluation.sections import SECTIONS, AudioRow, LabeledAudio, ReportInputs, Section, SectionContent
from pipeline.generation.prompts import decode_codes


@SECTIONS.register("temperature")
class Temperature(Section):
    """Generations from each clip's prompt at every temperature."""

    title = "Temperature"
    order = 30

    def build(self, inputs: ReportInputs) -> SectionContent:
        """A row for each clip."""
        run, settings = inputs.run, inputs.settings
        codes = generate_all(run, inputs.clips, settings.temperatures, settings.sampling, settings.seed)
        sounds = {"prompt, through the codec": decode_codes(run.codec, [clip.codes for clip in inputs.clips])}
        sounds |= {f"temperature {t:g}": decode_codes(run.codec, clip_codes) for t, clip_codes in codes.items()}
        rows = [
            AudioRow(clip.sample.key, [LabeledAudio(label, wavs[i]) for label, wavs in sounds.items()])
            for i, clip in enumerate(inputs.clips)
        ]
        text = (
            "Generated from the embedding of a clip that the model was not trained on, with the same random numbers at "
            "every temperature. If it is too low, codes repeat in loops; if it is too high, they leave the prompt."
        )
        return SectionContent(text, rows=rows)
