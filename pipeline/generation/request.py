"""From settings to pieces: which clips each sound file is made of, under which prompts, from which beginnings.

Letters: K codebooks, T frames, P prompt width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.audio.audio_io import AudioError
from pipeline.common.errors import InputError
from pipeline.common.settings import require_min
from pipeline.generation import interpolation, output_paths
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.prompts import SourceAudio, find_prompts, prompt_vector, read_source
from pipeline.generation.sampling import SamplingParams

MAX_SECONDS = 86_400  # seconds of one sound: a day's codes take half a GB
MODES = ("prompt", "interpolate", "morph", "continue", "extend")
DEFAULT_SECONDS = 4.0  # where the length of training is not known: NSynth's, as in the article


@dataclass(frozen=True)
class ClipRequest:
    """One row of a batch. prompts: from which frame on which prompt [P] holds; given: codes [K, T] it begins with."""

    seed: int
    prompts: Sequence[tuple[int, Tensor]] = ()
    prefix_codes: Tensor | None = None


@dataclass(frozen=True)
class AudioRequest:
    """One sound file, of one clip or of several that fade into each other.

    samples: of each clip. settings: those that make this very piece alone. sources: the sound files it depends on.
    """

    out: Path
    clips: Sequence[ClipRequest]
    samples: int
    settings: Mapping[str, Any]
    sources: Sequence[SourceAudio] = ()
    crossfade: int = 0

    @property
    def total_samples(self) -> int:
        """Samples of the whole file, its clips joined."""
        return len(self.clips) * self.samples - (len(self.clips) - 1) * min(self.crossfade, self.samples)


@dataclass(frozen=True)
class SlidingWindow:
    """How far back a piece longer than the trained length looks, and by how much it moves: in frames."""

    frames: int
    stride: int


def parse_sampling(settings: Mapping[str, Any]) -> SamplingParams:
    """The `sampling` group of a config. Raises InputError for values that make no sense."""
    found = {str(key): value for key, value in settings.items()}
    if not isinstance(found["temperature"], (int, float)):
        found["temperature"] = tuple(found["temperature"])
    return SamplingParams(**found)


def num_samples(settings: Mapping[str, Any], instrument: LoadedRun) -> int:
    """The setting `seconds` in samples. Raises InputError for none, and for more than a day."""
    seconds, trained = settings["seconds"], instrument.trained_frames
    if seconds == "auto":
        seconds = DEFAULT_SECONDS if trained is None else trained / instrument.codec.frame_rate
    if not (seconds * instrument.codec.sample_rate >= 0.5 and seconds <= MAX_SECONDS):
        raise InputError(f"seconds={seconds}: give more than 0, and {MAX_SECONDS} (a day) at most")
    return round(seconds * instrument.codec.sample_rate)


def resolve_window(settings: Mapping[str, Any], frames: int, instrument: LoadedRun) -> SlidingWindow | None:
    """The window of a piece of so many frames; None where it is no longer than the clips of training.

    Raises InputError for a window that does not lie within the trained length, or is needed but not known, and for a
    piece without one that is longer than the model can read.
    """
    found = _window(settings, frames, instrument)
    config, pattern = instrument.model.config, instrument.model.pattern
    steps = pattern.num_steps(frames + int(config.end_of_audio))
    if found is None and steps > config.positions:
        raise InputError(
            f"seconds={settings['seconds']}: {frames} frames are {steps} steps under pattern={pattern.name}, and the "
            f"model reads 1..{config.positions}: give fewer, or mode=continue, which makes a piece of any length"
        )
    return found


def _window(settings: Mapping[str, Any], frames: int, instrument: LoadedRun) -> SlidingWindow | None:
    trained, rate = instrument.trained_frames, instrument.codec.frame_rate
    if settings["mode"] in ("prompt", "interpolate"):
        return None
    if settings["window"] == "auto":
        if trained is None:
            raise InputError("window=auto: how long the clips of training were is not known; give window=SECONDS")
        if frames <= trained:
            return None
        window = max(2, trained // 2)
    else:
        window = round(settings["window"] * rate)
    if not 2 <= window < (trained or window + 1):
        raise InputError(
            f"window={settings['window']}: {window} frames; give 2 frames or more, and less than the {trained} "
            f"({trained and trained / rate:g} s) of training"
        )
    if frames <= window:
        return None
    hop = window // 2 if settings["window_stride"] == "auto" else round(settings["window_stride"] * rate)
    if not 0 < hop < window:
        raise InputError(
            f"window_stride={settings['window_stride']}: {hop} frames; "
            f"give more than 0 and less than the window's {window}"
        )
    return SlidingWindow(window, hop)


def build_requests(
    settings: Mapping[str, Any], instrument: LoadedRun, skipped: list[str] | None = None
) -> list[AudioRequest]:
    """All that the settings ask for.

    `skipped` receives path and reason of each prompt that cannot be read, where the others do not need it (modes
    prompt, continue and extend). Without it every prompt must be readable.

    Raises:
        InputError: settings that make no sense, and prompts that cannot be read, all of them named.
    """
    mode = settings["mode"]
    if mode not in MODES:
        raise InputError(f"mode={mode}: give {', '.join(MODES)}")
    require_min(1, settings, "n", "batch")
    require_min(0, settings, "crossfade_seconds")
    if mode in ("interpolate", "morph"):
        found = (_interpolate if mode == "interpolate" else _morph)(settings, instrument)
    else:
        found = (_extend if mode == "extend" else _prompt)(settings, instrument, skipped)
    samples, fade = (
        num_samples(settings, instrument),
        round(settings["crossfade_seconds"] * instrument.codec.sample_rate),
    )
    return [
        AudioRequest(out, clips, samples, own, sources, fade)
        for out, (_, clips, own, sources) in zip(
            output_paths.output_files(settings["out"], [name for name, *_ in found]), found, strict=True
        )
        if clips
    ]


_Made = tuple[
    str, list[ClipRequest], dict[str, Any], list[SourceAudio]
]  # name, clips (none: skipped), own settings, sources


def _prompt(settings: Mapping[str, Any], instrument: LoadedRun, skipped: list[str] | None) -> list[_Made]:
    n, seed = settings["n"], settings["seed"]
    if settings["prompt"] is None:
        return [("sound", [ClipRequest(seed + i)], {**settings, "n": 1, "seed": seed + i}, []) for i in range(n)]
    made: list[_Made] = []
    for name, prompt in _prompts(find_prompts(settings["prompt"]), settings, instrument, skipped):
        for _ in range(n):
            clips, own, sources = [], {}, []  # of a skipped prompt, which keeps its name and its seeds
            if prompt is not None:
                source, vector = prompt
                clips = [ClipRequest(seed + len(made), [(0, vector)])]
                own = {**settings, "prompt": str(source.path.absolute()), "n": 1, "seed": seed + len(made)}
                sources = [source]
            made.append((name, clips, own, sources))
    return made


def _interpolate(settings: Mapping[str, Any], instrument: LoadedRun) -> list[_Made]:
    sources = read_prompts(find_prompts(settings["prompt"]), settings["prompt_seconds"], instrument)
    prompts = interpolation.interpolation_path(
        [vector for _, _, vector in sources], settings["steps"], settings["blend"]
    )
    paths = [str(source.path.absolute()) for _, source, _ in sources]
    made: list[_Made] = []
    for i in range(settings["n"]):
        seed = settings["seed"] + i  # all clips have the same noise: only the prompt moves
        own = {**settings, "prompt": paths, "n": 1, "seed": seed}
        clips = [ClipRequest(seed, [(0, vector)]) for vector in prompts]
        made.append(("-".join(name for name, _, _ in sources), clips, own, [source for _, source, _ in sources]))
    return made


def _morph(settings: Mapping[str, Any], instrument: LoadedRun) -> list[_Made]:
    keyframes, every = interpolation.parse_keyframes(settings["keyframes"]), settings["keyframe_interval"]
    if not every > 0:
        raise InputError(f"keyframe_interval={every}: give more than 0 seconds")
    named = {str(i): Path(path) for i, (_, path) in enumerate(keyframes)}
    sources = read_prompts(named, settings["prompt_seconds"], instrument)
    stops = [(at, vector) for (at, _), (_, _, vector) in zip(keyframes, sources, strict=True)]
    rate = instrument.codec.frame_rate
    prompts = [
        (round(at * rate), vector) for at, vector in interpolation.keyframe_schedule(stops, every, settings["blend"])
    ]
    kept = dict(prompts)
    frames = [
        {"at": at, "prompt": str(source.path.absolute())}
        for (at, _), (_, source, _) in zip(keyframes, sources, strict=True)
    ]
    made: list[_Made] = []
    for i in range(settings["n"]):
        own = {**settings, "keyframes": frames, "n": 1, "seed": settings["seed"] + i}
        clip = ClipRequest(own["seed"], sorted(kept.items(), key=lambda item: item[0]))
        made.append(("-".join(path.stem for path in named.values()), [clip], own, [source for _, source, _ in sources]))
    return made


def _extend(settings: Mapping[str, Any], instrument: LoadedRun, skipped: list[str] | None) -> list[_Made]:
    if settings["audio"] is None:
        raise InputError("mode=extend goes on with a sound file: give audio=a.wav")
    rate, samples = instrument.codec.sample_rate, num_samples(settings, instrument)
    start = read_source(settings["audio"], (samples + 1) / rate, rate)
    if len(start.wav) >= samples:
        raise InputError(
            f"audio={start.path}: it is not shorter than the {samples / rate:g} s to be made: give more seconds="
        )
    codes = instrument.codec.encode(torch.from_numpy(start.wav)[None, None])[0].cpu()  # [K, T]
    given = codes[:, : max(1, len(start.wav) // instrument.codec.hop_length)]  # the last frame may be partly silence
    prompts = find_prompts(settings["prompt"] if settings["prompt"] is not None else str(settings["audio"]))
    made: list[_Made] = []
    for _, prompt in _prompts(prompts, settings, instrument, skipped):
        for _ in range(settings["n"]):
            clips, own, sources = [], {}, []
            if prompt is not None:
                source, vector = prompt
                clips = [ClipRequest(settings["seed"] + len(made), [(0, vector)], given)]
                paths = {"audio": str(start.path.absolute()), "prompt": str(source.path.absolute())}
                own = {**settings, **paths, "n": 1, "seed": settings["seed"] + len(made)}
                sources = [start, source]
            made.append((start.path.stem, clips, own, sources))
    return made


def _prompts(
    files: Mapping[str, Path], settings: Mapping[str, Any], instrument: LoadedRun, skipped: list[str] | None
) -> list[tuple[str, tuple[SourceAudio, Tensor] | None]]:
    """Every file's name, with its sound and prompt vector; None for a file that is skipped."""
    read = read_prompts(files, settings["prompt_seconds"], instrument, skipped)
    prompts = {name: (source, vector) for name, source, vector in read}
    return [(name, prompts.get(name)) for name in files]


def read_prompts(
    paths: Mapping[str, Path], seconds: float, instrument: LoadedRun, skipped: list[str] | None = None
) -> list[tuple[str, SourceAudio, Tensor]]:
    """Name, sound and prompt vector [P] of each file; each embedded alone, so that the others change nothing.

    `skipped` receives path and reason of each file that cannot be read; without it every file must be readable.

    Raises:
        InputError: no file can be read, or one cannot and `skipped` is not given; names every such file.
    """
    found, refused = [], []
    for name, path in paths.items():
        try:
            source = read_source(path, seconds, instrument.codec.sample_rate)
            found.append((name, source, prompt_vector(instrument.embedder, source)))
        except AudioError as error:
            refused.append(str(error))
    if refused and (skipped is None or not found):
        raise InputError("prompts that cannot be read: " + "; ".join(refused))
    if skipped is not None:
        skipped += refused
    return found
