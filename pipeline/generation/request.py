"""From settings to requests: the clips of each sound file, with their seeds, prompts and first codes.

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

MAX_SECONDS = 86_400  # of one sound: its codes take half a GB
MODES = ("prompt", "interpolate", "morph", "continue", "extend")
DEFAULT_SECONDS = 4.0  # if the length of the training clips is unknown: that of NSynth's notes, as in the article


@dataclass(frozen=True)
class ClipRequest:
    """One row of a batch.

    Attributes:
        seed: The seed of its noise.
        prompts: Prompts [P] and the frames from which they apply. Empty: no prompt.
        prefix_codes: Codes [K, T] with which the clip begins.
    """

    seed: int
    prompts: Sequence[tuple[int, Tensor]] = ()
    prefix_codes: Tensor | None = None


@dataclass(frozen=True)
class AudioRequest:
    """One sound file: a clip, or several clips joined by crossfades.

    Attributes:
        out: The file to write.
        clips: Its clips.
        samples: The length of each clip.
        settings: The settings that generate this sound alone.
        sources: The sound files on which it depends.
        crossfade: The length of a crossfade, in samples.
    """

    out: Path
    clips: Sequence[ClipRequest]
    samples: int
    settings: Mapping[str, Any]
    sources: Sequence[SourceAudio] = ()
    crossfade: int = 0

    @property
    def total_samples(self) -> int:
        """The length of the file: its clips, joined."""
        return len(self.clips) * self.samples - (len(self.clips) - 1) * min(self.crossfade, self.samples)


@dataclass(frozen=True)
class SlidingWindow:
    """The window of a sound longer than the training clips: its length and its stride, in frames."""

    frames: int
    stride: int


def num_samples(settings: Mapping[str, Any], run: LoadedRun) -> int:
    """The setting `seconds`, in samples. Raises InputError for zero, and for more than a day."""
    seconds, trained = settings["seconds"], run.trained_frames
    if seconds == "auto":
        seconds = DEFAULT_SECONDS if trained is None else trained / run.codec.frame_rate
    if not (seconds * run.codec.sample_rate >= 0.5 and seconds <= MAX_SECONDS):
        raise InputError(f"seconds={seconds}: give more than 0, and {MAX_SECONDS} (a day) at most")
    return round(seconds * run.codec.sample_rate)


def resolve_window(settings: Mapping[str, Any], frames: int, run: LoadedRun) -> SlidingWindow | None:
    """The sliding window for a sound of this many frames; None if the sound is not longer than the training clips.

    Raises:
        InputError: The window is not shorter than the training clips; or it is needed, but its length is not given
            and that of the training clips is unknown; or the sound is generated without a window and is longer than
            the model's positions.
    """
    window = _choose_window(settings, frames, run)
    config, pattern = run.model.config, run.model.pattern
    steps = pattern.num_steps(frames + int(config.end_of_audio))
    if window is None and steps > config.positions:
        raise InputError(
            f"seconds={settings['seconds']}: {frames} frames are {steps} steps under pattern={pattern.name}, but the "
            f"model has positions for 1..{config.positions}: give fewer seconds, or mode=continue, which has no limit"
        )
    return window


def _choose_window(settings: Mapping[str, Any], frames: int, run: LoadedRun) -> SlidingWindow | None:
    trained, rate = run.trained_frames, run.codec.frame_rate
    if settings["mode"] in ("prompt", "interpolate"):
        return None
    if settings["window"] == "auto":
        if trained is None:
            raise InputError("window=auto: the length of the training clips is unknown; give window=SECONDS")
        if frames <= trained:
            return None
        window = max(2, trained // 2)
    else:
        window = round(settings["window"] * rate)
    if not 2 <= window < (trained or window + 1):
        raise InputError(
            f"window={settings['window']}: {window} frames; give 2 frames or more, and less than the {trained} "
            f"({trained and trained / rate:g} s) of the training clips"
        )
    if frames <= window:
        return None
    stride = window // 2 if settings["window_stride"] == "auto" else round(settings["window_stride"] * rate)
    if not 0 < stride < window:
        raise InputError(
            f"window_stride={settings['window_stride']}: {stride} frames; "
            f"give more than 0 and less than the window's {window}"
        )
    return SlidingWindow(window, stride)


@dataclass(frozen=True)
class _Draft:
    """A request before it has a file. clips: empty for a prompt that is skipped, which keeps its number and seed."""

    name: str
    clips: Sequence[ClipRequest]
    settings: Mapping[str, Any]
    sources: Sequence[SourceAudio]


def build_requests(settings: Mapping[str, Any], run: LoadedRun, skipped: list[str] | None = None) -> list[AudioRequest]:
    """The requests for all sounds that the settings describe.

    Args:
        settings: Those of conf/generate.yaml.
        run: The run that will generate them.
        skipped: Receives path and reason of each prompt that cannot be read, in the modes prompt, continue and extend,
            where the other sounds do not need it. None: every prompt must be readable.

    Raises:
        InputError: A setting is invalid, or prompts cannot be read; all of these are named.
    """
    mode = settings["mode"]
    if mode not in MODES:
        raise InputError(f"mode={mode}: give {', '.join(MODES)}")
    require_min(1, settings, "n", "batch")
    require_min(0, settings, "crossfade_seconds")
    if mode in ("interpolate", "morph"):
        drafts = (_draft_interpolation if mode == "interpolate" else _draft_morph)(settings, run)
    else:
        drafts = (_draft_extension if mode == "extend" else _draft_clips)(settings, run, skipped)
    samples = num_samples(settings, run)
    crossfade = round(settings["crossfade_seconds"] * run.codec.sample_rate)
    files = output_paths.output_files(settings["out"], [draft.name for draft in drafts])
    return [
        AudioRequest(file, draft.clips, samples, draft.settings, draft.sources, crossfade)
        for file, draft in zip(files, drafts, strict=True)
        if draft.clips
    ]


def _draft_clips(settings: Mapping[str, Any], run: LoadedRun, skipped: list[str] | None) -> list[_Draft]:
    """Modes prompt and continue: n sounds for each prompt, or without a prompt."""
    n, seed = settings["n"], settings["seed"]
    if settings["prompt"] is None:
        return [_Draft("sound", [ClipRequest(seed + i)], {**settings, "n": 1, "seed": seed + i}, []) for i in range(n)]
    drafts: list[_Draft] = []
    for name, prompt in _read_each(find_prompts(settings["prompt"]), settings, run, skipped):
        for _ in range(n):
            if prompt is None:
                drafts.append(_Draft(name, [], {}, []))
                continue
            source, vector = prompt
            clip = ClipRequest(seed + len(drafts), [(0, vector)])
            own = {**settings, "prompt": str(source.path.absolute()), "n": 1, "seed": clip.seed}
            drafts.append(_Draft(name, [clip], own, [source]))
    return drafts


def _draft_interpolation(settings: Mapping[str, Any], run: LoadedRun) -> list[_Draft]:
    """Mode interpolate: clips from prompt to prompt, all with the same noise, so that only the prompt changes."""
    prompts = read_prompts(find_prompts(settings["prompt"]), settings["prompt_seconds"], run)
    vectors = interpolation.interpolation_path(
        [vector for _, _, vector in prompts], settings["steps"], settings["blend"]
    )
    name, sources = "-".join(name for name, _, _ in prompts), [source for _, source, _ in prompts]
    paths = [str(source.path.absolute()) for source in sources]
    drafts = []
    for i in range(settings["n"]):
        seed = settings["seed"] + i
        clips = [ClipRequest(seed, [(0, vector)]) for vector in vectors]
        drafts.append(_Draft(name, clips, {**settings, "prompt": paths, "n": 1, "seed": seed}, sources))
    return drafts


def _draft_morph(settings: Mapping[str, Any], run: LoadedRun) -> list[_Draft]:
    """Mode morph: a sound whose prompt moves from keyframe to keyframe."""
    keyframes = interpolation.parse_keyframes(settings["keyframes"])
    interval, rate = settings["keyframe_interval"], run.codec.frame_rate
    if not interval > 0:
        raise InputError(f"keyframe_interval={interval}: give more than 0 seconds")
    files = {str(i): Path(path) for i, (_, path) in enumerate(keyframes)}
    prompts = read_prompts(files, settings["prompt_seconds"], run)
    vectors = [(at, vector) for (at, _), (_, _, vector) in zip(keyframes, prompts, strict=True)]
    schedule = interpolation.keyframe_schedule(vectors, interval, settings["blend"])
    by_frame = {round(at * rate): vector for at, vector in schedule}  # of two in the same frame, the later one
    name, sources = "-".join(path.stem for path in files.values()), [source for _, source, _ in prompts]
    own_keyframes = [
        {"at": at, "prompt": str(source.path.absolute())} for (at, _), source in zip(keyframes, sources, strict=True)
    ]
    drafts = []
    for i in range(settings["n"]):
        seed = settings["seed"] + i
        clip = ClipRequest(seed, sorted(by_frame.items(), key=lambda item: item[0]))
        own = {**settings, "keyframes": own_keyframes, "n": 1, "seed": seed}
        drafts.append(_Draft(name, [clip], own, sources))
    return drafts


def _draft_extension(settings: Mapping[str, Any], run: LoadedRun, skipped: list[str] | None) -> list[_Draft]:
    """Mode extend: sounds that begin with the codes of a sound file."""
    if settings["audio"] is None:
        raise InputError("mode=extend continues a sound file: give audio=a.wav")
    rate, samples = run.codec.sample_rate, num_samples(settings, run)
    start = read_source(settings["audio"], (samples + 1) / rate, rate)
    if len(start.wav) >= samples:
        raise InputError(
            f"audio={start.path}: it is not shorter than the {samples / rate:g} s to generate: give more seconds="
        )
    codes = run.codec.encode(torch.from_numpy(start.wav)[None, None])[0].cpu()  # [K, T]
    prefix = codes[:, : max(1, len(start.wav) // run.codec.hop_length)]  # the last frame may be partly silence
    files = find_prompts(settings["prompt"] if settings["prompt"] is not None else str(settings["audio"]))
    drafts: list[_Draft] = []
    for _, prompt in _read_each(files, settings, run, skipped):
        for _ in range(settings["n"]):
            if prompt is None:
                drafts.append(_Draft(start.path.stem, [], {}, []))
                continue
            source, vector = prompt
            clip = ClipRequest(settings["seed"] + len(drafts), [(0, vector)], prefix)
            paths = {"audio": str(start.path.absolute()), "prompt": str(source.path.absolute())}
            own = {**settings, **paths, "n": 1, "seed": clip.seed}
            drafts.append(_Draft(start.path.stem, [clip], own, [start, source]))
    return drafts


def _read_each(
    files: Mapping[str, Path], settings: Mapping[str, Any], run: LoadedRun, skipped: list[str] | None
) -> list[tuple[str, tuple[SourceAudio, Tensor] | None]]:
    """Each file's name, with its sound and prompt vector, or None for a file that is skipped."""
    prompts = {
        name: (source, vector) for name, source, vector in read_prompts(files, settings["prompt_seconds"], run, skipped)
    }
    return [(name, prompts.get(name)) for name in files]


def read_prompts(
    paths: Mapping[str, Path], seconds: float, run: LoadedRun, skipped: list[str] | None = None
) -> list[tuple[str, SourceAudio, Tensor]]:
    """Name, sound and prompt vector [P] of each file; each embedded alone, so that it does not depend on the others.

    Args:
        paths: The files, by name.
        seconds: The length to read of each file.
        run: The run whose codec and embedder are used.
        skipped: Receives path and reason of each file that cannot be read. None: every file must be readable.

    Raises:
        InputError: No file can be read, or one cannot and `skipped` is None; names every such file.
    """
    prompts, unreadable = [], []
    for name, path in paths.items():
        try:
            source = read_source(path, seconds, run.codec.sample_rate)
            prompts.append((name, source, prompt_vector(run.embedder, source, run.codec.sample_rate)))
        except AudioError as error:
            unreadable.append(str(error))
    if unreadable and (skipped is None or not prompts):
        raise InputError("prompts that cannot be read: " + "; ".join(unreadable))
    if skipped is not None:
        skipped += unreadable
    return prompts
