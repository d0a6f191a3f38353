"""The page: its tabs, and the parts that they share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from pipeline.audio import audio_io
from pipeline.generation.filters import Slider
from pipeline.generation.interpolation import BLENDS
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.request import num_samples
from pipeline.generation.settings import default_settings
from pipeline.webui import components
from pipeline.webui.condition_inputs import condition_inputs
from pipeline.webui.request_guard import visitor_name
from pipeline.webui.service import GenerationService
from pipeline.webui.settings import LimitSettings
from pipeline.webui.streaming import AudioStreamRegistry
from pipeline.webui.tab_request import Controls, TabRequest, copy_upload, errors_shown, read_controls
from pipeline.webui.tabs import TABS, Tab

PROGRESS = gr.Progress()
MAX_CHECKS = 4  # uploads that are checked at the same time
SLIDER_STEP = 0.1  # seconds
NO_EXAMPLE = "—"
MAX_TEXT = 300  # characters of a description
AGAIN = "Again with this seed"


@dataclass(frozen=True)
class Page:
    """What tabs are built from.

    Attributes:
        service: Generates the sounds.
        streams: Sounds that play while they are generated.
        examples: Paths of the example sounds, by name.
    """

    service: GenerationService
    streams: AudioStreamRegistry
    examples: Mapping[str, Path]

    @property
    def runs(self) -> list[str]:
        """The names of the models."""
        return list(self.service.loaded_runs)

    @property
    def limits(self) -> LimitSettings:
        """The limits of requests."""
        return self.service.settings.limits

    def seconds(self, sounds: float = 1) -> float:
        """Return the default duration of a sound: `sounds` times that of the training clips, within the limit."""
        loaded = self.service.loaded_runs[self.runs[0]]
        seconds = sounds * num_samples(default_settings().seconds, loaded) / loaded.codec.sample_rate
        return max(SLIDER_STEP, math.floor(min(self.limits.seconds, seconds) / SLIDER_STEP + 1e-6) * SLIDER_STEP)

    # ---- components of tabs ---------------------------------------------------------------------------------------
    def run_dropdown(self) -> gr.Dropdown:
        """Return the choice of a model."""
        return gr.Dropdown(self.runs, value=self.runs[0], label="Model", visible=len(self.runs) > 1)

    def condition_inputs(self, run: gr.Dropdown) -> list[Any]:
        """Return the inputs for the labels of the selected model; `TabRequest.split_conditions` reads them."""
        return condition_inputs(self.service.loaded_runs, run)

    def blend_radio(self) -> gr.Radio:
        """Return the choice of how prompts are mixed."""
        info = "slerp moves along the arc between them"
        return gr.Radio(list(BLENDS), value=default_settings().blend, label="Mix of the prompts", info=info)

    def sound_input(self, label: str, example: int | None = None) -> gr.Audio:
        """Return an input for a sound: an upload, a recording or an example.

        Args:
            label: Its label.
            example: Number of the example that it starts with.
        """
        names = list(self.examples)
        first = names[example % len(names)] if names and example is not None else None
        value = None if first is None else str(self.examples[first])
        sound = gr.Audio(value, sources=["upload", "microphone"], type="filepath", label=label, buttons=["download"])
        for event in (sound.upload, sound.stop_recording):
            event(
                self._check_upload, sound, None, api_visibility="private", concurrency_id="check",
                concurrency_limit=MAX_CHECKS,
            )  # fmt: skip
        if names:
            dropdown = gr.Dropdown([NO_EXAMPLE, *names], value=first or NO_EXAMPLE, label="or an example")

            def example_path(name: str) -> str | None:
                return str(self.examples[name]) if name in self.examples else None

            dropdown.input(example_path, dropdown, sound, queue=False, api_visibility="private")
        return sound

    def text_input(self, label: str) -> list[gr.Textbox]:
        """Return an input for words as a prompt, if a model has an embedder that reads text; else nothing."""
        reads_text = any(loaded.embedder.reads_text for loaded in self.service.loaded_runs.values())
        return [gr.Textbox(label=label, max_lines=1, max_length=MAX_TEXT)] if reads_text else []

    def _check_upload(self, upload: str | None) -> None:
        """Check an upload as soon as it arrives. Raises gr.Error if it cannot be used; warns if it is silent."""
        if upload is None:
            return
        with errors_shown(), self.service.request_folder() as folder:
            file = copy_upload(self.service, upload, folder)
            rate = self.service.loaded_runs[self.runs[0]].codec.sample_rate
            if audio_io.is_silent(audio_io.read(file, duration=default_settings().prompt_seconds, rate=rate)):
                gr.Warning(f"{file.name} is silent: the model will get silence as its prompt")

    def count_slider(self, low: int, maximum: int, default: int, label: str) -> gr.Slider | gr.Number:
        """Return a slider for an integer; a fixed number if the limit leaves no choice."""
        if maximum == low:
            return gr.Number(low, minimum=low, maximum=maximum, precision=0, label=label, interactive=False)
        return gr.Slider(low, maximum, min(default, maximum), step=1, label=label)

    def download(self, what: str = "sounds, each with a .json that generates it again") -> gr.File:
        """Return the list of files to download."""
        return gr.File(label=f"Download: {what}", file_count="multiple", interactive=False, elem_classes="downloads")

    # ---- tabs -----------------------------------------------------------------------------------------------------
    def build_tab(self, name: str, tab: Tab) -> None:
        """Create the components of a tab, and connect its buttons."""
        missing = tab.missing(self)
        if missing is not None:
            gr.Markdown(missing)
            return
        with gr.Row(elem_classes="workbench"):
            with gr.Column(scale=4, min_width=300):
                inputs = tab.inputs(self)
                controls = self._controls(tab) if tab.has_controls else []
            with gr.Column(scale=7, min_width=300, elem_classes="results"):
                with gr.Row(elem_classes="actions"):  # beside the results, so that a press and its result are in view
                    button = gr.Button(tab.button, variant="primary", elem_id=name, min_width=160)
                    same_seed = gr.Button(AGAIN, elem_classes="again", min_width=160) if tab.has_controls else None
                gr.HTML(components.empty(tab.button), elem_classes="empty")
                outputs = tab.outputs(self)
        self._on_click(button, tab, inputs, controls, outputs, name)
        if same_seed is not None:
            self._on_click(same_seed, tab, inputs, controls, outputs, None)

    def _controls(self, tab: Tab) -> list[Any]:
        """The controls for sampling and the seed, in the order of the arguments of `read_controls`.

        The maximum of a slider is at least its default: Gradio refuses a request if any slider is beyond its maximum.
        """
        default = self._default_controls(tab)
        (first, slider), *others = default.sampling.sliders().items()
        main = self._slider(slider, getattr(default.sampling, first))
        seconds = gr.Slider(SLIDER_STEP, self.limits.seconds, default.seconds, step=SLIDER_STEP, label="Seconds")
        with gr.Row():
            seed = gr.Number(default.seed, label="Seed", precision=0, minimum=0, min_width=110)
            use_new_seed = gr.Checkbox(True, label="New seed each time", min_width=150)
        with gr.Accordion("More", open=False):
            more = [self._slider(slider, getattr(default.sampling, name)) for name, slider in others]
        return [main, *more, seconds, seed, use_new_seed]

    def _slider(self, slider: Slider, value: float) -> gr.Slider:
        size = max(loaded.model.config.codebook_size for loaded in self.service.loaded_runs.values())
        maximum = max(size if slider.maximum is None else slider.maximum, value)
        return gr.Slider(0, maximum, value, step=slider.step, label=slider.label, info=slider.info)

    def _default_controls(self, tab: Tab) -> Controls:
        return Controls(self.service.settings.sampling, round(self.seconds(tab.sounds), 1), 0)

    def _on_click(
        self, button: gr.Button, tab: Tab, inputs: list[Any], controls: list[Any], outputs: list[Any], name: str | None
    ) -> None:
        """Connect a button to a tab. One click is handled at a time; the progress is shown over the results.

        name: that of the event in the API; None: the button uses the seed of the controls again, and is not in the API.
        """

        def on_click(request: gr.Request, progress: Any = PROGRESS, *values: Any) -> Iterator[tuple[Any, ...]]:
            with errors_shown(), self.service.request_folder() as folder:
                used, own_values = self._default_controls(tab), values
                if controls:
                    own_values, (*numbers, use_new_seed) = values[: len(inputs)], values[len(inputs) :]
                    used = read_controls(used.sampling, numbers, use_new_seed and name is not None)
                visitor = visitor_name(request.client.host)
                tab_request = TabRequest(self.service, self.streams, folder, visitor, used, progress)
                for updates in tab.run(tab_request, *own_values):
                    yield (*updates, used.seed) if controls else updates

        shown = [*outputs, controls[-2]] if controls else outputs  # the seed that was used
        button.click(
            on_click, [*inputs, *controls], shown, api_name=name, api_visibility="public" if name else "private",
            concurrency_id="model", concurrency_limit=1,
            show_progress_on=[output for output in outputs if output.elem_id],
        )  # fmt: skip


def build_page(page: Page) -> gr.Blocks:
    """Return the page with the tabs of the registry."""
    with gr.Blocks(title="Codec audio LM", analytics_enabled=False) as blocks:
        gr.HTML(_header(page.service.loaded_runs))
        for name, tab in sorted(TABS.items(), key=lambda item: item[1].order):
            with gr.Tab(tab.title):
                page.build_tab(name, tab())
    # api_open=False: no call can skip the queue
    blocks.queue(max_size=page.limits.waiting, default_concurrency_limit=1, api_open=False)
    page_blocks: gr.Blocks = blocks
    return page_blocks


def _header(loaded_runs: Mapping[str, LoadedRun]) -> str:
    lines = "".join(f"<li><b>{escape(name)}</b> {escape(_model_facts(run))}</li>" for name, run in loaded_runs.items())
    return f'<header class="stage"><h1>Play with a codec language model</h1><ul>{lines}</ul></header>'


def _model_facts(loaded: LoadedRun) -> str:
    """A description of a model in one line."""
    model, rate = loaded.model.config, loaded.codec.frame_rate
    parameters = sum(p.numel() for p in loaded.model.parameters()) / 1e6
    trained_frames = loaded.trained_frames
    length = "" if trained_frames is None else f" · trained on clips of {trained_frames / rate:.2g} s"
    codebooks = f"{model.pattern} pattern, {model.codebooks} codebooks"
    return f"{parameters:.1f} M parameters · {codebooks} · {loaded.codec.name}{length} · on {loaded.device}"
