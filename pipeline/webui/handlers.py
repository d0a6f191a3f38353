"""Handlers of the page's buttons. Each yields the new values of its tab's outputs, one or more times.

Letters: B batch, K codebooks, T frames, S samples.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from gradio.context import LocalContext
from torch import Tensor

from pipeline.audio import audio_io, metrics
from pipeline.common.errors import InputError
from pipeline.evaluation.report_sections import LabeledAudio
from pipeline.generation.loaded_run import LoadedRun
from pipeline.webui import components
from pipeline.webui.service import GenerationResult, GenerationService
from pipeline.webui.streaming import AudioStreamRegistry, stream_audio

MAX_RANDOM_SEED = 1_000_000  # random seeds are below this, so that they are short
Outputs = tuple[Any, ...]
Progress = Callable[..., Any]


@dataclass(frozen=True)
class GenerationControls:
    """The values of the controls that all tabs have."""

    temperature: float
    top_k: float
    guidance: float
    seconds: float
    seed: float | None
    use_new_seed: bool

    def settings(self) -> dict[str, Any]:
        """Return them as settings of pipeline.generate. Raises InputError if a number is missing."""
        values = (self.temperature, self.top_k, self.guidance, self.seconds)
        if any(value is None for value in values) or (self.seed is None and not self.use_new_seed):
            raise InputError("a setting has no number: give one")
        sampling = {"temperature": self.temperature, "top_k": int(self.top_k), "guidance": self.guidance}
        seed = secrets.randbelow(MAX_RANDOM_SEED) if self.use_new_seed else int(self.seed or 0)
        return {"seconds": self.seconds, "seed": seed, "sampling": sampling}


@dataclass(frozen=True)
class Handlers:
    """Handlers of all tabs.

    Attributes:
        service: Generates the sounds.
        streams: Sounds that play while they are generated.
    """

    service: GenerationService
    streams: AudioStreamRegistry

    def generate(
        self,
        run: str,
        prompt: str | None,
        samples: float,
        *controls: Any,
        visitor: str = "",
        progress: Progress = lambda *_, **__: None,
    ) -> Iterator[Outputs]:
        """Generate sounds from one prompt, or without a prompt.

        Yields the player, the results, the files to download, and the seed.
        """
        with self._request_folder() as folder:
            loaded, settings = self.service.loaded_run(run), GenerationControls(*controls).settings()
            prompt_setting = {} if prompt is None else {"prompt": str(self.service.ingest_upload(prompt, folder))}
            settings = self._with_mode(loaded, settings) | prompt_setting | {"n": int(samples)}
            with self._open_stream(loaded, settings) as (player, push_codes):
                yield player, components.note("Generating…"), None, settings["seed"]
                on_codes = self._progress_callback(loaded, settings, int(samples), progress, push_codes)
                result = self.service.generate(run, settings, folder, on_codes)
            files = self._store_results(visitor, result.files)
            yield gr.skip(), self._results_html(loaded, result), files, settings["seed"]

    def interpolate(
        self, run: str, first: str | None, last: str | None, steps: float, blend: str, *controls: Any,
        visitor: str = "", progress: Progress = lambda *_, **__: None,
    ) -> Iterator[Outputs]:  # fmt: skip
        """Generate clips from one prompt to another. Yields the results, the files to download, and the seed."""
        with self._request_folder() as folder:
            loaded, settings = self.service.loaded_run(run), GenerationControls(*controls).settings()
            ends = [str(self.service.ingest_upload(prompt, folder)) for prompt in (first, last)]
            settings |= {"mode": "interpolate", "prompt": ends, "steps": int(steps), "blend": blend}
            yield components.note("Generating…"), None, settings["seed"]
            on_codes = self._progress_callback(loaded, settings, int(steps), progress)
            result = self.service.generate(run, settings, folder, on_codes)
            ((request, generated),) = result.outputs
            rate = loaded.codec.sample_rate
            start, end = (
                LabeledAudio(name, source.wav) for name, source in zip(("from", "to"), request.sources, strict=True)
            )
            clips = [LabeledAudio(f"step {i + 1}", wav) for i, wav in enumerate(generated.clips)]
            joined = LabeledAudio(f"all {len(clips)} steps, joined", audio_io.read(generated.path, rate=rate))
            html = components.row("All steps", [joined], rate, wide=True) + components.row(
                "Step by step", [start, *clips, end], rate
            )
            files = self._store_results(visitor, result.files)
            yield html + components.command(result.command), files, settings["seed"]

    def morph(
        self, run: str, stops: Sequence[tuple[float | None, str | None]], blend: str, *controls: Any,
        visitor: str = "", progress: Progress = lambda *_, **__: None,
    ) -> Iterator[Outputs]:  # fmt: skip
        """Generate one sound whose prompt moves from keyframe to keyframe (seconds, sound).

        Yields the player, the results, the files to download, and the seed.

        Raises:
            gr.Error: if there are fewer than two keyframes, or one is after the end.
        """
        with self._request_folder() as folder:
            loaded, settings = self.service.loaded_run(run), GenerationControls(*controls).settings()
            points = sorted((float(at or 0), prompt) for at, prompt in stops if prompt is not None)
            if len(points) < 2:
                raise InputError("a morph moves between sounds: give at least two keyframes")
            keyframes = [{"at": at, "prompt": str(self.service.ingest_upload(prompt, folder))} for at, prompt in points]
            if points[-1][0] >= settings["seconds"]:
                raise InputError(
                    f"the last keyframe is at {points[-1][0]:g} s, but the sound ends at {settings['seconds']:g} s"
                )
            settings |= {"mode": "morph", "keyframes": keyframes, "blend": blend}
            with self._open_stream(loaded, settings) as (player, push_codes):
                yield player, components.note("Generating…"), None, settings["seed"]
                on_codes = self._progress_callback(loaded, settings, 1, progress, push_codes)
                result = self.service.generate(run, settings, folder, on_codes)
            ((request, generated),) = result.outputs
            rate = loaded.codec.sample_rate
            sources = zip(points, request.sources, strict=True)
            sounds = [LabeledAudio(f"at {at:g} s", source.wav) for (at, _), source in sources]
            joined = [LabeledAudio(f"seed {settings['seed']}", wav) for wav in generated.clips]
            html = components.row("The sound", joined, rate, wide=True) + components.row("Keyframes", sounds, rate)
            files = self._store_results(visitor, result.files)
            yield gr.skip(), html + components.command(result.command), files, settings["seed"]

    def compare(
        self, runs: Sequence[str], prompt: str | None, samples: float, *controls: Any,
        visitor: str = "", progress: Progress = lambda *_, **__: None,
    ) -> Iterator[Outputs]:  # fmt: skip
        """Generate sounds from the same prompt and seeds with several runs. Yields the results and the seed.

        Raises:
            gr.Error: if no model is selected.
        """
        with self._request_folder() as folder:
            if not runs:
                raise InputError("no model is selected: select one")
            settings = GenerationControls(*controls).settings() | {"n": int(samples)}
            prompt_setting = {} if prompt is None else {"prompt": str(self.service.ingest_upload(prompt, folder))}
            yield components.note("Generating…"), settings["seed"]
            html = ""
            for i, run in enumerate(dict.fromkeys(runs)):
                loaded = self.service.loaded_run(run)
                request_folder = folder / str(i)
                request_folder.mkdir()
                request_settings = self._with_mode(loaded, settings) | prompt_setting
                on_codes = self._progress_callback(loaded, request_settings, int(samples), progress, label=run)
                result = self.service.generate(run, request_settings, request_folder, on_codes)
                if not i and prompt is not None:
                    source = result.outputs[0][0].sources[0]
                    html = components.row("Prompt", [LabeledAudio("original", source.wav)], loaded.codec.sample_rate)
                title = f"{run} · {loaded.model.config.pattern}, {loaded.model.config.codebooks} codebooks"
                html += components.row(title, _labeled_sounds(result), loaded.codec.sample_rate)
            yield html, settings["seed"]

    def codec(
        self,
        run: str,
        sound: str | None,
        counts: Sequence[int],
        visitor: str = "",
        progress: Progress = lambda *_, **__: None,
    ) -> Iterator[Outputs]:
        """Encode and decode a sound with several numbers of codebooks. Yields the results and the files to download.

        Raises:
            gr.Error: if no number of codebooks is selected.
        """
        with self._request_folder() as folder:
            self.service.loaded_run(run)
            codec, file = self.service.codecs[run], self.service.ingest_upload(sound, folder)
            chosen = sorted({int(count) for count in counts if 1 <= int(count) <= codec.codebooks})
            if not chosen:
                raise InputError("no number of codebooks is selected: select one")
            wav = audio_io.read(file, duration=self.service.limits.seconds, rate=codec.sample_rate)
            codes = codec.encode(torch.from_numpy(wav)[None, None])  # [1, K, T]
            sounds, files = [LabeledAudio("original", wav)], []
            for i, count in enumerate(chosen):
                progress(i / len(chosen), desc=f"{count} codebooks")
                decoded = codec.decode(codes[:, :count])[0, 0, : len(wav)].cpu().numpy()
                distance = metrics.log_spectral_distance(wav, decoded)
                label = f"Q = {count} · {count * codec.bandwidth / 1000:g} kbit/s · {distance:.1f} dB away"
                sounds.append(LabeledAudio(label, decoded))
                files.append(folder / f"{file.stem}.k{count}.wav")
                audio_io.write(files[-1], decoded, codec.sample_rate)
            text = "dB away: log-spectral distance from the original; 0 means that they are equal."
            html = components.row("", sounds, codec.sample_rate) + components.note(text)
            yield html, self._store_results(visitor, files)

    def check(self, upload: str | None) -> None:
        """Check an upload as soon as it arrives. Raises gr.Error if it cannot be used; warns if it is silent."""
        if upload is None:
            return
        with self._request_folder() as folder:
            file = self.service.ingest_upload(upload, folder)
            wav = audio_io.read(file, duration=self.service.defaults["prompt_seconds"])
            if audio_io.is_silent(wav):
                gr.Warning(f"{file.name} is silent: the model will get silence as its prompt")

    # ---- shared by the handlers ---------------------------------------------------------------------------------
    @contextmanager
    def _request_folder(self) -> Iterator[Path]:
        """Create a folder for the request. Its errors are shown on the page."""
        try:
            with self.service.request_folder() as folder:
                yield folder
        except InputError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from None

    def _with_mode(self, loaded: LoadedRun, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings; with the mode `continue` (a sliding window) if the sound is longer than the training clips."""
        frames = loaded.codec.num_frames(self.service.samples(settings, loaded))
        longer = loaded.trained_frames is not None and frames > loaded.trained_frames
        return {**settings, **({"mode": "continue"} if longer else {})}

    @contextmanager
    def _open_stream(
        self, loaded: LoadedRun, settings: Mapping[str, Any]
    ) -> Iterator[tuple[str, Callable[[Tensor], None]]]:
        """The player of a sound that is being generated, and a function that receives its codes [B, K, T]."""
        samples, rate = self.service.samples(settings, loaded), loaded.codec.sample_rate
        name, stream = self.streams.begin(samples, rate)
        ends = loaded.model.config.end_of_audio
        with stream_audio(stream, loaded.codec, loaded.codec.num_frames(samples), ends) as push_codes:
            yield components.stream_player(name, samples / rate), push_codes

    def _progress_callback(
        self, loaded: LoadedRun, settings: Mapping[str, Any], clips: int, progress: Progress,
        *listeners: Callable[[Tensor], None], label: str = "sound",
    ) -> Callable[[Tensor], None]:  # fmt: skip
        """A function that moves the progress bar, and passes codes [B, K, T] on to the listeners.

        It raises gr.Error when the visitor has closed the page.
        """
        total, done_frames = clips * loaded.codec.num_frames(self.service.samples(settings, loaded)), 0

        def on_codes(codes: Tensor) -> None:
            nonlocal done_frames
            if _is_page_closed():
                raise gr.Error("the page was closed", print_exception=False)
            for listener in listeners:
                listener(codes)
            done_frames += codes.shape[0] * codes.shape[2]
            rate = loaded.codec.frame_rate
            progress(min(1.0, done_frames / total), desc=f"{label}: {done_frames / rate:.1f} s of {total / rate:.1f} s")

        return on_codes

    def _store_results(self, visitor: str, files: Sequence[Path]) -> list[str]:
        """Move results into the file store, from which they can be downloaded until they expire."""
        return [str(file) for file in self.service.store.add_results(visitor, files)]

    def _results_html(self, loaded: LoadedRun, result: GenerationResult) -> str:
        """The HTML of the prompt and the results."""
        sources, rate = result.outputs[0][0].sources, loaded.codec.sample_rate
        original = [LabeledAudio("original (the prompt)", source.wav) for source in sources]
        return components.row("", [*original, *_labeled_sounds(result)], rate) + components.command(result.command)


def _labeled_sounds(result: GenerationResult) -> list[LabeledAudio]:
    return [
        LabeledAudio(f"seed {request.clips[0].seed}", wav)
        for request, generated in result.outputs
        for wav in generated.clips
    ]


def _is_page_closed() -> bool:
    """Whether the visitor has closed the page that started the running event. Then Gradio sets `alive` to False."""
    blocks, event_id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    event = None if blocks is None else blocks._queue.event_ids_to_events.get(event_id or "")
    return event is not None and not event.alive
