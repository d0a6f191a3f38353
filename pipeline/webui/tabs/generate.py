"""Tab: sounds from one prompt, a sound or words, or without a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from pipeline.common.errors import InputError
from pipeline.evaluation.html_templates import LabeledAudio
from pipeline.webui import components
from pipeline.webui.page import MAX_TEXT, Page
from pipeline.webui.tab_request import TabRequest
from pipeline.webui.tabs import TABS, Tab


@TABS.register("generate")
class GenerateTab(Tab):
    """Sounds from one prompt, or without a prompt. The first one plays while it is generated."""

    title = "Generate"
    order = 10
    button = "Generate"

    def inputs(self, page: Page) -> list[Any]:
        """The model, the prompt, the number of sounds, and the model's conditions."""
        run = page.run_dropdown()
        return [
            run,
            page.sound_input("Prompt (optional)"),
            *page.text_input("or in words"),
            page.count_slider(1, page.limits.samples, 2, "Samples"),
            *page.condition_inputs(run),
        ]

    def outputs(self, page: Page) -> list[Any]:
        """The player, the results, and the files to download."""
        return [gr.HTML(), gr.HTML(elem_id="generated"), page.download()]

    def run(self, request: TabRequest, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Generate sounds with consecutive seeds."""
        (run, prompt, *text, samples), conditions = request.split_conditions(values)
        prompts = {} if prompt is None else {"prompt": str(request.upload(prompt))}
        if text and text[0]:
            if prompts:
                raise InputError("there are two prompts: give a sound or words, not both")
            if len(text[0]) > MAX_TEXT:
                raise InputError(f"the words have {len(text[0])} characters: this page accepts at most {MAX_TEXT}")
            prompts = {"prompt_text": text[0]}
        settings = request.settings(run, n=int(samples), conditions=conditions, **prompts)
        with request.stream(settings) as (player, on_codes):
            yield player, components.note("Generating…"), None
            result = request.generate(settings, on_codes)
        originals = [LabeledAudio("original (the prompt)", source.wav) for source in result.sources]
        html = components.row("", [*originals, *result.sounds], result.rate) + components.command(result.command)
        yield gr.skip(), html, request.store(result.files)
