"""What happens when a button of the page is pressed. Each act yields what its tab shows, first and last.

Letters: B clips, K codebooks, T frames, S samples.
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

SEEDS = 1_000_000  # a seed that is drawn is below it: short enough to be read out
Shown = tuple[Any, ...]
Progress = Callable[..., Any]


@dataclass(frozen=True)
class GenerationControls:
    """The settings that all tabs have, as the page hands them over."""

    temperature: float
    top_k: float
    guidance: float
    seconds: float
    seed: float | None
    fresh: bool  # draw another seed

    def asked(self) -> dict[str, Any]:
        """As settings of pipeline.generate. Raises InputError where there is no number."""
        given = (self.temperature, self.top_k, self.guidance, self.seconds)
        if any(value is None for value in given) or (self.seed is None and not self.fresh):
            raise InputError("a setting has no number: give one")
        sampling = {"temperature": self.temperature, "top_k": int(self.top_k), "guidance": self.guidance}
        seed = secrets.randbelow(SEEDS) if self.fresh else int(self.seed or 0)
        return {"seconds": self.seconds, "seed": seed, "sampling": sampling}


@dataclass(frozen=True)
class Handlers:
    """channels: where sounds are heard while they are made."""

    desk: GenerationService
    channels: AudioStreamRegistry

    def generate(
        self,
        run: str,
        prompt: str | None,
        samples: float,
        *knobs: Any,
        visitor: str = "",
        progress: Progress = lambda *_, **__: None,
    ) -> Iterator[Shown]:
        """Sounds from one prompt, or none: on air, results, files, the seed."""
        with self._asked() as room:
            instrument, asked = self.desk.instrument(run), GenerationControls(*knobs).asked()
            brought = None if prompt is None else self.desk.ingest_upload(prompt, room)
            asked = self._whole_or_long(instrument, asked) | ({} if brought is None else {"prompt": str(brought)})
            asked |= {"n": int(samples)}
            with self._on_air(instrument, asked) as (player, take):
                yield player, components.note("Being made…"), None, asked["seed"]
                answer = self.desk.generate(
                    run, asked, room, self._watch(instrument, asked, int(samples), progress, take)
                )
            yield gr.skip(), self._results(instrument, answer), self._kept(visitor, answer.files), asked["seed"]

    def interpolate(
        self, run: str, first: str | None, last: str | None, steps: float, blend: str, *knobs: Any,
        visitor: str = "", progress: Progress = lambda *_, **__: None,
    ) -> Iterator[Shown]:  # fmt: skip
        """Clips on the way from one prompt to another: results, files, the seed."""
        with self._asked() as room:
            instrument, asked = self.desk.instrument(run), GenerationControls(*knobs).asked()
            ends = [str(self.desk.ingest_upload(prompt, room)) for prompt in (first, last)]
            asked |= {"mode": "interpolate", "prompt": ends, "steps": int(steps), "blend": blend}
            yield components.note("Being made…"), None, asked["seed"]
            answer = self.desk.generate(run, asked, room, self._watch(instrument, asked, int(steps), progress))
            ((piece, made),) = answer.pieces
            rate = instrument.codec.sample_rate
            start, end = (
                LabeledAudio(name, source.wav) for name, source in zip(("from", "to"), piece.sources, strict=True)
            )
            strip = [LabeledAudio(f"step {i + 1}", wav) for i, wav in enumerate(made.clips)]
            whole = LabeledAudio(f"all {len(strip)} steps, joined", audio_io.read(made.path, rate=rate))
            html = components.row("The whole way", [whole], rate, wide=True) + components.row(
                "Step by step", [start, *strip, end], rate
            )
            yield html + components.command(answer.command), self._kept(visitor, answer.files), asked["seed"]

    def morph(
        self, run: str, stops: Sequence[tuple[float | None, str | None]], blend: str, *knobs: Any,
        visitor: str = "", progress: Progress = lambda *_, **__: None,
    ) -> Iterator[Shown]:  # fmt: skip
        """One piece whose prompt moves from keyframe to keyframe (seconds, sound): on air, results, files, the seed.

        Raises InputError for fewer than two keyframes, or one behind the end.
        """
        with self._asked() as room:
            instrument, asked = self.desk.instrument(run), GenerationControls(*knobs).asked()
            given = sorted((float(at or 0), prompt) for at, prompt in stops if prompt is not None)
            if len(given) < 2:
                raise InputError("a morph goes from sound to sound: give two keyframes or more")
            keyframes = [{"at": at, "prompt": str(self.desk.ingest_upload(prompt, room))} for at, prompt in given]
            if given[-1][0] >= asked["seconds"]:
                raise InputError(
                    f"the last keyframe is at {given[-1][0]:g} s, and the piece ends at {asked['seconds']:g} s"
                )
            asked |= {"mode": "morph", "keyframes": keyframes, "blend": blend}
            with self._on_air(instrument, asked) as (player, take):
                yield player, components.note("Being made…"), None, asked["seed"]
                answer = self.desk.generate(run, asked, room, self._watch(instrument, asked, 1, progress, take))
            ((piece, made),) = answer.pieces
            rate = instrument.codec.sample_rate
            sounds = [LabeledAudio(f"at {at:g} s", s.wav) for (at, _), s in zip(given, piece.sources, strict=True)]
            whole = [LabeledAudio(f"seed {asked['seed']}", wav) for wav in made.clips]
            html = components.row("The piece", whole, rate, wide=True) + components.row("Keyframes", sounds, rate)
            yield gr.skip(), html + components.command(answer.command), self._kept(visitor, answer.files), asked["seed"]

    def compare(
        self, runs: Sequence[str], prompt: str | None, samples: float, *knobs: Any,
        visitor: str = "", progress: Progress = lambda *_, **__: None,
    ) -> Iterator[Shown]:  # fmt: skip
        """The same prompt and seeds by each of several runs: results, the seed.

        Raises InputError where no model is chosen.
        """
        with self._asked() as room:
            if not runs:
                raise InputError("no model is chosen: tick one")
            asked = GenerationControls(*knobs).asked() | {"n": int(samples)}
            brought = {} if prompt is None else {"prompt": str(self.desk.ingest_upload(prompt, room))}
            yield components.note("Being made…"), asked["seed"]
            html = ""
            for i, run in enumerate(dict.fromkeys(runs)):
                instrument = self.desk.instrument(run)
                words, place = self._whole_or_long(instrument, asked) | brought, room / str(i)
                place.mkdir()
                watch = self._watch(instrument, words, int(samples), progress, label=run)
                answer = self.desk.generate(run, words, place, watch)
                if not i and brought:
                    source = answer.pieces[0][0].sources[0]
                    html = components.row(
                        "Prompt", [LabeledAudio("original", source.wav)], instrument.codec.sample_rate
                    )
                title = f"{run} · {instrument.model.config.pattern}, {instrument.model.config.codebooks} codebooks"
                html += components.row(title, _seeded(answer), instrument.codec.sample_rate)
            yield html, asked["seed"]

    def codec(
        self,
        run: str,
        sound: str | None,
        counts: Sequence[int],
        visitor: str = "",
        progress: Progress = lambda *_, **__: None,
    ) -> Iterator[Shown]:
        """A sound through the codec with 1, 2, 3... codebooks: results, files.

        Raises InputError where no number of codebooks is chosen.
        """
        with self._asked() as room:
            self.desk.instrument(run)
            codec, file = self.desk.codecs[run], self.desk.ingest_upload(sound, room)
            chosen = sorted({int(count) for count in counts if 1 <= int(count) <= codec.codebooks})
            if not chosen:
                raise InputError("no number of codebooks is chosen: tick one")
            wav = audio_io.read(file, duration=self.desk.limits.seconds, rate=codec.sample_rate)
            codes = codec.encode(torch.from_numpy(wav)[None, None])  # [1, K, T]
            sounds, files = [LabeledAudio("original", wav)], []
            for i, count in enumerate(chosen):
                progress(i / len(chosen), desc=f"{count} codebooks")
                heard = codec.decode(codes[:, :count])[0, 0, : len(wav)].cpu().numpy()
                distance = metrics.log_spectral_distance(wav, heard)
                label = f"Q = {count} · {count * codec.bandwidth / 1000:g} kbit/s · {distance:.1f} dB away"
                sounds.append(LabeledAudio(label, heard))
                files.append(room / f"{file.stem}.k{count}.wav")
                audio_io.write(files[-1], heard, codec.sample_rate)
            text = "dB away: log-spectral distance from the original, of which 0 is the same."
            yield components.row("", sounds, codec.sample_rate) + components.note(text), self._kept(visitor, files)

    def check(self, upload: str | None) -> None:
        """Say at once what is wrong with a sound that has just come in."""
        if upload is None:
            return
        with self._asked() as room:
            file = self.desk.ingest_upload(upload, room)
            wav = audio_io.read(file, duration=self.desk.defaults["prompt_seconds"])
            if audio_io.is_silent(wav):
                gr.Warning(f"{file.name} is silent: expect what the model makes of silence")

    # ---- what they share ---------------------------------------------------------------------------------------
    @contextmanager
    def _asked(self) -> Iterator[Path]:
        """A folder for the request; what was wrong with it is told on the page."""
        try:
            with self.desk.request_dir() as room:
                yield room
        except InputError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from None

    def _whole_or_long(self, instrument: LoadedRun, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Beyond the clips of training a sound is continued by a window that moves on."""
        frames = instrument.codec.num_frames(self.desk.samples(asked, instrument))
        longer = instrument.trained_frames is not None and frames > instrument.trained_frames
        return {**asked, **({"mode": "continue"} if longer else {})}

    @contextmanager
    def _on_air(
        self, instrument: LoadedRun, asked: Mapping[str, Any]
    ) -> Iterator[tuple[str, Callable[[Tensor], None]]]:
        """The player of what is being made, and what takes its codes [B, K, t]."""
        samples, rate = self.desk.samples(asked, instrument), instrument.codec.sample_rate
        name, channel = self.channels.begin(samples, rate)
        ends = instrument.model.config.end_of_audio
        with stream_audio(channel, instrument.codec, instrument.codec.num_frames(samples), ends) as take:
            yield components.on_air(name, samples / rate), take

    def _watch(
        self, instrument: LoadedRun, asked: Mapping[str, Any], clips: int, progress: Progress,
        *others: Callable[[Tensor], None], label: str = "sound",
    ) -> Callable[[Tensor], None]:  # fmt: skip
        """Moves the progress bar, and hands codes [B, K, t] on. Raises gr.Error once the page has been closed."""
        total, made = clips * instrument.codec.num_frames(self.desk.samples(asked, instrument)), 0

        def watch(codes: Tensor) -> None:
            nonlocal made
            if _client_is_gone():
                raise gr.Error("the page was closed", print_exception=False)
            for other in others:
                other(codes)
            made += codes.shape[0] * codes.shape[2]
            rate = instrument.codec.frame_rate
            progress(min(1.0, made / total), desc=f"{label}: {made / rate:.1f} s of {total / rate:.1f} s")

        return watch

    def _kept(self, visitor: str, files: Sequence[Path]) -> list[str]:
        """Move results into the file store, where they can be downloaded for a while."""
        return [str(file) for file in self.desk.store.add_results(visitor, files)]

    def _results(self, instrument: LoadedRun, answer: GenerationResult) -> str:
        """Original beside results."""
        sources, rate = answer.pieces[0][0].sources, instrument.codec.sample_rate
        original = [LabeledAudio("original (the prompt)", source.wav) for source in sources]
        return components.row("", [*original, *_seeded(answer)], rate) + components.command(answer.command)


def _seeded(answer: GenerationResult) -> list[LabeledAudio]:
    return [LabeledAudio(f"seed {piece.clips[0].seed}", wav) for piece, made in answer.pieces for wav in made.clips]


def _client_is_gone() -> bool:
    """Whether the page that waits for the running event has been closed. Gradio sets `alive` to False then."""
    blocks, event_id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    event = None if blocks is None else blocks._queue.event_ids_to_events.get(event_id or "")
    return event is not None and not event.alive
