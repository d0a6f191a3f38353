"""Tab: clips from one prompt to another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from pipeline.audio import audio_io
from pipeline.evaluation.html_templates import LabeledAudio
from pipeline.webui import components
from pipeline.webui.page import Page
from pipeline.webui.tab_request import TabRequest
from pipeline.webui.tabs import TABS, Tab


@TABS.register("interpolate")
class InterpolateTab(Tab):
    """Clips from one prompt to another, each alone and all joined."""

    title = "Interpolate"
    order = 20
    button = "Interpolate"

    def inputs(self, page: Page) -> list[Any]:
        """The model, both prompts, the number of clips, how the prompts are mixed, and the model's conditions."""
        run = page.run_dropdown()
        return [
            run,
            page.sound_input("From", 0),
            page.sound_input("To", 1),
            page.count_slider(2, page.limits.steps, 7, "Steps"),
            page.blend_radio(),
            *page.condition_inputs(run),
        ]

    def outputs(self, page: Page) -> list[Any]:
        """The results, and the files to download."""
        return [gr.HTML(elem_id="interpolated"), page.download()]

    def run(self, request: TabRequest, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Generate the clips, all with the same seed."""
        (run, first, last, steps, blend), conditions = request.split_conditions(values)
        ends = [str(request.upload(prompt)) for prompt in (first, last)]
        own = {"prompt": ends, "steps": int(steps), "blend": blend, "conditions": conditions}
        settings = request.settings(run, mode="interpolate", **own)
        yield components.note("Generating…"), None
        result = request.generate(settings)
        (generated,) = result.generated
        start, end = map(LabeledAudio, ("from", "to"), (source.wav for source in result.sources))
        clips = [LabeledAudio(f"step {i + 1}", wav) for i, wav in enumerate(generated.clips)]
        joined = LabeledAudio(f"all {len(clips)} steps, joined", audio_io.read(generated.path, rate=result.rate))
        html = components.row("All steps", [joined], result.rate, wide=True)
        html += components.row("Step by step", [start, *clips, end], result.rate)
        yield html + components.command(result.command), request.store(result.files)
