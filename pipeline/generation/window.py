"""The sliding window of sounds longer than the training clips, from the settings `window*` of `pipeline.generate`."""

from __future__ import annotations

from pipeline.common.errors import InputError
from pipeline.generation.generator import SlidingWindow
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.settings import GenerateSettings


def resolve_window(settings: GenerateSettings, frames: int, run: LoadedRun) -> SlidingWindow | None:
    """The sliding window for a sound of this many frames; None if the sound is not longer than the training clips.

    Raises:
        InputError: The window is not shorter than the training clips; or it is needed, but its length is not given
            and that of the training clips is unknown; or the sound is generated without a window and is longer than
            the model's positions.
    """
    window = None if settings.mode in ("prompt", "interpolate") else _choose_window(settings, frames, run)
    config, pattern = run.model.config, run.model.pattern
    steps = pattern.num_steps(frames + int(config.end_of_audio))
    if window is None and steps > config.positions:
        raise InputError(
            f"seconds={settings.seconds}: {frames} frames are {steps} steps under pattern={pattern.name}, but the "
            f"model has positions for 1..{config.positions}: give fewer seconds, or mode=continue, which has no limit"
        )
    return window


def record_window(settings: GenerateSettings, window: SlidingWindow | None, run: LoadedRun) -> GenerateSettings:
    """The settings with the window in seconds instead of `auto`, so that they mean the same in later versions."""
    if window is None:
        return settings
    parts = {"window": window.frames, "window_stride": window.stride, "window_keep": window.kept}
    return settings.model_copy(update={name: frames / run.codec.frame_rate for name, frames in parts.items()})


def _choose_window(settings: GenerateSettings, frames: int, run: LoadedRun) -> SlidingWindow | None:
    trained, rate = run.trained_frames, run.codec.frame_rate
    is_morph = settings.mode == "morph"  # moves away from its beginning
    if isinstance(settings.window, str):
        if trained is None:
            raise InputError(
                f"window={settings.window}: the length of the training clips is unknown; give window=SECONDS"
            )
        if frames <= trained:
            return None
        window = max(2, trained // (2 if is_morph or settings.window == "half" else 3))
    else:
        window = round(settings.window * rate)
    if not 2 <= window < (trained or window + 1):
        raise InputError(
            f"window={settings.window}: {window} frames; give 2 frames or more, and less than the {trained} "
            f"({trained and trained / rate:g} s) of the training clips"
        )
    if frames <= window:
        return None
    if isinstance(settings.window_stride, str):
        stride = max(1, window // (2 if is_morph or settings.window_stride == "half" else 3))
    else:
        stride = round(settings.window_stride * rate)
    if not 0 < stride < window:
        raise InputError(
            f"window_stride={settings.window_stride}: {stride} frames; "
            f"give more than 0 and less than the window's {window}"
        )
    most = window - stride - 1
    if settings.window_keep == "auto":
        return SlidingWindow(window, stride, 0 if is_morph else min(window // 3, most))
    kept = round(settings.window_keep * rate)
    if kept > most:
        raise InputError(
            f"window_keep={settings.window_keep}: {kept} frames; give at most {most}, the window's {window} frames "
            f"without a stride of {stride}"
        )
    return SlidingWindow(window, stride, kept)
