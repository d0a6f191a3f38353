"""Tab: one sound whose prompt moves through several sounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from pipeline.common.errors import InputError
from pipeline.evaluation.html_templates import LabeledAudio
from pipeline.webui import components
from pipeline.webui.page import SLIDER_STEP, Page
from pipeline.webui.tab_request import TabRequest
from pipeline.webui.tabs import TABS, Tab

KEYFRAMES = 4


@TABS.register("morph")
class MorphTab(Tab):
    """One sound whose prompt moves from keyframe to keyframe. It plays while it is generated."""

    title = "Morph"
    order = 30
    button = "Morph"
    sounds = 3

    def inputs(self, page: Page) -> list[Any]:
        """The model, how the prompts are mixed, the keyframes (each a time and a sound), and the model's conditions."""
        spacing = min(page.seconds(), page.seconds(self.sounds) / KEYFRAMES)  # the last keyframe is before the end
        run, stops = page.run_dropdown(), list[Any]()
        for i in range(KEYFRAMES):
            with gr.Accordion(f"Keyframe {i + 1}", open=i < 2):
                at = round(i * spacing, 1)
                stops += [
                    gr.Slider(0, page.limits.seconds, at, step=SLIDER_STEP, label="At (seconds)", interactive=i > 0),
                    page.sound_input("Sound", i if i < 2 else None),
                ]
        return [run, page.blend_radio(), *stops, *page.condition_inputs(run)]

    def outputs(self, page: Page) -> list[Any]:
        """The player, the results, and the files to download."""
        return [gr.HTML(), gr.HTML(elem_id="morphed"), page.download()]

    def run(self, request: TabRequest, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Generate the sound. Raises InputError for fewer than two keyframes, or one after the end."""
        (run, blend, *stops), conditions = request.split_conditions(values)
        points = [(float(at or 0), sound) for at, sound in zip(stops[::2], stops[1::2], strict=True) if sound]
        points = sorted(points, key=lambda point: point[0])
        if len(points) < 2:
            raise InputError("a morph moves between sounds: give at least two keyframes")
        last, seconds = points[-1][0], request.controls.seconds
        if last >= seconds:
            raise InputError(f"the last keyframe is at {last:g} s, but the sound ends at {seconds:g} s")
        keyframes = [{"at": at, "prompt": str(request.upload(sound))} for at, sound in points]
        settings = request.settings(run, mode="morph", keyframes=keyframes, blend=blend, conditions=conditions)
        with request.stream(settings) as (player, on_codes):
            yield player, components.note("Generating…"), None
            result = request.generate(settings, on_codes)
        prompts = [LabeledAudio(f"at {at:g} s", s.wav) for (at, _), s in zip(points, result.sources, strict=True)]
        html = components.row("The sound", result.sounds, result.rate, wide=True)
        html += components.row("Keyframes", prompts, result.rate) + components.command(result.command)
        yield gr.skip(), html, request.store(result.files)
