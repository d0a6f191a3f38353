"""Sound at length: whether sounds far longer than the training clips keep what they begin with.

Letters: N sounds, M stretches.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import JsonValue
from torch import Tensor

from pipeline.audio import audio_io
from pipeline.evaluation.analyses import ANALYSES, Analysis, AnalysisInputs, AnalysisResult
from pipeline.evaluation.generations import generate_all
from pipeline.evaluation.results import MetricValues
from pipeline.evaluation.settings import LengthWindow
from pipeline.evaluation.stretches import Clip, level_of, measure_stretches, stretch_edges
from pipeline.generation.generator import SlidingWindow
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.settings import default_settings
from pipeline.generation.window import resolve_window

NAME = "length"
PERCENTS = ["pitch", "silent", "loops", "ended"]
CLIP, END_OF_CLIP = "clips (codec)", "their last quarter"
Measures = Sequence[dict[str, np.ndarray]]  # of each sound, [M] by name


@ANALYSES.register(NAME)
class Length(Analysis):
    """Measures of every stretch of sounds of `length` seconds, for each of the windows and temperatures."""

    title = "length"
    order = 60

    def measure(self, inputs: AnalysisInputs) -> AnalysisResult | None:
        """None: the setting `length` is null."""
        settings, run = inputs.settings, inputs.run
        if settings.length is None:
            return None
        edges = stretch_edges(settings.length, settings.stretch)
        frames = run.codec.num_frames(round(settings.length * run.codec.sample_rate))
        clips = _describe_clips(inputs)
        rows, notes = _measure_clips(inputs, clips), list[str]()
        curves: dict[str, list[MetricValues]] = {}
        for number, wish in enumerate(settings.windows, 1):
            window = _resolve(wish, settings.length, frames, run)
            for temperature in settings.temperatures:
                name = f"t{temperature:g}, {describe_window(window, run)}"
                inputs.show_status(f"{settings.length:g} s: {name}")
                began = time.perf_counter()
                codes = generate_all(
                    run, inputs.clips, [temperature], settings.sampling, settings.seed, settings.batch_size, None,
                    frames, window,
                )[temperature]  # fmt: skip
                cost = (time.perf_counter() - began) / (len(codes) * settings.length)
                notes.append(f"{name}: {cost:.2g} s of generation for a second of sound")
                files = [f"{clip.sample.key}.t{temperature:g}.length{number}.wav" for clip in inputs.clips]
                curves[name] = _summarize(_measure_sounds(inputs, codes, files, clips, edges), len(edges) - 1, inputs)
        spans = [*itertools.pairwise(edges)]
        for name, values in curves.items():
            rows |= {f"{name}: {a:g}-{b:g} s": each for (a, b), each in zip(spans, values, strict=True)}
        text = (
            f"Sounds of {settings.length:g} s by stretch. Level: dB against the codec's clip; change: against the "
            "first stretch. A sound that ended is silent afterwards, and counts as such."
        )
        details: dict[str, JsonValue] = {
            "middles": [(start + end) / 2 for start, end in spans],
            "curves": {name: [_to_json(values) for values in stretches] for name, stretches in curves.items()},
        }
        return AnalysisResult(title=self.title, text=text, rows=rows, percents=PERCENTS, notes=notes, details=details)


def describe_window(window: SlidingWindow | None, run: LoadedRun) -> str:
    """The seconds of a window: its length, its stride, and what it keeps."""
    if window is None:
        return "no window"
    parts = (window.frames, window.stride, window.kept)
    return "window {:.2f}/{:.2f}/{:.2f} s".format(*(frames / run.codec.frame_rate for frames in parts))


def _resolve(wish: LengthWindow, length: float, frames: int, run: LoadedRun) -> SlidingWindow | None:
    changes = {"mode": "continue", "seconds": length, **wish.to_dict()}
    return resolve_window(default_settings().model_copy(update=changes), frames, run)


def _describe_clips(inputs: AnalysisInputs) -> list[Clip]:
    references, wavs = inputs.references, inputs.reconstructions.wavs
    return [
        Clip(prompt, float(pitch), level_of(wav))
        for prompt, pitch, wav in zip(references.prompts, references.pitch_labels, wavs, strict=True)
    ]


def _measure_clips(inputs: AnalysisInputs, clips: Sequence[Clip]) -> dict[str, MetricValues]:
    """The codec's reconstructions of the clips, and the last quarter of each: what sounds do by nature."""
    measures: dict[str, list[dict[str, np.ndarray]]] = {CLIP: [], END_OF_CLIP: []}
    sounds = inputs.reconstructions
    for wav, codes, clip in zip(sounds.wavs, sounds.codes, clips, strict=True):
        length = len(wav) / sounds.rate
        own = measure_stretches(wav, codes.numpy(), clip, [0, length], inputs.run)
        end = measure_stretches(
            wav[-max(1, len(wav) // 4) :], codes[:, -max(1, codes.shape[1] // 4) :].numpy(), clip, [0, length / 4],
            inputs.run,
        )  # fmt: skip
        own.pop("ended"), end.pop("ended")
        measures[CLIP].append(own)
        measures[END_OF_CLIP].append({**end, "change": end["level"] - own["level"]})
    return {name: _summarize(each, 1, inputs)[0] for name, each in measures.items()}


def _measure_sounds(
    inputs: AnalysisInputs, codes: Sequence[Tensor], files: Sequence[str], clips: Sequence[Clip], edges: Sequence[float]
) -> Measures:
    """Decode sounds one after the other, so that memory has one of them, and write and measure each."""
    run, measures = inputs.run, []
    for own, file, clip in zip(codes, files, clips, strict=True):
        wav = run.codec.decode_clip(own)[: round(edges[-1] * run.codec.sample_rate)]
        audio_io.write(Path(inputs.settings.out) / file, wav, run.codec.sample_rate)
        measures.append(measure_stretches(wav, own.numpy(), clip, edges, run))
    return measures


def _summarize(measures: Measures, stretches: int, inputs: AnalysisInputs) -> list[MetricValues]:
    """The mean of each measure with its interval, of each stretch."""
    names = list(dict.fromkeys(name for each in measures for name in each))
    values = {name: np.stack([each[name] for each in measures if name in each]) for name in names}  # [N, M]
    return [{name: inputs.summarize(each[:, m]) for name, each in values.items()} for m in range(stretches)]


def _to_json(values: MetricValues) -> JsonValue:
    return {name: value.to_dict() for name, value in values.items()}
