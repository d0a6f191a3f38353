"""Real notes by instrument and pitch, to tell whose timbre a sound has, whatever its pitch.

An embedding of a note has its pitch and its timbre, and often more of the pitch: a note may be closer to a note of
another instrument at its pitch than to its own instrument at another pitch. So only notes of one pitch are compared.
Real notes are compared as the codec reconstructs them, because embeddings depend on the codec too.

Letters: M notes of the gallery, N sounds, P prompt width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.audio.metrics import unit_vectors
from pipeline.data.dataset import ShardedDataset
from pipeline.data.shard import Sample
from pipeline.data.stats import labels_of
from pipeline.evaluation.audio_set import AudioSet
from pipeline.evaluation.reference_clips import PITCH, max_frames, sample_reference_clips
from pipeline.generation.loaded_run import LoadedRun


@dataclass(frozen=True)
class Note:
    """What a sound should be: a note of an instrument.

    Attributes:
        key: The clip that supplied the instrument; it is not compared with its own sound.
        instrument: A label.
        pitch: A MIDI note number.
    """

    key: str
    instrument: str
    pitch: float

    @classmethod
    def of_clip(cls, sample: Sample, label: str) -> Note | None:
        """The note that a clip is; None: it has no pitch, or no label of this name."""
        labels = labels_of(sample)
        instrument, pitch = labels.get(label), labels.get(PITCH)
        return None if instrument is None or pitch is None else cls(sample.key, str(instrument), float(pitch))


@dataclass(frozen=True)
class Likeness:
    """How like the real notes of a pitch a sound is.

    Attributes:
        nearest: The instrument whose notes have the highest mean cosine similarity to the sound.
        own: That mean for the instrument that the sound should be.
        others: That mean for the notes of all other instruments.
        instruments: How many instruments have notes at this pitch.
        floor: The mean cosine similarity of the notes of this instrument and of all others.
    """

    nearest: str
    own: float
    others: float
    instruments: int
    floor: float


class NoteGallery:
    """The embeddings of real notes."""

    def __init__(self, notes: Sequence[Note], embeddings: np.ndarray) -> None:
        """Index notes [M] with their embeddings [M, P]."""
        self._units = unit_vectors(embeddings.astype(np.float64))
        self._keys = [note.key for note in notes]
        self._rows: dict[float, dict[str, list[int]]] = {}  # by pitch, then by instrument
        for row, note in enumerate(notes):
            self._rows.setdefault(note.pitch, {}).setdefault(note.instrument, []).append(row)

    @classmethod
    def decode(cls, split: ShardedDataset, run: LoadedRun, label: str, count: int, seed: int) -> NoteGallery:
        """The codec's reconstructions of the notes of a split.

        Args:
            split: The dataset.
            run: The model, whose codec and embedder are used.
            label: The label that names the instrument.
            count: The number of notes, drawn at random if the split has more.
            seed: The seed of the draw.
        """
        clips = sample_reference_clips(split, count, seed, run, max_frames(run))
        notes = {i: note for i, clip in enumerate(clips) if (note := Note.of_clip(clip.sample, label))}
        sounds = AudioSet.decode("notes", [clips[i].codes for i in notes], run) if notes else None
        return cls([*notes.values()], sounds.embeddings if sounds else np.zeros((0, 1)))

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def instruments(self) -> set[str]:
        """All instruments."""
        return {instrument for rows in self._rows.values() for instrument in rows}

    @property
    def pitches(self) -> list[float]:
        """All pitches."""
        return sorted(self._rows)

    def can_compare(self, note: Note) -> bool:
        """Whether the instrument has another note at this pitch, and another instrument has one."""
        return self._select(note) is not None

    def compare(self, embedding: np.ndarray, note: Note) -> Likeness:
        """Compare a sound [P] with the real notes at the pitch of the note that it should be; see `can_compare`."""
        rows = self._select(note)
        assert rows is not None
        unit = unit_vectors(embedding[None].astype(np.float64))[0]
        means = {instrument: float((self._units[own] @ unit).mean()) for instrument, own in rows.items()}
        own = rows[note.instrument]
        others = [row for instrument, each in rows.items() if instrument != note.instrument for row in each]
        return Likeness(
            max(means, key=lambda instrument: means[instrument]),
            means[note.instrument],
            float((self._units[others] @ unit).mean()),
            len(rows),
            float((self._units[own] @ self._units[others].T).mean()),
        )

    def _select(self, note: Note) -> dict[str, list[int]] | None:
        """The rows of the notes at a pitch, by instrument, without the note itself."""
        rows = {
            instrument: [row for row in each if self._keys[row] != note.key]
            for instrument, each in self._rows.get(note.pitch, {}).items()
        }
        rows = {instrument: each for instrument, each in rows.items() if each}
        return rows if note.instrument in rows and len(rows) > 1 else None
