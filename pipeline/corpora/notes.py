"""Notes of General MIDI instruments, rendered from a soundfont in NSynth's layout, with NSynth's names and labels.

A small corpus with exact pitch, velocity and instrument that needs no network, for the quickstart and the tests.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import random
import wave
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator

from pipeline.common.console import print_log
from pipeline.common.errors import InputError
from pipeline.common.files import sha256_file, write_atomic
from pipeline.common.setting_types import Fraction, Positive, PositiveInt, Seconds
from pipeline.corpora import CORPORA
from pipeline.corpora.base import SPLITS, AudioDigest, CorpusSettings, Durations, TestShare, printable
from pipeline.corpora.nsynth import NSynth
from pipeline.corpora.soundfont import Synthesizer, default_soundfont

RATE = 16_000  # NSynth's
RENDER_RATE = 3 * RATE  # at 16 kHz high notes would alias
SECONDS, KEY_SECONDS = 4, 3
SILENCE_PEAK = 3e-3  # relative to full scale, before scaling
SETTINGS_FILE = "notes.json"  # the settings that the folder was rendered with, and whether all notes are "complete"
FAMILIES = ["bass", "brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string", "synth_lead", "vocal"]
SOURCES = ["acoustic", "electronic", "synthetic"]
# NSynth's family and source of General MIDI programs, by the first program of each range.
INSTRUMENTS = {
    **{0: "keyboard acoustic", 2: "keyboard electronic", 3: "keyboard acoustic", 4: "keyboard electronic"},
    **{6: "keyboard acoustic", 7: "keyboard electronic", 8: "mallet acoustic", 16: "organ electronic"},
    **{19: "organ acoustic", 22: "reed acoustic", 23: "organ acoustic", 24: "guitar acoustic", 26: "guitar electronic"},
    **{32: "bass acoustic", 33: "bass electronic", 38: "bass synthetic", 40: "string acoustic", 47: "mallet acoustic"},
    **{48: "string acoustic", 50: "string synthetic", 52: "vocal acoustic", 54: "vocal synthetic"},
    **{55: "string acoustic", 56: "brass acoustic", 62: "brass synthetic", 64: "reed acoustic", 72: "flute acoustic"},
    **{80: "synth_lead synthetic", 104: "guitar acoustic", 108: "mallet acoustic", 109: "reed acoustic"},
    **{110: "string acoustic", 111: "reed acoustic"},
}
NUM_PITCHED_PROGRAMS = 112  # programs from here on are drums and effects


Numbers = int | str | list[int]  # one number, a range as "44-85", or a list


def _parse_numbers(value: Numbers) -> list[int]:
    """The numbers of a setting, sorted. Raises ValueError for a text that is not a range."""
    if isinstance(value, str):
        first, last = value.split("-")
        return list(range(int(first), int(last) + 1))
    return [value] if isinstance(value, int) else sorted(set(value))


def _check_numbers(value: Numbers, low: int, high: int) -> Numbers:
    try:
        numbers = _parse_numbers(value)
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < low or numbers[-1] > high:
        raise ValueError(f"expected a range like {low}-{high} or a list of numbers in it")
    return value


@CORPORA.register("notes")
class NotesSettings(CorpusSettings):
    """Settings of rendered notes; see conf/data/notes.yaml."""

    title: ClassVar[str] = "General MIDI notes rendered from a soundfont"
    how_to_get: ClassVar[str] = "preprocess renders it; to render it again, delete its folder"
    location_settings: ClassVar[tuple[str, ...]] = ("soundfont",)

    soundfont: str | None
    programs: Annotated[Numbers, AfterValidator(partial(_check_numbers, low=0, high=NUM_PITCHED_PROGRAMS - 1))]
    pitches: Annotated[Numbers, AfterValidator(partial(_check_numbers, low=0, high=127))]
    velocities: Annotated[Numbers, AfterValidator(partial(_check_numbers, low=1, high=127))]
    clips: PositiveInt | None
    seed: int
    split_by: Literal["instrument", "note"]
    valid: Fraction
    test: TestShare
    peak: Positive | None
    seconds: Seconds | None

    def open(self, digest: AudioDigest | None = None, durations: Durations | None = None) -> NSynth:
        """Open the corpus, and render it first unless `root` contains these notes already.

        Raises:
            InputError: A setting does not fit the others, the synthesizer or the soundfont is missing, or the folder
                contains other notes or other files.
        """
        _render_missing(self)
        return NSynth(self.root, self.scan_cache_dir, self.seconds, self.how_to_get)


class Note(NamedTuple):
    """A note to render: a General MIDI program (0..111), a MIDI pitch and a velocity (1..127)."""

    program: int
    pitch: int
    velocity: int


def _render_missing(data: NotesSettings) -> None:
    root, soundfont = Path(data.root), _locate_soundfont(data.soundfont)
    settings = {
        "programs": _parse_numbers(data.programs),
        "pitches": _parse_numbers(data.pitches),
        "velocities": _parse_numbers(data.velocities),
        **data.model_dump(include={"clips", "seed", "split_by", "valid", "test", "peak"}),
        "soundfont": sha256_file(soundfont),
    }
    groups, state = _assign_splits(settings), _read_settings(root)
    complete_notes = {"complete": True, **settings}
    if data.seconds is not None and data.seconds < SECONDS:
        settings["seconds"] = math.ceil(data.seconds)
    if state in (complete_notes, {"complete": True, **settings}):
        return
    if state != {"complete": False, **settings}:  # equal: another process may be rendering the same bytes
        _refuse_other_notes(root, state, settings)
    synth = Synthesizer(soundfont, RENDER_RATE)
    if absent := [program for program in settings["programs"] if not synth.has_program(program)]:
        raise InputError(f"data.programs: {printable(soundfont)} has no General MIDI programs {absent}")
    try:
        _write_file(root / SETTINGS_FILE, _encode_json({"complete": False, **settings}))
        _render_all(root, synth, settings, groups)
        _write_file(root / SETTINGS_FILE, _encode_json({"complete": True, **settings}))
    except OSError as error:
        raise InputError(
            f"data.root={printable(root)} cannot be written ({error.strerror}): choose another folder"
        ) from error


def _read_settings(root: Path) -> dict[str, Any]:
    if not root.exists() or not any(root.iterdir()):
        return {}
    try:
        settings: dict[str, Any] = json.loads((root / SETTINGS_FILE).read_text())
        return settings
    except (OSError, ValueError) as error:
        message = f"data.root={printable(root)} contains files that data=notes did not render: choose another folder"
        raise InputError(message) from error


def _refuse_other_notes(root: Path, state: dict[str, Any], settings: dict[str, Any]) -> None:
    names = sorted((settings.keys() | state.keys()) - {"complete"})
    changed = [name for name in names if state and state.get(name) != settings.get(name)]
    if changed:
        differences = ", ".join(
            f"data.{name}={state.get(name)!s:.40} (now {settings.get(name)!s:.40})" for name in changed
        )
        raise InputError(
            f"data.root={printable(root)} contains notes rendered with {differences}: choose another data.root=,"
            " or delete it"
        )


def _render_all(root: Path, synth: Synthesizer, settings: dict[str, Any], groups: dict[Any, str]) -> None:
    """Write wavs and indices, atomically and with the same bytes each time."""
    notes = [Note(*n) for n in itertools.product(*(settings[name] for name in ("programs", "pitches", "velocities")))]
    random.Random(settings["seed"]).shuffle(notes)
    indices: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    left = settings["clips"] or len(notes)
    print_log(f"rendering {left:,} notes into {printable(root)}")
    for number, note in enumerate(notes):
        wav = _render(synth, note, settings["peak"], settings.get("seconds", SECONDS))
        if wav is None:
            continue
        split = groups[_split_group(note, settings["split_by"])]
        entry = _index_entry(note, number)
        _write_file(root / f"nsynth-{split}" / "audio" / f"{entry['note_str']}.wav", _encode_wav(wav))
        indices[split][entry["note_str"]] = entry
        left -= 1
        if not left:
            break
    for split, index in indices.items():
        if index:
            _write_file(root / f"nsynth-{split}" / "examples.json", _encode_json(index))


def _render(synth: Synthesizer, note: Note, peak: float | None, seconds: int) -> np.ndarray | None:
    """Return a note as float32 [seconds * RATE], or None if it is silent. The key is pressed for KEY_SECONDS."""
    import soxr

    pressed = min(KEY_SECONDS, seconds)
    wav: np.ndarray = soxr.resample(
        synth.render_note(*note, pressed, seconds - pressed), RENDER_RATE, RATE, quality="HQ"
    )
    loudest = float(np.abs(wav).max())
    if loudest < SILENCE_PEAK:
        return None
    return wav if peak is None else wav * (peak / loudest)


def _split_group(note: Note, split_by: str) -> Any:
    return note.program if split_by == "instrument" else (note.program, note.pitch)


def _assign_splits(settings: dict[str, Any]) -> dict[Any, str]:
    """Return the split of every instrument, or of every pitch of every instrument: a random choice of exact shares."""
    count = len(settings["programs"]) * len(settings["pitches"]) * len(settings["velocities"])
    if (settings["clips"] or 0) > count:
        raise InputError(f"data.clips={settings['clips']}: expected 1 to {count}, the number of combinations, or null")
    if settings["split_by"] == "instrument":
        groups: list[Any] = list(settings["programs"])
    else:
        groups = list(itertools.product(settings["programs"], settings["pitches"]))
    random.Random(settings["seed"]).shuffle(groups)
    sizes = {split: max(1, round(settings[split] * len(groups))) if settings[split] else 0 for split in SPLITS[1:]}
    if sum(sizes.values()) >= len(groups):
        raise InputError(
            f"data.valid={settings['valid']} and data.test={settings['test']} leave none of the {len(groups)} groups"
            f" (data.split_by={settings['split_by']}) to train on: lower them or set more data.programs"
        )
    valid, test = sizes["valid"], sizes["test"]
    return {g: "valid" if i < valid else "test" if i < valid + test else "train" for i, g in enumerate(groups)}


def _index_entry(note: Note, number: int) -> dict[str, Any]:
    """Return the entry of a note in NSynth's index."""
    family, source = INSTRUMENTS[max(first for first in INSTRUMENTS if first <= note.program)].split()
    instrument = f"{family}_{source}_{note.program:03d}"
    return {
        "note": number,
        "note_str": f"{instrument}-{note.pitch:03d}-{note.velocity:03d}",
        "instrument": note.program,
        "instrument_str": instrument,
        "pitch": note.pitch,
        "velocity": note.velocity,
        "sample_rate": RATE,
        "qualities": [0] * 10,
        "qualities_str": [],
        "instrument_family": FAMILIES.index(family),
        "instrument_family_str": family,
        "instrument_source": SOURCES.index(source),
        "instrument_source_str": source,
    }


def _locate_soundfont(path: str | None) -> Path:
    if path is not None and not Path(path).is_file():
        raise InputError(f"data.soundfont={path} is not a file: expected an .sf2 file, or null for pretty_midi's")
    return default_soundfont() if path is None else Path(path)


def _encode_wav(wav: np.ndarray) -> bytes:
    """Return float [S] at RATE as the bytes of a 16-bit wav file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, RATE, len(wav), "NONE", ""))
        out.writeframes(np.round(np.clip(wav, -1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()


def _encode_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content, shared=True)
