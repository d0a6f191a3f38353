"""Tab: sounds from one prompt, or without a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from pipeline.evaluation.html_templates import LabeledAudio
from pipeline.webui import components
from pipeline.webui.page import Page
from pipeline.webui.tab_request import TabRequest
from pipeline.webui.tabs import TABS, Tab


@TABS.register("generate")
class GenerateTab(Tab):
    """Sounds from one prompt, or without a prompt. The first one plays while it is generated."""

    title = "Generate"
    order = 10
    button = "Generate"

    def inputs(self, page: Page) -> list[Any]:
        """The model, the prompt, and the number of sounds."""
        return [
            page.run_dropdown(),
            page.sound_input("Prompt (optional)"),
            page.count_slider(1, page.limits.samples, 2, "Samples"),
        ]

    def outputs(self, page: Page) -> list[Any]:
        """The player, the results, and the files to download."""
        return [gr.HTML(), gr.HTML(elem_id="generated"), page.download()]

    def run(self, request: TabRequest, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Generate sounds with consecutive seeds."""
        run, prompt, samples = values
        prompts = {} if prompt is None else {"prompt": str(request.upload(prompt))}
        settings = request.settings(run, n=int(samples), **prompts)
        with request.stream(settings) as (player, on_codes):
            yield player, components.note("Generating…"), None
            result = request.generate(settings, on_codes)
        originals = [LabeledAudio("original (the prompt)", source.wav) for source in result.sources]
        html = components.row("", [*originals, *result.sounds], result.rate) + components.command(result.command)
        yield gr.skip(), html, request.store(result.files)
