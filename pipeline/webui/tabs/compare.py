"""Tab: the same prompt and seeds with several models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from pipeline.common.errors import InputError
from pipeline.evaluation.html_templates import LabeledAudio
from pipeline.webui import components
from pipeline.webui.page import Page
from pipeline.webui.tab_request import TabRequest
from pipeline.webui.tabs import TABS, Tab


@TABS.register("compare")
class CompareTab(Tab):
    """Sounds from the same prompt and seeds with several models."""

    title = "Compare"
    order = 50
    button = "Compare"

    def missing(self, page: Page) -> str | None:
        """A second model."""
        if len(page.runs) > 1:
            return None
        return "This page has one model. To compare two, start it with `python -m pipeline.demo 'run=[RUN,RUN2]'`"

    def inputs(self, page: Page) -> list[Any]:
        """The models, the prompt, and the number of sounds."""
        return [
            gr.CheckboxGroup(page.runs, value=page.runs[:2], label="Models"),
            page.sound_input("Prompt (optional)", 0),
            page.count_slider(1, page.limits.samples, 3, "Samples"),
        ]

    def outputs(self, page: Page) -> list[Any]:
        """The results."""
        return [gr.HTML(elem_id="compared")]

    def run(self, request: TabRequest, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Generate the sounds of one model after the other. Raises InputError if no model is selected."""
        runs, prompt, samples = values
        if not runs:
            raise InputError("no model is selected: select one")
        prompts = {} if prompt is None else {"prompt": str(request.upload(prompt))}
        yield (components.note("Generating…"),)
        rows = list[str]()
        for run in dict.fromkeys(runs):
            result = request.generate(request.settings(run, n=int(samples), **prompts), label=run)
            if not rows and result.sources:
                rows.append(components.row("Prompt", [LabeledAudio("original", result.sources[0].wav)], result.rate))
            model = request.service.loaded_run(run).model.config
            title = f"{run} · {model.pattern}, {model.codebooks} codebooks"
            rows.append(components.row(title, result.sounds, result.rate))
        yield ("".join(rows),)
