"""The page: a tab for each way to use a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from pipeline.generation.interpolation import BLENDS
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.request import num_samples
from pipeline.webui.handlers import Handlers
from pipeline.webui.request_guard import visitor_name

PROGRESS = gr.Progress()
KEYFRAMES = 4
MAX_CHECKS = 4  # uploads that are checked at the same time
SLIDER_STEP = 0.1  # seconds
NO_EXAMPLE = "—"


@dataclass(frozen=True)
class DemoContext:
    """What the tabs are built from.

    Attributes:
        handlers: Handlers of the buttons.
        examples: Paths of the example sounds, by name.
        sampling: Default values of the sampling settings.
    """

    handlers: Handlers
    examples: Mapping[str, Path]
    sampling: Mapping[str, Any]

    @property
    def runs(self) -> list[str]:
        """Return the names of the models."""
        return list(self.handlers.service.loaded_runs)

    @property
    def seconds(self) -> float:
        """Return the default duration in seconds: that of `seconds=auto` with the first model, within the limit."""
        service = self.handlers.service
        loaded = service.loaded_runs[self.runs[0]]
        seconds = min(service.limits.seconds, num_samples(service.defaults, loaded) / loaded.codec.sample_rate)
        return max(SLIDER_STEP, math.floor(seconds / SLIDER_STEP + 1e-6) * SLIDER_STEP)


def build_ui(context: DemoContext) -> gr.Blocks:
    """Return the page with all its tabs."""
    with gr.Blocks(title="Codec audio LM", analytics_enabled=False) as blocks:
        gr.HTML(_header(context.handlers.service.loaded_runs))
        with gr.Tab("Generate"):
            _generate_tab(context)
        with gr.Tab("Interpolate"):
            _interpolate_tab(context)
        with gr.Tab("Morph"):
            _morph_tab(context)
        with gr.Tab("Codec"):
            _codec_tab(context)
        with gr.Tab("Compare"):
            _compare_tab(context)
    # api_open=False: no call can skip the queue
    blocks.queue(max_size=context.handlers.service.limits.waiting, default_concurrency_limit=1, api_open=False)
    return blocks


def _header(loaded_runs: Mapping[str, LoadedRun]) -> str:
    lines = "".join(
        f"<li><b>{escape(name)}</b> {escape(model_facts(loaded))}</li>" for name, loaded in loaded_runs.items()
    )
    return f'<header class="stage"><h1>Play with a codec language model</h1><ul>{lines}</ul></header>'


def model_facts(loaded: LoadedRun) -> str:
    """Return a description of a model in one line."""
    model, rate = loaded.model.config, loaded.codec.frame_rate
    parameters = sum(p.numel() for p in loaded.model.parameters()) / 1e6
    trained_frames = loaded.trained_frames
    length = "" if trained_frames is None else f" · trained on clips of {trained_frames / rate:.2g} s"
    codebooks = f"{model.pattern} pattern, {model.codebooks} codebooks"
    return f"{parameters:.1f} M parameters · {codebooks} · {loaded.codec.name}{length} · on {loaded.device}"


def _generate_tab(context: DemoContext) -> None:
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            run = _run_dropdown(context)
            prompt = _sound_input(context, "Prompt (optional)")
            controls = _sampling_controls(context)
            samples = _count_slider(1, context.handlers.service.limits.samples, 2, "Samples")
            button = gr.Button("Generate", variant="primary", elem_id="generate")
        with gr.Column(scale=7, min_width=420):
            live, results = gr.HTML(), gr.HTML(elem_id="generated")
            files, regenerate = _download(), gr.Button("Generate again with this seed", size="sm")
    inputs, outputs = [run, prompt, samples, *controls], [live, results, files, controls[4]]
    _on_click(button, context.handlers.generate, inputs, outputs, "generate")
    _on_regenerate(regenerate, controls, context.handlers.generate, inputs, outputs)


def _interpolate_tab(context: DemoContext) -> None:
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            run = _run_dropdown(context)
            first, last = _sound_input(context, "From", 0), _sound_input(context, "To", 1)
            steps = _count_slider(2, context.handlers.service.limits.steps, 7, "Steps")
            blend = _blend_radio(context)
            controls = _sampling_controls(context)
            button = gr.Button("Interpolate", variant="primary", elem_id="interpolate")
        with gr.Column(scale=7, min_width=420):
            results, files = gr.HTML(elem_id="interpolated"), _download()
            regenerate = gr.Button("Generate again with this seed", size="sm")
    inputs, outputs = [run, first, last, steps, blend, *controls], [results, files, controls[4]]
    _on_click(button, context.handlers.interpolate, inputs, outputs, "interpolate")
    _on_regenerate(regenerate, controls, context.handlers.interpolate, inputs, outputs)


def _morph_tab(context: DemoContext) -> None:
    max_seconds = context.handlers.service.limits.seconds
    length = min(max_seconds, 3 * context.seconds)
    spacing = min(context.seconds, length / KEYFRAMES)  # so that the last keyframe is before the end
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            run = _run_dropdown(context)
            stops: list[Any] = []
            for i in range(KEYFRAMES):
                with gr.Accordion(f"Keyframe {i + 1}", open=i < 2):
                    at = gr.Slider(
                        0, max_seconds, round(i * spacing, 1), step=SLIDER_STEP, label="At (seconds)", interactive=i > 0
                    )
                    stops += [at, _sound_input(context, "Sound", i if i < 2 else None)]
            blend = _blend_radio(context)
            controls = _sampling_controls(context, length)
            button = gr.Button("Morph", variant="primary", elem_id="morph")
        with gr.Column(scale=7, min_width=420):
            live, results = gr.HTML(), gr.HTML(elem_id="morphed")
            files, regenerate = _download(), gr.Button("Generate again with this seed", size="sm")

    def handler(run: str, blend: str, *values: Any, visitor: str, progress: Any) -> Iterator[tuple[Any, ...]]:
        pairs, controls = values[: 2 * KEYFRAMES], values[2 * KEYFRAMES :]
        stops = list(zip(pairs[::2], pairs[1::2], strict=True))
        yield from context.handlers.morph(run, stops, blend, *controls, visitor=visitor, progress=progress)

    inputs, outputs = [run, blend, *stops, *controls], [live, results, files, controls[4]]
    _on_click(button, handler, inputs, outputs, "morph")
    _on_regenerate(regenerate, controls, handler, inputs, outputs)


def _codec_tab(context: DemoContext) -> None:
    maximum = max(codec.codebooks for codec in context.handlers.service.codecs.values())
    trained_counts = {loaded.model.config.codebooks for loaded in context.handlers.service.loaded_runs.values()}
    choices = sorted({*range(1, min(8, maximum) + 1), *(n for n in (12, 16, 24, 32) if n <= maximum), *trained_counts})
    chosen = sorted({*(n for n in choices if n & (n - 1) == 0), *trained_counts})
    generated = ", ".join(map(str, sorted(trained_counts)))
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            run, sound = _run_dropdown(context), _sound_input(context, "A sound", 0)
            counts = gr.CheckboxGroup(
                [(str(n), n) for n in choices], value=chosen, label="Q: codebooks",
                info=f"The model generates {generated}. Its codec limits the quality.",
            )  # fmt: skip
            button = gr.Button("Decode", variant="primary", elem_id="decode")
        with gr.Column(scale=7, min_width=420):
            results, files = gr.HTML(elem_id="decoded"), _download("sounds")
    _on_click(button, context.handlers.codec, [run, sound, counts], [results, files], "codec")


def _compare_tab(context: DemoContext) -> None:
    if len(context.runs) < 2:
        gr.Markdown("This page has one model. To compare two, start it with `python -m pipeline.demo 'run=[RUN,RUN2]'`")
        return
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            runs = gr.CheckboxGroup(context.runs, value=context.runs[:2], label="Models")
            prompt = _sound_input(context, "Prompt (optional)", 0)
            controls = _sampling_controls(context)
            samples = _count_slider(1, context.handlers.service.limits.samples, 3, "Samples")
            button = gr.Button("Compare", variant="primary", elem_id="compare")
        with gr.Column(scale=7, min_width=420):
            results = gr.HTML(elem_id="compared")
            regenerate = gr.Button("Generate again with this seed", size="sm")
    inputs, outputs = [runs, prompt, samples, *controls], [results, controls[4]]
    _on_click(button, context.handlers.compare, inputs, outputs, "compare")
    _on_regenerate(regenerate, controls, context.handlers.compare, inputs, outputs)


# ---- parts of tabs -------------------------------------------------------------------------------------------------
def _run_dropdown(context: DemoContext) -> gr.Dropdown:
    return gr.Dropdown(context.runs, value=context.runs[0], label="Model", visible=len(context.runs) > 1)


def _blend_radio(context: DemoContext) -> gr.Radio:
    default = context.handlers.service.defaults["blend"]
    return gr.Radio(
        list(BLENDS), value=default, label="Mix of the prompts", info="slerp moves along the arc between them"
    )


def _sound_input(context: DemoContext, label: str, example: int | None = None) -> gr.Audio:
    """An input for a sound: an upload, a recording or an example. example: number of the example it starts with."""
    names = list(context.examples)
    first = names[example % len(names)] if names and example is not None else None
    value = None if first is None else str(context.examples[first])
    sound = gr.Audio(value, sources=["upload", "microphone"], type="filepath", label=label, buttons=["download"])
    for event in (sound.upload, sound.stop_recording):
        event(
            context.handlers.check, sound, None, api_visibility="private", concurrency_id="check",
            concurrency_limit=MAX_CHECKS,
        )  # fmt: skip
    if names:
        dropdown = gr.Dropdown([NO_EXAMPLE, *names], value=first or NO_EXAMPLE, label="or an example")

        def example_path(name: str) -> str | None:
            return str(context.examples[name]) if name in context.examples else None

        dropdown.input(example_path, dropdown, sound, queue=False, api_visibility="private")
    return sound


def _count_slider(low: int, maximum: int, default: int, label: str) -> gr.Slider | gr.Number:
    """A slider for an integer; a fixed number if the limit leaves no choice."""
    if maximum == low:
        return gr.Number(low, minimum=low, maximum=maximum, precision=0, label=label, interactive=False)
    return gr.Slider(low, maximum, min(default, maximum), step=1, label=label)


def _sampling_controls(context: DemoContext, seconds: float | None = None) -> list[Any]:
    """The controls of all tabs, in the order of `handlers.GenerationControls`.

    The maximum of a slider is at least its default: Gradio refuses a request if any slider is beyond its maximum.
    """
    max_seconds, default_temperature = context.handlers.service.limits.seconds, context.sampling["temperature"]
    default_top_k, default_guidance = context.sampling["top_k"], context.sampling["guidance"]
    temperature = gr.Slider(
        0, max(2, default_temperature), default_temperature, step=0.05, label="Temperature",
        info="0: always the most likely code",
    )  # fmt: skip
    length = gr.Slider(
        SLIDER_STEP, max_seconds, round(seconds or context.seconds, 1), step=SLIDER_STEP, label="Seconds"
    )
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=110)
        use_new_seed = gr.Checkbox(True, label="New seed each time", min_width=150)
    with gr.Accordion("More", open=False):
        top_k = gr.Slider(0, max(1024, default_top_k), default_top_k, step=1, label="Top-k", info="0: all 1,024")
        guidance = gr.Slider(
            0, max(6, default_guidance), default_guidance, step=0.1, label="Guidance",
            info="above 1: follows the prompt more closely, at half the speed",
        )  # fmt: skip
    return [temperature, top_k, guidance, length, seed, use_new_seed]


def _download(what: str = "sounds, each with a .json that generates it again") -> gr.File:
    return gr.File(label=f"Download: {what}", file_count="multiple", interactive=False)


def _on_click(
    button: gr.Button, handler: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any], name: str | None
) -> None:
    """Connect a button to a handler. One handler runs at a time; progress is shown over its results."""
    progress_on = [output for output in outputs if output.elem_id]

    def on_click(request: gr.Request, progress: Any = PROGRESS, *values: Any) -> Iterator[Any]:
        yield from handler(*values, visitor=visitor_name(request.client.host), progress=progress)

    button.click(
        on_click, list(inputs), list(outputs), api_name=name, api_visibility="public" if name else "private",
        concurrency_id="model", concurrency_limit=1, show_progress_on=progress_on,
    )  # fmt: skip


def _on_regenerate(
    button: gr.Button,
    controls: Sequence[Any],
    handler: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
) -> None:
    """Connect a button to a handler that uses the same seed again."""
    fixed_inputs = [*inputs[: -len(controls)], *controls[:-1]]

    def handle_same_seed(*values: Any, visitor: str, progress: Any) -> Iterator[Any]:
        yield from handler(*values, False, visitor=visitor, progress=progress)

    _on_click(button, handle_same_seed, fixed_inputs, outputs, None)
