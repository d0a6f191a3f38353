"""From settings to requests: the clips of each sound file, with their seeds, prompts and first codes.

Letters: K codebooks, T frames, N prompt vectors of a sound, P prompt width.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from pipeline.audio.audio_io import AudioError
from pipeline.common.errors import InputError
from pipeline.generation import interpolation, output_paths
from pipeline.generation.conditions import check_prompt, encode_conditions, read_conditions
from pipeline.generation.generator import SlidingWindow
from pipeline.generation.guidance import Values
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.prompts import SourceAudio, find_prompts, prompt_vector, read_source, text_vectors
from pipeline.generation.settings import GenerateSettings, Keyframe
from pipeline.generation.window import record_window, resolve_window
from pipeline.models.conditions import PROMPT

DEFAULT_SECONDS = 4.0  # if the length of the training clips is unknown: that of NSynth's notes, as in the article


@dataclass(frozen=True)
class ClipRequest:
    """One row of a batch.

    Attributes:
        seed: The seed of its noise.
        keyframes: Values of conditions, as a prompt [N, P], and the frames from which they apply. Empty: no values.
        prefix_codes: Codes [K, T] with which the clip begins.
    """

    seed: int
    keyframes: Sequence[tuple[int, Values]] = ()
    prefix_codes: Tensor | None = None


@dataclass(frozen=True)
class AudioRequest:
    """One sound file: a clip, or several clips joined by crossfades.

    Attributes:
        out: The file to write.
        clips: Its clips.
        samples: The length of each clip.
        window: The sliding window for clips longer than those of training.
        settings: The settings that generate this sound alone.
        sources: The sound files on which it depends.
        crossfade: The length of a crossfade, in samples.
    """

    out: Path
    clips: Sequence[ClipRequest]
    samples: int
    window: SlidingWindow | None
    settings: GenerateSettings
    sources: Sequence[SourceAudio] = ()
    crossfade: int = 0

    @property
    def total_samples(self) -> int:
        """The length of the file: its clips, joined."""
        return len(self.clips) * self.samples - (len(self.clips) - 1) * min(self.crossfade, self.samples)


def num_samples(seconds: float | Literal["auto"], run: LoadedRun) -> int:
    """The setting `seconds`, in samples."""
    if seconds == "auto":
        trained = run.trained_frames
        seconds = DEFAULT_SECONDS if trained is None else trained / run.codec.frame_rate
    return max(1, round(seconds * run.codec.sample_rate))


class _Draft(NamedTuple):
    """A request before it has a file. clips: empty for a prompt that is skipped, which keeps its number and seed."""

    name: str
    clips: Sequence[ClipRequest]
    settings: GenerateSettings
    sources: Sequence[SourceAudio]


def build_requests(settings: GenerateSettings, run: LoadedRun, skipped: list[str] | None = None) -> list[AudioRequest]:
    """The requests for all sounds that the settings describe.

    Args:
        settings: Those of `pipeline.generate`.
        run: The run that will generate them.
        skipped: Receives path and reason of each prompt that cannot be read, in the modes prompt, continue and extend,
            where the other sounds do not need it. None: every prompt must be readable.

    Raises:
        InputError: A setting does not fit the run, or prompts cannot be read; all of these are named.
    """
    samples = num_samples(settings.seconds, run)
    window = resolve_window(settings, run.codec.num_frames(samples), run)
    settings = record_window(settings, window, run)
    conditions = read_conditions(settings, run.model, settings.prompt or settings.prompt_text)
    if settings.mode == "interpolate":
        drafts = _draft_interpolation(settings, run, conditions)
    elif settings.mode == "morph":
        drafts = _draft_morph(settings, run, conditions)
    else:
        drafts = _draft_clips(settings, run, conditions, skipped)
    crossfade = round(settings.crossfade_seconds * run.codec.sample_rate)
    files = output_paths.output_files(settings.out, [draft.name for draft in drafts])
    return [
        AudioRequest(file, draft.clips, samples, window, draft.settings, draft.sources, crossfade)
        for file, draft in zip(files, drafts, strict=True)
        if draft.clips
    ]


def with_prompt(conditions: Values, prompt: Tensor | None) -> Values:
    """Values of conditions, and a prompt if there is one."""
    return conditions if prompt is None else {**conditions, PROMPT: prompt}


def keyframes_of(conditions: Values, prompt: Tensor | None) -> list[tuple[int, Values]]:
    """The keyframes of a clip whose conditions do not change."""
    values = with_prompt(conditions, prompt)
    return [(0, values)] if values else []


def _draft_clips(
    settings: GenerateSettings, run: LoadedRun, conditions: Values, skipped: list[str] | None
) -> list[_Draft]:
    """Modes prompt, continue and extend: n sounds for each prompt, or without a prompt."""
    start, prefix = _read_start(settings, run) if settings.mode == "extend" else (None, None)
    texts = read_texts(settings.prompt_text, run)
    own_prompt = str(start.path) if start and settings.prompt is None and not texts else settings.prompt
    files = find_prompts(own_prompt)
    sounds = {prompt.name: prompt for prompt in read_prompts(files, settings.prompt_seconds, run, skipped)}
    prompts: list[tuple[str, SoundPrompt | TextPrompt | None]] = [(name, sounds.get(name)) for name in files]
    prompts += [(prompt.name, prompt) for prompt in texts]
    drafts: list[_Draft] = []
    for name, prompt in prompts or [("sound", None)]:
        sources = [*([start] if start else []), *([prompt.source] if isinstance(prompt, SoundPrompt) else [])]
        own: dict[str, object] = {"audio": _absolute(start)} if start else {}
        own |= prompt.settings if prompt else {}
        for _ in range(settings.n):
            seed = settings.seed + len(drafts)
            clip = ClipRequest(seed, keyframes_of(conditions, prompt.vector if prompt else None), prefix)
            clips = [] if prompts and not prompt else [clip]
            own_settings = settings.model_copy(update={**own, "n": 1, "seed": seed})
            drafts.append(_Draft(start.path.stem if start else name, clips, own_settings, sources))
    return drafts


def _read_start(settings: GenerateSettings, run: LoadedRun) -> tuple[SourceAudio, Tensor]:
    """Mode extend: the sound to continue, and its codes [K, T]."""
    if settings.audio is None:
        raise InputError("mode=extend continues a sound file: give audio=a.wav")
    rate, samples = run.codec.sample_rate, num_samples(settings.seconds, run)
    start = read_source(settings.audio, (samples + 1) / rate, run.codec)
    if len(start.wav) >= samples:
        raise InputError(
            f"audio={start.path}: it is not shorter than the {samples / rate:g} s to generate: give more seconds="
        )
    codes = run.codec.encode_clip(start.wav).cpu()  # [K, T]
    return start, codes[:, : max(1, len(start.wav) // run.codec.hop_length)]  # the last frame may be partly silence


def _draft_interpolation(settings: GenerateSettings, run: LoadedRun, conditions: Values) -> list[_Draft]:
    """Mode interpolate: clips from prompt to prompt, the sounds before the words.

    All have the same noise, so that only the prompt changes.
    """
    sounds = read_prompts(find_prompts(settings.prompt), settings.prompt_seconds, run)
    prompts: list[SoundPrompt | TextPrompt] = [*sounds, *read_texts(settings.prompt_text, run)]
    vectors = interpolation.interpolation_path([prompt.vector for prompt in prompts], settings.steps, settings.blend)
    sources = [prompt.source for prompt in sounds]
    changes = {"prompt": [_absolute(source) for source in sources] or None, "n": 1}
    return [
        _Draft(
            "-".join(prompt.name for prompt in prompts),
            [ClipRequest(seed, keyframes_of(conditions, vector)) for vector in vectors],
            settings.model_copy(update={**changes, "seed": seed}),
            sources,
        )
        for seed in range(settings.seed, settings.seed + settings.n)
    ]


def _draft_morph(settings: GenerateSettings, run: LoadedRun, conditions: Values) -> list[_Draft]:
    """Mode morph: a sound whose prompt moves from keyframe to keyframe, where also its other conditions change."""
    keyframes = settings.keyframes
    if keyframes is None:
        raise InputError("mode=morph: give keyframes='[{at: 0, prompt: a.wav}, {at: 4, prompt: b.wav}]'")
    own_conditions = [{**conditions, **encode_conditions(keyframe.conditions, run.model)} for keyframe in keyframes]
    prompts = _read_keyframes(keyframes, settings, run)
    times = [keyframe.at for keyframe in keyframes]
    schedule: Sequence[tuple[float, Tensor | None]] = [(at, None) for at in times]
    if prompts:
        check_prompt(keyframes[0].prompt or keyframes[0].prompt_text, run.model)
        vectors = [(at, prompt.vector) for at, prompt in zip(times, prompts, strict=True)]
        schedule = interpolation.keyframe_schedule(vectors, settings.keyframe_interval, settings.blend)
        keyframes = [
            keyframe.model_copy(update=prompt.settings) for keyframe, prompt in zip(keyframes, prompts, strict=True)
        ]
    by_frame = dict[int, Values]()  # of two in a frame, the later one
    for at, vector in schedule:
        if values := with_prompt(own_conditions[bisect.bisect_right(times, at) - 1], vector):
            by_frame[round(at * run.codec.frame_rate)] = values
    timed = sorted(by_frame.items(), key=lambda item: item[0])
    return [
        _Draft(
            "-".join(prompt.name for prompt in prompts) or "sound",
            [ClipRequest(seed, timed)],
            settings.model_copy(update={"keyframes": keyframes, "n": 1, "seed": seed}),
            [prompt.source for prompt in prompts if isinstance(prompt, SoundPrompt)],
        )
        for seed in range(settings.seed, settings.seed + settings.n)
    ]


def _read_keyframes(
    keyframes: Sequence[Keyframe], settings: GenerateSettings, run: LoadedRun
) -> list[SoundPrompt | TextPrompt]:
    """The prompt of each keyframe; none if keyframes have no prompts."""
    files = {str(i): Path(each.prompt) for i, each in enumerate(keyframes) if each.prompt is not None}
    sounds = iter(read_prompts(files, settings.prompt_seconds, run))
    prompts: list[SoundPrompt | TextPrompt] = []
    for keyframe in keyframes:
        if keyframe.prompt is not None:
            prompts.append(replace(next(sounds), name=Path(keyframe.prompt).stem))
        else:
            prompts += read_texts(keyframe.prompt_text, run)
    return prompts


def _absolute(source: SourceAudio) -> str:
    return str(source.path.absolute())


@dataclass(frozen=True)
class SoundPrompt:
    """A sound file as a prompt: its name, its sound and its vectors [N, P]."""

    name: str
    source: SourceAudio
    vector: Tensor

    @property
    def settings(self) -> dict[str, object]:
        """The settings of a sound with this prompt alone."""
        return {"prompt": _absolute(self.source), "prompt_text": None}


@dataclass(frozen=True)
class TextPrompt:
    """Words as a prompt: a name for files, the words, and their vectors [N, P]."""

    name: str
    text: str
    vector: Tensor

    @property
    def settings(self) -> dict[str, object]:
        """The settings of a sound with this prompt alone."""
        return {"prompt": None, "prompt_text": self.text}


def read_texts(setting: str | Sequence[str] | None, run: LoadedRun) -> list[TextPrompt]:
    """The prompts of the setting `prompt_text`. Raises InputError if the run's embedder reads no text."""
    texts = [] if setting is None else [setting] if isinstance(setting, str) else setting
    names = [re.sub(r"\W+", "-", text).strip("-")[:40] or "words" for text in texts]
    return [TextPrompt(name, text, text_vectors(run.embedder, text)) for name, text in zip(names, texts, strict=True)]


def read_prompts(
    paths: Mapping[str, Path], seconds: float, run: LoadedRun, skipped: list[str] | None = None
) -> list[SoundPrompt]:
    """The prompt of each file; each embedded alone, so that it does not depend on the others.

    Args:
        paths: The files, by name.
        seconds: The length to read of each file.
        run: The run whose codec and embedder are used.
        skipped: Receives path and reason of each file that cannot be read. None: every file must be readable.

    Raises:
        InputError: No file can be read, or one cannot and `skipped` is None; names every such file.
    """
    prompts, unreadable = list[SoundPrompt](), list[str]()
    for name, path in paths.items():
        try:
            source = read_source(path, seconds, run.codec)
            prompts.append(SoundPrompt(name, source, prompt_vector(run.embedder, source, run.codec.sample_rate)))
        except AudioError as error:
            unreadable.append(str(error))
    if unreadable and (skipped is None or not prompts):
        raise InputError("prompts that cannot be read: " + "; ".join(unreadable))
    if skipped is not None:
        skipped += unreadable
    return prompts
