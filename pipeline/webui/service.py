"""Generate the sounds that visitors request, with the functions behind `python -m pipeline.generate`.

The same settings give the same bytes as that command. Every request has its own folder, which is deleted at its end.
"""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.audio import audio_io
from pipeline.audio.audio_io import AudioError
from pipeline.audio.codecs.base import Codec
from pipeline.common.errors import InputError
from pipeline.common.settings import flatten_settings, format_override, format_value
from pipeline.evaluation.html_templates import LabeledAudio
from pipeline.generation.loaded_run import LoadedRun, limit_threads
from pipeline.generation.prompts import SourceAudio
from pipeline.generation.request import AudioRequest, build_requests, num_samples
from pipeline.generation.runner import GeneratedFile, generate_files
from pipeline.generation.settings import GenerateSettings, default_settings
from pipeline.webui.file_store import FileStore
from pipeline.webui.settings import MB, DemoSettings, LimitSettings

OnCodes = Callable[[Tensor], None]  # gets codes [B, K, T] of a batch
OnProgress = Callable[[Tensor, float, float], None]  # codes [B, K, T], seconds so far, and in total


@dataclass(frozen=True)
class GenerationResult:
    """The sounds of one request.

    Attributes:
        requests: One for each file.
        generated: The generated files.
        files: Sounds, their .json sidecars, and the prompts that these name.
        rate: The sample rate of the sounds, in Hz.
        command: The command line that generates the same sounds.
    """

    requests: Sequence[AudioRequest]
    generated: Sequence[GeneratedFile]
    files: Sequence[Path]
    rate: int
    command: str

    @property
    def sources(self) -> Sequence[SourceAudio]:
        """The prompts."""
        return self.requests[0].sources

    @property
    def sounds(self) -> list[LabeledAudio]:
        """The clips of all files, labeled with their seeds."""
        return [
            LabeledAudio(f"seed {request.clips[0].seed}", wav)
            for request, generated in zip(self.requests, self.generated, strict=True)
            for wav in generated.clips
        ]


@dataclass(frozen=True)
class GenerationService:
    """Loaded models, and the limits of what they generate for visitors.

    Attributes:
        loaded_runs: By the name of their run.
        codecs: The codec of each run, with all its codebooks.
        settings: Those of the page.
        requests_folder: Contains a folder for each request that is running.
        store: The only files that a request may name.
    """

    loaded_runs: Mapping[str, LoadedRun]
    codecs: Mapping[str, Codec]
    settings: DemoSettings
    requests_folder: Path
    store: FileStore

    @contextmanager
    def request_folder(self) -> Iterator[Path]:
        """Create the folder of a request, and delete it at the end.

        Raises InputError if the request fails, without the name of the folder in its message.
        """
        with tempfile.TemporaryDirectory(dir=self.requests_folder, prefix="request-") as name:
            try:
                yield Path(name)
            except InputError as error:
                raise InputError(str(error).replace(f"{name}/", "")) from None

    def generate(self, settings: GenerateSettings, folder: Path, on_progress: OnProgress) -> GenerationResult:
        """Generate the sounds of one request.

        Args:
            settings: What to generate. The prompts that they name are in `folder`.
            folder: Folder of the request.
            on_progress: Gets the new codes [B, K, T] of each step, the seconds generated so far, and their total.

        Raises:
            InputError: if the settings do not fit the model or are beyond the limits.
        """
        limits = self.settings.limits
        for name, value, limit in (
            ("n", settings.n, limits.samples),
            ("steps", settings.steps if settings.mode == "interpolate" else 0, limits.steps),
        ):
            if value > limit:
                raise InputError(f"{name}={value}: this page generates at most {limit}")
        out = folder / f"{sound_name(settings)}.wav"
        loaded, settings = self.loaded_run(settings.run), settings.model_copy(update={"out": str(out)})
        frames, rate = loaded.codec.num_frames(self.samples(settings)), loaded.codec.frame_rate
        requests = build_requests(settings, loaded)
        clips, done = sum(len(request.clips) for request in requests), 0

        def on_codes(codes: Tensor) -> None:
            nonlocal done
            done += codes.shape[0] * codes.shape[2]
            on_progress(codes, done / rate, clips * frames / rate)

        with _thread_limit(loaded, clips):
            generated = list(generate_files(loaded, requests, self.settings.chunk, on_codes=on_codes))
        files = [path for file in generated for path in (file.path, make_portable(file.path, folder, settings.run))]
        files += sorted({source.path for request in requests for source in request.sources})
        command = format_command(settings, folder)
        return GenerationResult(requests, generated, files, loaded.codec.sample_rate, command)

    def samples(self, settings: GenerateSettings) -> int:
        """Return the length of each requested sound in samples. Raises InputError if it is beyond the limit."""
        loaded, limit = self.loaded_run(settings.run), self.settings.limits.seconds
        samples = num_samples(settings.seconds, loaded)
        seconds = samples / loaded.codec.sample_rate
        if seconds > limit:
            raise InputError(f"seconds={seconds:g}: this page generates at most {limit:g} s")
        return samples

    def is_longer_than_training(self, settings: GenerateSettings) -> bool:
        """Return whether the requested sounds are longer than the training clips, if their length is known."""
        loaded = self.loaded_run(settings.run)
        frames = loaded.codec.num_frames(self.samples(settings))
        return loaded.trained_frames is not None and frames > loaded.trained_frames

    def loaded_run(self, run: str | None) -> LoadedRun:
        """Return the run of this name. Raises InputError if the page has no such run."""
        if run is None or run not in self.loaded_runs:
            raise InputError(f"run={run}: this page has {', '.join(self.loaded_runs)}")
        return self.loaded_runs[run]


def safe_name(text: str) -> str:
    """A text as a part of a file name, of at most 40 characters."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:40].rstrip("-")


def sound_name(settings: GenerateSettings) -> str:
    """The name of a generated sound: its model, its prompts, and the seed of the first sound."""
    prompts = [settings.prompt] if isinstance(settings.prompt, str) else settings.prompt
    prompts = prompts or [keyframe.prompt for keyframe in settings.keyframes or [] if keyframe.prompt]
    texts = [settings.prompt_text] if isinstance(settings.prompt_text, str) else settings.prompt_text or []
    names = [*(Path(prompt).stem for prompt in prompts), *texts]
    parts = [Path(settings.run or "").name, *names, f"seed{settings.seed}"]
    return "-".join(filter(None, map(safe_name, parts)))[-120:].lstrip("-")


@contextmanager
def _thread_limit(loaded: LoadedRun, clips: int) -> Iterator[None]:
    """Use the best number of threads for this number of clips, and restore the previous number at the end."""
    before = torch.get_num_threads()
    limit_threads(loaded, clips)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_upload(file: Path, limits: LimitSettings) -> None:
    """Raises InputError if a file is empty, too large, too long, or not audio."""
    size = file.stat().st_size
    if size == 0:
        raise InputError(f"{file.name} is empty: it has 0 bytes")
    if size > limits.upload_mb * MB:
        raise InputError(f"{file.name} has {size / MB:.1f} MB: this page accepts at most {limits.upload_mb:g} MB")
    try:
        seconds = audio_io.info(file).seconds
    except AudioError as error:
        raise InputError(f"{file.name} cannot be played: {error.reason}") from None
    if seconds > limits.upload_seconds:
        raise InputError(f"{file.name} lasts {seconds:.0f} s: this page accepts at most {limits.upload_seconds:g} s")


def make_portable(sound: Path, folder: Path, run: str | None) -> Path:
    """Make the paths in the sidecar of a sound relative, and return the sidecar's path.

    The sidecar then works in any folder that contains the prompts, and names no folder of this machine. The run has
    the name that the page uses.
    """
    file = sound.with_suffix(".json")
    sidecar = _make_relative(json.loads(file.read_text()), f"{folder}/")
    sidecar["export"]["folder"] = run
    file.write_text(json.dumps(sidecar, indent=1, ensure_ascii=False) + "\n")
    return file


def _make_relative(value: Any, prefix: str) -> Any:
    if isinstance(value, dict):
        return {key: _make_relative(item, prefix) for key, item in value.items()}
    if isinstance(value, list):
        return [_make_relative(item, prefix) for item in value]
    return value.removeprefix(prefix) if isinstance(value, str) else value


def format_command(settings: GenerateSettings, folder: Path) -> str:
    """Return the command line that generates the same sounds in a folder that contains the prompts."""
    defaults = flatten_settings(default_settings().to_dict())
    overrides = []
    for name, value in _make_relative(flatten_settings(settings.to_dict()), f"{folder}/").items():
        if value != defaults.get(name):
            is_list = isinstance(value, list)
            overrides.append(f"{name}={format_value(value)}" if is_list else format_override(name, value))
    return shlex.join(["python", "-m", "pipeline.generate", *overrides])
