"""Clips through the codec at each bit rate."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.audio.codecs import codec_of
from pipeline.audio.codecs.base import Codec
from pipeline.audio.recordings import load_source_audio
from pipeline.evaluation.sections import SECTIONS, AudioRow, LabeledAudio, ReportInputs, Section, SectionContent


@SECTIONS.register("bit_rate")
class BitRate(Section):
    """Each clip through the codec with 1, 2, 4... codebooks: from the original recording if there is one.

    Otherwise from the codes in the dataset, and then with at most as many codebooks as these have.
    """

    title = "Bit rate"
    order = 20

    def build(self, inputs: ReportInputs) -> SectionContent:
        """A row for each clip."""
        run, settings, generated = inputs.run, inputs.settings, inputs.run.model.config.codebooks
        codebooks = inputs.split.manifest.codebooks if settings.corpus_root is None else run.codec.max_codebooks
        codec = codec_of(run.codec.identity, codebooks, settings.codec_weights).open(run.codec.device)
        rows = []
        for clip in inputs.clips:
            original = load_source_audio(settings.corpus_root, clip.sample.metadata, codec.sample_rate, codec.channels)
            if original is None:
                codes = torch.from_numpy(clip.sample.codes.astype(np.int64))
            else:
                codes = codec.encode_clip(original)
            sounds = [] if original is None else [LabeledAudio("recording", original)]
            for streams in (count * codec.streams_per_codebook for count in settings.codebooks):
                if streams <= len(codes):
                    sounds.append(LabeledAudio(_label(codec, streams, generated), codec.decode_clip(codes[:streams])))
            rows.append(AudioRow(clip.sample.key, sounds))
        text = (
            f"The same clips of {inputs.split.split} through {codec.name} with more and more codebooks. The model "
            f"generates {generated // codec.streams_per_codebook}: it cannot sound better than the codec does with "
            "this number."
        )
        return SectionContent(text, rows=rows)


def _label(codec: Codec, streams: int, generated: int) -> str:
    codebooks = streams // codec.streams_per_codebook
    noun = "codebook" if codebooks == 1 else "codebooks"
    note = ", the model's" if streams == generated else ""
    return f"{streams * codec.bandwidth / 1000:g} kbit/s, {codebooks} {noun}{note}"
