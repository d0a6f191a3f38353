"""Tab: the loss of the codec with different numbers of codebooks.

Letters: K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from pipeline.audio import audio_io, metrics
from pipeline.audio.amplitude import mix_sound
from pipeline.common.errors import InputError
from pipeline.evaluation.html_templates import LabeledAudio
from pipeline.webui import components
from pipeline.webui.page import Page
from pipeline.webui.tab_request import TabRequest
from pipeline.webui.tabs import TABS, Tab

COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32)  # numbers of codebooks to choose from


@TABS.register("codec")
class CodecTab(Tab):
    """A sound, encoded and decoded with several numbers of codebooks."""

    title = "Codec"
    order = 40
    button = "Decode"
    has_controls = False

    def inputs(self, page: Page) -> list[Any]:
        """The model whose codec is used, the sound, and the numbers of codebooks."""
        maximum = max(codec.codebooks // codec.streams_per_codebook for codec in page.service.codecs.values())
        runs = page.service.loaded_runs.values()
        trained = {loaded.codec.codebooks // loaded.codec.streams_per_codebook for loaded in runs}
        choices = sorted({*(count for count in COUNTS if count <= maximum), *trained})
        selected = sorted({*(count for count in choices if count & (count - 1) == 0), *trained})  # powers of 2
        info = f"The model generates {', '.join(map(str, sorted(trained)))}. Its codec limits the quality."
        return [
            page.run_dropdown(),
            page.sound_input("A sound", 0),
            gr.CheckboxGroup([(str(n), n) for n in choices], value=selected, label="Q: codebooks", info=info),
        ]

    def outputs(self, page: Page) -> list[Any]:
        """The results, and the files to download."""
        return [gr.HTML(elem_id="decoded"), page.download("sounds")]

    def run(self, request: TabRequest, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Encode the sound once, and decode it with each number of codebooks."""
        run, sound, counts = values
        request.service.loaded_run(run)
        codec, file = request.service.codecs[run], request.upload(sound)
        streams = codec.streams_per_codebook
        selected = sorted({int(count) for count in counts if 1 <= int(count) <= codec.codebooks // streams})
        if not selected:
            raise InputError("no number of codebooks is selected: select one")
        seconds = request.service.settings.limits.seconds
        wav = audio_io.read(file, duration=seconds, rate=codec.sample_rate, channels=codec.channels)
        request.report(0, "encoding")
        codes = codec.encode_clip(wav)  # [K, T]
        sounds, files = [LabeledAudio("original", wav)], []
        for i, count in enumerate(selected):
            request.report(i / len(selected), f"{count} codebooks")
            decoded = codec.decode_clip(codes[: count * streams])[: len(wav)]
            distance = metrics.log_spectral_distance(mix_sound(wav), mix_sound(decoded))
            label = f"Q = {count} · {count * streams * codec.bandwidth / 1000:g} kbit/s · {distance:.1f} dB away"
            sounds.append(LabeledAudio(label, decoded))
            files.append(request.folder / f"{file.stem}.k{count}.wav")
            audio_io.write(files[-1], decoded, codec.sample_rate)
        text = "dB away: log-spectral distance from the original; 0 means that they are equal."
        yield components.row("", sounds, codec.sample_rate) + components.remark(text), request.store(files)
