"""Renders notes from a soundfont."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from pipeline.common.errors import InputError

DRUM_CHANNEL, DRUM_BANK = 9, 128
FADE = 10  # a 1/FADE second is rendered after each note, in which the reverberation fades


class Synthesizer:
    """A soundfont's General MIDI bank and drum kit, which plays one note at a time."""

    def __init__(self, soundfont: Path, rate: int) -> None:
        """Load a soundfont.

        Args:
            soundfont: An .sf2 file.
            rate: The sample rate in Hz. There is no anti-aliasing filter: render at a multiple of a low rate.

        Raises:
            InputError: The synthesizer is not installed, or the file is not a soundfont.
        """
        try:
            import tinysoundfont
        except ImportError as error:
            raise InputError(
                "rendering notes needs the synthesizer tinysoundfont: `pip install --no-deps tinysoundfont` (its"
                " dependency PortAudio is not needed)"
            ) from error
        self._rate = rate
        self._synth = tinysoundfont.Synth(samplerate=rate, gain=-6)
        try:
            self._font = self._synth.sfload(str(soundfont))
        except Exception as error:  # the binding raises a bare RuntimeError
            raise InputError(f"{soundfont} is not a soundfont: {error}") from error

    def has_program(self, program: int) -> bool:
        """Whether the soundfont has this General MIDI program, counted from 0."""
        return self._synth.sfpreset_name(self._font, 0, program) is not None

    def render_note(self, program: int, pitch: int, velocity: int, pressed: int, released: int) -> np.ndarray:
        """Render a note: float32 [S]. pressed, released: seconds before and after its key is released."""
        self._synth.program_select(0, self._font, 0, program)
        return self._render(0, pitch, velocity, pressed, released)

    def render_drum(self, key: int, velocity: int, seconds: int) -> np.ndarray:
        """Render a hit of the drum kit: float32 [S]."""
        self._synth.program_select(DRUM_CHANNEL, self._font, DRUM_BANK, 0, True)
        return self._render(DRUM_CHANNEL, key, velocity, seconds, 0)

    def _render(self, channel: int, key: int, velocity: int, pressed: int, released: int) -> np.ndarray:
        self._synth.noteon(channel, key, velocity)
        sound = bytes(self._synth.generate(pressed * self._rate))
        self._synth.noteoff(channel, key)
        sound += bytes(self._synth.generate(released * self._rate))
        self._synth.sounds_off(channel)
        self._synth.generate(self._rate // FADE)
        mono: np.ndarray = np.frombuffer(sound, np.float32).reshape(-1, 2).mean(axis=1)
        return mono


def default_soundfont() -> Path:
    """The soundfont that pretty_midi ships. Raises InputError where it is not installed."""
    spec = importlib.util.find_spec("pretty_midi")  # not imported: only its soundfont is needed
    if spec is None or not spec.submodule_search_locations:
        raise InputError("rendering notes needs a soundfont: `pip install pretty_midi` ships one, or name an .sf2 file")
    return Path(spec.submodule_search_locations[0]) / "TimGM6mb.sf2"
