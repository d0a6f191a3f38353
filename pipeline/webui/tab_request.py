"""A visitor's click on the button of a tab: its files, its generations, and its progress.

Letters: B batch, K codebooks, T frames.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import LocalContext
from torch import Tensor

from pipeline.common.errors import InputError
from pipeline.common.settings import parse_settings
from pipeline.generation.settings import GenerateSettings, SamplingSettings, default_settings, sampling_settings
from pipeline.webui import components
from pipeline.webui.condition_inputs import split_conditions
from pipeline.webui.file_store import NOT_STORED
from pipeline.webui.service import GenerationResult, GenerationService, OnCodes, check_upload, safe_name
from pipeline.webui.streaming import AudioStreamRegistry, stream_audio

MAX_RANDOM_SEED = 1_000_000  # random seeds are below this, so that they are short


@dataclass(frozen=True)
class Controls:
    """The values of the controls that all tabs with `has_controls` have."""

    sampling: SamplingSettings
    seconds: float
    seed: int


def read_controls(default: SamplingSettings, numbers: Sequence[float | None], use_new_seed: bool) -> Controls:
    """Return the values of the controls, with the seed that is used.

    Args:
        default: The sampling settings that have no slider.
        numbers: The values of the sliders, the seconds and the seed.
        use_new_seed: Whether a random seed replaces that of the controls.

    Raises:
        InputError: A number is missing.
    """
    *values, seconds, seed = numbers
    if use_new_seed:
        seed = secrets.randbelow(MAX_RANDOM_SEED)
    chosen = {
        name: int(value) if isinstance(slider.step, int) else value
        for (name, slider), value in zip(default.sliders().items(), values, strict=True)
        if value is not None
    }
    if seconds is None or seed is None or len(chosen) < len(values):
        raise InputError("a setting has no number: give one")
    return Controls(sampling_settings(**{**default.to_dict(), **chosen}), seconds, int(seed))


@dataclass(frozen=True)
class TabRequest:
    """A click on the button of a tab.

    Attributes:
        service: Generates sounds.
        streams: Sounds that play while they are generated.
        folder: The folder of the request, which is deleted at its end.
        visitor: The visitor whose space results use.
        controls: The values of the tab's controls.
        progress: The progress bar.
    """

    service: GenerationService
    streams: AudioStreamRegistry
    folder: Path
    visitor: str
    controls: Controls
    progress: Callable[..., Any]

    def upload(self, sound: str | None) -> Path:
        """Return a copy of an upload, a result or an example, in the folder of the request."""
        return copy_upload(self.service, sound, self.folder)

    def split_conditions(self, values: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """Split the values of a tab's inputs, the first of them the model and the last those of its conditions.

        Returns:
            The values of the other inputs, and the setting `conditions`.
        """
        return split_conditions(self.service.loaded_runs, values)

    def settings(self, run: str, **changes: Any) -> GenerateSettings:
        """Return the settings of pipeline.generate for this request: those of the controls, and `changes`.

        A sound that is longer than the training clips is generated with a sliding window.
        """
        controls = self.controls
        own = {"run": run, "seconds": controls.seconds, "seed": controls.seed, "sampling": controls.sampling}
        settings = parse_settings(GenerateSettings, {**default_settings().to_dict(), **own, **changes})
        if "mode" not in changes and self.service.is_longer_than_training(settings):
            return settings.model_copy(update={"mode": "continue"})
        return settings

    def generate(
        self, settings: GenerateSettings, on_codes: OnCodes = lambda codes: None, label: str = "sound"
    ) -> GenerationResult:
        """Generate sounds, within the limits of the page. It stops when the visitor closes the page.

        Args:
            settings: From `settings`.
            on_codes: Gets new codes [B, K, T] while they are generated.
            label: The text of the progress bar.
        """

        def on_progress(codes: Tensor, seconds: float, total: float) -> None:
            self.report(seconds / total, f"{label}: {seconds:.1f} s of {total:.1f} s")
            on_codes(codes)

        return self.service.generate(settings, self.folder, on_progress)

    @contextmanager
    def stream(self, settings: GenerateSettings) -> Iterator[tuple[str, OnCodes]]:
        """The HTML of a player for the first sound while it is generated, and a function that gets its codes."""
        loaded, samples = self.service.loaded_run(settings.run), self.service.samples(settings)
        rate, frames = loaded.codec.sample_rate, loaded.codec.num_frames(samples)
        name, stream = self.streams.begin(samples, rate, loaded.codec.channels)
        with stream_audio(stream, loaded.codec, frames, loaded.model.config.end_of_audio) as push_codes:
            yield components.stream_player(name, samples / rate), push_codes

    def report(self, fraction: float, text: str) -> None:
        """Move the progress bar. Call it before each part of the work: it ends the request if the page was closed."""
        if _is_page_closed():
            raise InputError("the page was closed")
        self.progress(min(1.0, fraction), desc=text)

    def store(self, files: Sequence[Path]) -> list[str]:
        """Move results into the file store, from which they can be downloaded until they expire."""
        return [str(file) for file in self.service.store.add_results(self.visitor, files)]


@contextmanager
def errors_shown() -> Iterator[None]:
    """Show the message of an InputError on the page."""
    try:
        yield
    except InputError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from None


def copy_upload(service: GenerationService, sound: str | None, folder: Path) -> Path:
    """Copy a file of the file store into the folder of a request, under a safe unique name, and return its path.

    Raises:
        InputError: It is missing, too large, too long or not audio.
    """
    if sound is None:
        raise InputError("a sound is missing: upload or record one, or pick an example")
    stored = service.store.find(sound)
    if stored is None:
        raise InputError(NOT_STORED)
    stem = safe_name(stored.stem) or "prompt"
    suffix = stored.suffix.lower() if stored.suffix[1:].isalnum() else ""
    used = {path.stem for path in folder.iterdir()}
    name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, 99))) if n not in used)
    target = folder / f"{name}{suffix}"
    try:
        shutil.copyfile(stored, target)
    except FileNotFoundError:  # deleted in the meantime, to make space
        raise InputError(NOT_STORED) from None
    check_upload(target, service.settings.limits)
    return target


def _is_page_closed() -> bool:
    """Whether the visitor has closed the page that started the running event. Then Gradio sets `alive` to False."""
    blocks, event_id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    event = None if blocks is None else blocks._queue.event_ids_to_events.get(event_id or "")
    return event is not None and not event.alive
