"""What is asked for on the page, made by the functions behind `python -m pipeline.generate`: the same settings give the
same bytes.

Every request has a folder of its own, which is gone when it is answered.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
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
from pipeline.generation.loaded_run import LoadedRun, limit_threads
from pipeline.generation.request import AudioRequest, build_requests, num_samples, parse_sampling, resolve_window
from pipeline.generation.runner import GeneratedFile, generate_files
from pipeline.webui.file_store import NOT_STORED, FileStore, StorageFullError

Watch = Callable[[Tensor], None]
OUT = "sound.wav"
MB = 1 << 20  # as browsers count


@dataclass(frozen=True)
class Limits:
    """The setting `limits`."""

    upload_mb: float
    upload_seconds: float
    seconds: float
    samples: int
    steps: int
    waiting: int
    storage_mb: float
    visitor_mb: float
    connections: int
    visitor_connections: int
    header_seconds: float
    body_seconds: float


@dataclass(frozen=True)
class GenerationResult:
    """pieces: what was made; files: sounds, sidecars and the prompts these name; command: makes the same."""

    pieces: list[tuple[AudioRequest, GeneratedFile]]
    files: list[Path]
    command: str


@dataclass(frozen=True)
class GenerationService:
    """instruments: by the name of their run; codecs: theirs, with all codebooks; defaults: conf/generate.yaml.

    sampling: what the page has instead of its group of that name. chunk: seconds between two looks at what is made.
    store: the only files that a request may name.
    """

    instruments: Mapping[str, LoadedRun]
    codecs: Mapping[str, Codec]
    defaults: Mapping[str, Any]
    sampling: Mapping[str, Any]
    limits: Limits
    chunk: float
    folder: Path
    store: FileStore

    @contextmanager
    def request_dir(self) -> Iterator[Path]:
        """The folder of a request. Raises InputError for what was wrong with it, without naming the folder."""
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="asked-") as name:
            try:
                yield Path(name)
            except InputError as error:
                raise InputError(str(error).replace(f"{name}/", "")) from None
            except StorageFullError as error:
                raise InputError(str(error)) from None

    def ingest_upload(self, upload: str | Path | None, room: Path) -> Path:
        """An upload as a file of the room, by a plain name of its own. Raises InputError for what cannot be used."""
        if upload is None:
            raise InputError("a sound is missing: upload or record one, or pick an example")
        stored = self.store.find(upload)
        if stored is None:
            raise InputError(NOT_STORED)
        upload = stored
        stem = re.sub(r"[^A-Za-z0-9_]+", "-", upload.stem).strip("-")[:40] or "prompt"
        suffix = upload.suffix.lower() if upload.suffix[1:].isalnum() else ""
        taken = {path.stem for path in room.iterdir()} | {Path(OUT).stem}
        name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, 99))) if n not in taken)
        brought = room / f"{name}{suffix}"
        check_size(upload, brought.name, self.limits)
        try:
            shutil.copyfile(upload, brought)
        except FileNotFoundError:  # deleted meanwhile, to make space
            raise InputError(NOT_STORED) from None
        check_sound(brought, self.limits)
        return brought

    def generate(self, run: str, asked: Mapping[str, Any], room: Path, watch: Watch) -> GenerationResult:
        """Make what is asked for: settings of pipeline.generate, the sounds among them in the room.

        Raises InputError for what the settings cannot mean, and beyond the limits.
        """
        instrument = self.instrument(run)
        settings = self.settings(asked) | {"out": str(room / OUT)}
        sampling = parse_sampling(settings["sampling"])
        frames = instrument.codec.num_frames(self.samples(asked, instrument))
        window, found = resolve_window(settings, frames, instrument), build_requests(settings, instrument)
        batch, every = instrument.best_batch(window.frames if window else frames), self.every(instrument)
        with _settled(instrument, sum(len(piece.clips) for piece in found)):
            made = list(
                generate_files(
                    instrument, found, sampling, window, batch, lambda line: None, on_codes=watch, progress_frames=every
                )
            )
        files = [path for sound in made for path in (sound.path, make_portable(sound.path, room, run))]
        sources = {source.path for piece in found for source in piece.sources}
        return GenerationResult(
            list(zip(found, made, strict=True)), [*files, *sorted(sources)], self._command(run, asked, room)
        )

    def settings(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """All of conf/generate.yaml, with what is asked for.

        Raises InputError for more than the page's limits.
        """
        sampling = {**self.sampling, **asked.get("sampling", {})}
        settings = {**self.defaults, **asked, "sampling": sampling}
        for name, most in (("n", self.limits.samples), ("steps", self.limits.steps)):
            if asked.get(name, 0) > most:
                raise InputError(f"{name}={asked[name]}: this page makes {most} at most")
        return settings

    def samples(self, asked: Mapping[str, Any], instrument: LoadedRun) -> int:
        """Of each sound that is asked for. Raises InputError beyond the limits."""
        samples = num_samples(self.settings(asked), instrument)
        seconds = samples / instrument.codec.sample_rate
        if seconds > self.limits.seconds:
            raise InputError(f"seconds={seconds:g}: this page makes {self.limits.seconds:g} s at most")
        return samples

    def instrument(self, run: str) -> LoadedRun:
        """By name. Raises InputError where there is none."""
        if run not in self.instruments:
            raise InputError(f"run={run}: this page plays {', '.join(self.instruments)}")
        return self.instruments[run]

    def every(self, instrument: LoadedRun) -> int:
        """Frames between two looks at what is being made."""
        return max(1, round(self.chunk * instrument.codec.frame_rate))

    def _command(self, run: str, asked: Mapping[str, Any], room: Path) -> str:
        """The command line that makes the same, in a folder that holds the prompts."""
        words = {"run": run, **{key: value for key, value in asked.items() if key != "sampling"}}
        usual, sampling = self.defaults["sampling"], self.settings(asked)["sampling"]
        words |= {f"sampling.{key}": value for key, value in sampling.items() if value != usual[key]}
        told = [f"{key}={_word(value, f'{room}/')}" for key, value in words.items()]
        return shlex.join(["python", "-m", "pipeline.generate", *told, f"out={OUT}"])


@contextmanager
def _settled(instrument: LoadedRun, clips: int) -> Iterator[None]:
    """As many threads as so many clips want; those before for whoever comes next."""
    before = torch.get_num_threads()
    limit_threads(instrument, clips)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_size(file: Path, name: str, limits: Limits) -> None:
    """Raises InputError for a file that is gone, empty or too large."""
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        raise InputError(NOT_STORED) from None
    if size == 0:
        raise InputError(f"{name} is empty: there are 0 bytes in it")
    if size > limits.upload_mb * MB:
        raise InputError(f"{name} has {size / MB:.1f} MB: this page takes {limits.upload_mb:g} MB at most")


def check_sound(file: Path, limits: Limits) -> None:
    """Raises InputError for a file that is no sound, or too long a one."""
    try:
        info = audio_io.info(file)
    except AudioError as error:
        raise InputError(f"{file.name} cannot be played: {error.reason}") from None
    if info.seconds > limits.upload_seconds:
        raise InputError(f"{file.name} lasts {info.seconds:.0f} s: this page takes {limits.upload_seconds:g} s at most")


def make_portable(sound: Path, room: Path, run: str) -> Path:
    """The sidecar of a sound, its paths made relative: it works in whatever folder it is put with its prompts.

    Of this machine's folders it tells the run alone, by the name that the page has for it.
    """
    file = sound.with_suffix(".json")
    told = _relative(json.loads(file.read_text()), f"{room}/")
    told["export"]["folder"] = run
    file.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    return file


def _relative(told: Any, prefix: str) -> Any:
    if isinstance(told, dict):
        return {key: _relative(value, prefix) for key, value in told.items()}
    if isinstance(told, list):
        return [_relative(value, prefix) for value in told]
    return told.removeprefix(prefix) if isinstance(told, str) else told


def _word(value: Any, prefix: str) -> str:
    """As Hydra's command line has it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_word(one, prefix)}" for key, one in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(_word(one, prefix) for one in value) + "]"
    return str(value).removeprefix(prefix)
