"""The page: a tab for each thing to do with a model."""

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
CHECKS = 4  # uploads looked at at once
STEP = 0.1  # seconds, of the sliders
NO_EXAMPLE = "—"


@dataclass(frozen=True)
class DemoContext:
    """What the tabs are built from. examples: sounds to pick from, by name; sampling: its defaults."""

    acts: Handlers
    examples: Mapping[str, Path]
    sampling: Mapping[str, Any]

    @property
    def runs(self) -> list[str]:
        """The names of the models."""
        return list(self.acts.desk.instruments)

    @property
    def seconds(self) -> float:
        """What pipeline.generate makes of `auto` with the first model, within the limits, in whole tenths."""
        desk = self.acts.desk
        instrument = desk.instruments[self.runs[0]]
        most = min(desk.limits.seconds, num_samples(desk.defaults, instrument) / instrument.codec.sample_rate)
        return max(STEP, math.floor(most / STEP + 1e-6) * STEP)


def build_ui(stand: DemoContext) -> gr.Blocks:
    """All tabs."""
    with gr.Blocks(title="Codec audio LM", analytics_enabled=False) as found:
        gr.HTML(_header(stand.acts.desk.instruments))
        with gr.Tab("Generate"):
            _generate(stand)
        with gr.Tab("Interpolate"):
            _interpolate(stand)
        with gr.Tab("Morph"):
            _morph(stand)
        with gr.Tab("Codec"):
            _codec(stand)
        with gr.Tab("Compare"):
            _compare(stand)
    # api_open=False: no call passes the queue by
    found.queue(max_size=stand.acts.desk.limits.waiting, default_concurrency_limit=1, api_open=False)
    return found


def _header(instruments: Mapping[str, LoadedRun]) -> str:
    lines = "".join(f"<li><b>{escape(name)}</b> {escape(facts(one))}</li>" for name, one in instruments.items())
    return f'<header class="stage"><h1>Play with a codec language model</h1><ul>{lines}</ul></header>'


def facts(instrument: LoadedRun) -> str:
    """A model in one line."""
    model, rate = instrument.model.config, instrument.codec.frame_rate
    count = sum(p.numel() for p in instrument.model.parameters()) / 1e6
    trained = instrument.trained_frames
    length = "" if trained is None else f" · trained on clips of {trained / rate:.2g} s"
    books = f"{model.pattern} pattern, {model.codebooks} codebooks"
    return f"{count:.1f} M parameters · {books} · {instrument.codec.name}{length} · on {instrument.device}"


def _generate(stand: DemoContext) -> None:
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            run = _run(stand)
            prompt = _sound(stand, "A sound to start from, or none")
            knobs = _knobs(stand)
            samples = _count(1, stand.acts.desk.limits.samples, 2, "Samples")
            button = gr.Button("Generate", variant="primary", elem_id="generate")
        with gr.Column(scale=7, min_width=420):
            live, results = gr.HTML(), gr.HTML(elem_id="generated")
            files, again = _files(), gr.Button("Again with this seed", size="sm")
    inputs, outputs = [run, prompt, samples, *knobs], [live, results, files, knobs[4]]
    _on_click(button, stand.acts.generate, inputs, outputs, "generate")
    _on_regenerate(again, knobs, stand.acts.generate, inputs, outputs)


def _interpolate(stand: DemoContext) -> None:
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            run = _run(stand)
            first, last = _sound(stand, "From", 0), _sound(stand, "To", 1)
            steps = _count(2, stand.acts.desk.limits.steps, 7, "Steps")
            blend = _blend(stand)
            knobs = _knobs(stand)
            button = gr.Button("Interpolate", variant="primary", elem_id="interpolate")
        with gr.Column(scale=7, min_width=420):
            results, files = gr.HTML(elem_id="interpolated"), _files()
            again = gr.Button("Again with this seed", size="sm")
    inputs, outputs = [run, first, last, steps, blend, *knobs], [results, files, knobs[4]]
    _on_click(button, stand.acts.interpolate, inputs, outputs, "interpolate")
    _on_regenerate(again, knobs, stand.acts.interpolate, inputs, outputs)


def _morph(stand: DemoContext) -> None:
    longest = stand.acts.desk.limits.seconds
    length = min(longest, 3 * stand.seconds)
    apart = min(stand.seconds, length / KEYFRAMES)  # so that the last is heard too
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            run = _run(stand)
            stops: list[Any] = []
            for i in range(KEYFRAMES):
                with gr.Accordion(f"Keyframe {i + 1}", open=i < 2):
                    at = gr.Slider(0, longest, round(i * apart, 1), step=STEP, label="At (seconds)", interactive=i > 0)
                    stops += [at, _sound(stand, "Sound", i if i < 2 else None)]
            blend = _blend(stand)
            knobs = _knobs(stand, length)
            button = gr.Button("Morph", variant="primary", elem_id="morph")
        with gr.Column(scale=7, min_width=420):
            live, results = gr.HTML(), gr.HTML(elem_id="morphed")
            files, again = _files(), gr.Button("Again with this seed", size="sm")

    def act(run: str, blend: str, *given: Any, visitor: str, progress: Any) -> Iterator[tuple[Any, ...]]:
        pairs, knobs = given[: 2 * KEYFRAMES], given[2 * KEYFRAMES :]
        stops = list(zip(pairs[::2], pairs[1::2], strict=True))
        yield from stand.acts.morph(run, stops, blend, *knobs, visitor=visitor, progress=progress)

    inputs, outputs = [run, blend, *stops, *knobs], [live, results, files, knobs[4]]
    _on_click(button, act, inputs, outputs, "morph")
    _on_regenerate(again, knobs, act, inputs, outputs)


def _codec(stand: DemoContext) -> None:
    most = max(codec.codebooks for codec in stand.acts.desk.codecs.values())
    known = {instrument.model.config.codebooks for instrument in stand.acts.desk.instruments.values()}
    choices = sorted({*range(1, min(8, most) + 1), *(n for n in (12, 16, 24, 32) if n <= most), *known})
    chosen = sorted({*(n for n in choices if n & (n - 1) == 0), *known})
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            run, sound = _run(stand), _sound(stand, "A sound", 0)
            counts = gr.CheckboxGroup(
                [(str(n), n) for n in choices], value=chosen, label="Q: codebooks",
                info=f"The model makes {', '.join(map(str, sorted(known)))}: none sounds better than its codec does.",
            )  # fmt: skip
            button = gr.Button("Hear", variant="primary", elem_id="hear")
        with gr.Column(scale=7, min_width=420):
            results, files = gr.HTML(elem_id="heard"), _files("sounds")
    _on_click(button, stand.acts.codec, [run, sound, counts], [results, files], "codec")


def _compare(stand: DemoContext) -> None:
    if len(stand.runs) < 2:
        gr.Markdown("One model plays here. To hear two side by side: `python -m pipeline.demo 'run=[RUN,RUN2]'`")
        return
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            runs = gr.CheckboxGroup(stand.runs, value=stand.runs[:2], label="Models")
            prompt = _sound(stand, "A sound to start from, or none", 0)
            knobs = _knobs(stand)
            samples = _count(1, stand.acts.desk.limits.samples, 3, "Samples")
            button = gr.Button("Compare", variant="primary", elem_id="compare")
        with gr.Column(scale=7, min_width=420):
            results = gr.HTML(elem_id="compared")
            again = gr.Button("Again with this seed", size="sm")
    inputs, outputs = [runs, prompt, samples, *knobs], [results, knobs[4]]
    _on_click(button, stand.acts.compare, inputs, outputs, "compare")
    _on_regenerate(again, knobs, stand.acts.compare, inputs, outputs)


# ---- what tabs are made of -----------------------------------------------------------------------------------------
def _run(stand: DemoContext) -> gr.Dropdown:
    return gr.Dropdown(stand.runs, value=stand.runs[0], label="Model", visible=len(stand.runs) > 1)


def _blend(stand: DemoContext) -> gr.Radio:
    usual = stand.acts.desk.defaults["blend"]
    return gr.Radio(list(BLENDS), value=usual, label="Way between prompts", info="slerp keeps to the arc")


def _sound(stand: DemoContext, label: str, example: int | None = None) -> gr.Audio:
    """A sound that is uploaded, recorded, or one of the examples; example: the number of the one to begin with."""
    names = list(stand.examples)
    first = names[example % len(names)] if names and example is not None else None
    value = None if first is None else str(stand.examples[first])
    sound = gr.Audio(value, sources=["upload", "microphone"], type="filepath", label=label, buttons=["download"])
    for event in (sound.upload, sound.stop_recording):
        event(stand.acts.check, sound, None, api_visibility="private", concurrency_id="check", concurrency_limit=CHECKS)
    if names:
        pick = gr.Dropdown([NO_EXAMPLE, *names], value=first or NO_EXAMPLE, label="… or an example")

        def picked(name: str) -> str | None:
            return str(stand.examples[name]) if name in stand.examples else None

        pick.input(picked, pick, sound, queue=False, api_visibility="private")
    return sound


def _count(low: int, most: int, usual: int, label: str) -> gr.Slider | gr.Number:
    """How many, up to a limit: a slider, where the limit leaves a choice."""
    if most == low:
        return gr.Number(low, minimum=low, maximum=most, precision=0, label=label, interactive=False)
    return gr.Slider(low, most, min(usual, most), step=1, label=label)


def _knobs(stand: DemoContext, seconds: float | None = None) -> list[Any]:
    """Temperature, top-k, guidance, seconds, seed, and whether to draw another seed: as `acts.Knobs` has them.

    A slider reaches as far as its setting: Gradio refuses every request in which one stands beyond its end.
    """
    longest, hot = stand.acts.desk.limits.seconds, stand.sampling["temperature"]
    among, guided = stand.sampling["top_k"], stand.sampling["guidance"]
    temperature = gr.Slider(0, max(2, hot), hot, step=0.05, label="Temperature", info="0 takes the likeliest")
    length = gr.Slider(STEP, longest, round(seconds or stand.seconds, 1), step=STEP, label="Seconds")
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=110)
        fresh = gr.Checkbox(True, label="A new seed each time", min_width=150)
    with gr.Accordion("More", open=False):
        top_k = gr.Slider(0, max(1024, among), among, step=1, label="Top-k", info="0: among all 1,024")
        guidance = gr.Slider(
            0,
            max(6, guided),
            guided,
            step=0.1,
            label="Guidance",
            info="above 1 follows the prompt harder, at twice the work",
        )
    return [temperature, top_k, guidance, length, seed, fresh]


def _files(what: str = "sounds, and the .json that makes each again") -> gr.File:
    return gr.File(label=f"Download: {what}", file_count="multiple", interactive=False)


def _on_click(
    button: gr.Button, act: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any], name: str | None
) -> None:
    """One at a time on the model, whichever tab asks; the progress bar is the act's own, over its results."""
    where = [one for one in outputs if one.elem_id]

    def pressed(request: gr.Request, progress: Any = PROGRESS, *given: Any) -> Iterator[Any]:
        yield from act(*given, visitor=visitor_name(request.client.host), progress=progress)

    button.click(
        pressed, list(inputs), list(outputs), api_name=name, api_visibility="public" if name else "private",
        concurrency_id="model", concurrency_limit=1, show_progress_on=where,
    )  # fmt: skip


def _on_regenerate(
    button: gr.Button, knobs: Sequence[Any], act: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]
) -> None:
    """Keeps the seed, then makes the same."""
    held = [*inputs[: -len(knobs)], *knobs[:-1]]

    def once_more(*given: Any, visitor: str, progress: Any) -> Iterator[Any]:
        yield from act(*given, False, visitor=visitor, progress=progress)

    _on_click(button, once_more, held, outputs, None)
