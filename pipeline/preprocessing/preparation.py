"""What is done to the audio of a clip before it is encoded: silence skipped or trimmed, loudness normalized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from pipeline.audio import loudness, silence
from pipeline.common.setting_types import Fraction, Unit
from pipeline.common.settings import Settings

_OFF = {"silence": silence.SILENCE_DB, "min_sound": 0, "trim": False, "loudness": None, "group_copies": False}


class PrepareSettings(Settings):
    """The settings `prepare` of preprocessing; see conf/preprocess.yaml."""

    silence: Annotated[float, Field(lt=0), Unit("dBFS")]
    min_sound: Fraction
    trim: bool
    loudness: Annotated[float, Field(ge=-70, le=0), Unit("LUFS")] | None
    peak: Annotated[float, Field(ge=-20, le=0), Unit("dBTP")]
    group_copies: bool

    def recorded(self) -> dict[str, object]:
        """Those that differ from doing nothing. A dataset records only these, so that older ones stay valid."""
        recorded = {name: value for name, value in self.to_dict().items() if value != _OFF.get(name)}
        if self.loudness is None:
            del recorded["peak"]
        return recorded


@dataclass(frozen=True, eq=False)
class PreparedAudio:
    """The audio of a clip as it is encoded.

    Attributes:
        wav: float32 [S] or [S, 2]; None if the clip is skipped.
        start: Seconds that were trimmed before it.
        gain: In dB.
        note: Why it is skipped, or what could not be done.
    """

    wav: np.ndarray | None
    start: float = 0.0
    gain: float = 0.0
    note: str = ""


def prepare_audio(wav: np.ndarray, rate: int, settings: PrepareSettings) -> PreparedAudio:
    """Skip, trim and normalize a clip.

    Args:
        wav: float32 [S] or [S, 2].
        rate: Hz.
        settings: What to do.
    """
    sounding = silence.sounding_frames(wav, rate, settings.silence)
    share = float(sounding.mean())
    if not share:
        return PreparedAudio(None, note=f"silent: it stays below prepare.silence={settings.silence:g} dBFS")
    if share < settings.min_sound:
        return PreparedAudio(
            None,
            note=f"too little sound: {share:.1%} of it is above prepare.silence={settings.silence:g} dBFS, less than "
            f"prepare.min_sound={settings.min_sound:g}",
        )
    start, end = silence.sound_range(sounding, rate) if settings.trim else (0, len(wav))
    wav = wav[start:end]
    if settings.loudness is None:
        return PreparedAudio(wav, start / rate)
    gain, is_limited = loudness.loudness_gain(wav, rate, settings.loudness, settings.peak)
    target = f"prepare.loudness={settings.loudness:g} LUFS"
    note = f"limited by its peak: at {target} it would exceed prepare.peak={settings.peak:g} dBTP" if is_limited else ""
    return PreparedAudio(loudness.amplify(wav, gain) if gain else wav, start / rate, gain, note)
