"""Timbre: whether sounds keep the instrument of their prompt, at the prompt's pitch and at others.

Letters: N clips, R requests, P prompt width.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.evaluation.analyses import ANALYSES, Analysis, AnalysisInputs, AnalysisResult
from pipeline.evaluation.audio_set import AudioSet
from pipeline.evaluation.generations import generate_all
from pipeline.evaluation.metrics.pitch import is_pitch_correct
from pipeline.evaluation.note_gallery import Note, NoteGallery
from pipeline.evaluation.reference_clips import PITCH, clip_values
from pipeline.evaluation.results import CEILING, MetricValue, MetricValues, temperature_row
from pipeline.evaluation.settings import EvaluateSettings
from pipeline.models.conditions.base import LabelCondition

INSTRUMENT, IN_TUNE, CONSISTENT = "instrument", "instrument, in tune", "consistent"
SIMILARITY, OTHERS = "similarity", "to others"
FLOOR = "floor (other instruments)"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A sound that is compared with real notes.

    Attributes:
        sound: The index of the sound in its set.
        clip: The index of the clip whose prompt it has.
        note: The note that it should be.
        group: Sounds of one group should have one instrument.
    """

    sound: int
    clip: int
    note: Note
    group: Hashable


@ANALYSES.register("timbre")
class Timbre(Analysis):
    """How often sounds are nearest to real notes of their prompt's instrument, among notes of the requested pitch.

    A model with a pitch condition generates from each prompt at several other pitches. Of a model without one, the
    sounds from the prompts of an instrument are compared, each at the pitch of its prompt.
    """

    title = "timbre"
    order = 20

    def measure(self, inputs: AnalysisInputs) -> AnalysisResult | None:
        """None: the clips do not say their pitch and instrument, or no pitch has notes of two instruments."""
        settings = inputs.settings
        if np.isnan(inputs.references.pitch_labels).all():
            return None
        inputs.show_status("decoding notes whose timbre is compared")
        gallery = NoteGallery.decode(
            inputs.split, inputs.run, settings.instrument, settings.embedded_clips, settings.seed
        )
        notes = [Note.of_clip(clip.sample, settings.instrument) for clip in inputs.clips]
        condition = inputs.run.model.label_conditions.get(PITCH)
        own_notes = request_own_notes(notes, gallery)
        other_notes = draw_requests(notes, gallery, condition, settings) if condition else []
        requests, sounds = other_notes or own_notes, inputs.generations
        if not requests:
            log.warning(
                "instrument=%s: no pitch has notes of two instruments to compare sounds with", settings.instrument
            )
            return None
        if condition and other_notes:
            inputs.show_status(f"generating {len(requests)} notes with other pitches than those of their prompts")
            sounds = _generate(inputs, requests, condition)
        rows = {
            temperature_row(temperature): _measure(inputs, gallery, requests, each)
            for temperature, each in sounds.items()
        }
        rows = {FLOOR: _measure_floor(inputs, gallery, requests, next(iter(sounds.values()))), **rows}
        if own_notes:
            rows[CEILING] = _measure(inputs, gallery, own_notes, inputs.reconstructions)
        real = f"{len(gallery)} notes of {len(gallery.instruments)} instruments of {inputs.split.split}"
        percents = [INSTRUMENT, IN_TUNE, CONSISTENT, PITCH]
        text = _explain(rows, real, bool(other_notes))
        return AnalysisResult(title=self.title, text=text, rows=rows, percents=percents)


def request_own_notes(notes: Sequence[Note | None], gallery: NoteGallery) -> list[Request]:
    """The notes [N] of the clips, those that can be compared, grouped by instrument."""
    return [Request(i, i, note, note.instrument) for i, note in enumerate(notes) if note and gallery.can_compare(note)]


def draw_requests(
    notes: Sequence[Note | None], gallery: NoteGallery, condition: LabelCondition, settings: EvaluateSettings
) -> list[Request]:
    """For each clip's note [N], notes of its instrument at other pitches, drawn by the seed, grouped by clip.

    Only pitches that the model knows and the gallery has are drawn: fewer than `pitches_per_prompt` if there are fewer.
    """
    generator, requests = np.random.default_rng(settings.seed), list[Request]()
    pitches = [pitch for pitch in gallery.pitches if condition.knows(pitch)]
    for clip, own in enumerate(notes):
        others = [replace(own, pitch=pitch) for pitch in pitches if pitch != own.pitch] if own else []
        others = [note for note in others if gallery.can_compare(note)]
        for i in generator.permutation(len(others))[: settings.pitches_per_prompt].tolist():
            requests.append(Request(len(requests), clip, others[i], clip))
    return requests


def _generate(
    inputs: AnalysisInputs, requests: Sequence[Request], condition: LabelCondition
) -> Mapping[float, AudioSet]:
    """The sounds of the requests [R] by temperature, from the prompts and labels of their clips, but other pitches."""
    clips, settings = [inputs.clips[request.clip] for request in requests], inputs.settings
    values = clip_values(inputs.run, clips)
    values[PITCH] = torch.stack([condition.encode(request.note.pitch) for request in requests])
    codes = generate_all(
        inputs.run, clips, settings.temperatures, settings.sampling, settings.seed, settings.batch_size, values
    )
    return {temperature: AudioSet.decode("timbre", each, inputs.run) for temperature, each in codes.items()}


def _measure(
    inputs: AnalysisInputs, gallery: NoteGallery, requests: Sequence[Request], sounds: AudioSet
) -> MetricValues:
    """A row of the table. Intervals are over clips, because the sounds of one prompt are alike."""
    selected, clips = [request.sound for request in requests], [request.clip for request in requests]
    likenesses = [gallery.compare(sounds.embeddings[request.sound], request.note) for request in requests]
    pairs = zip(likenesses, requests, strict=True)
    is_own = np.array([likeness.nearest == request.note.instrument for likeness, request in pairs], float)
    is_in_tune = is_pitch_correct(sounds.pitches[selected], np.array([request.note.pitch for request in requests]))
    values = {
        INSTRUMENT: _mean_by(clips, is_own),
        IN_TUNE: _mean_by(clips, np.where(is_in_tune, is_own, np.nan)),
        CONSISTENT: agreement(requests, [likeness.nearest for likeness in likenesses]),
        PITCH: _mean_by(clips, is_in_tune.astype(float)),
        SIMILARITY: _mean_by(clips, np.array([likeness.own for likeness in likenesses])),
        OTHERS: _mean_by(clips, np.array([likeness.others for likeness in likenesses])),
    }
    return {name: inputs.summarize(each) for name, each in values.items() if not np.isnan(each).all()}


def _explain(rows: Mapping[str, MetricValues], real_notes: str, are_other_pitches: bool) -> str:
    """What the best temperature reaches, and what the columns are."""
    best = max((row for row in rows if row not in (FLOOR, CEILING)), key=lambda row: rows[row][INSTRUMENT].mean)
    share, chance = (rows[row][INSTRUMENT].format(is_percent=True) for row in (best, FLOOR))
    sounds, group = ("other pitches than", "prompt") if are_other_pitches else ("the pitches of", "instrument")
    return (
        f"{best}: {share} % of the sounds at {sounds} their prompts are nearest to notes of the prompt's instrument "
        f"(chance: {chance} %), among real notes of their pitch through the codec, of {real_notes}. "
        f"Consistent: two sounds of one {group} at two pitches are nearest to one instrument."
    )


def _measure_floor(
    inputs: AnalysisInputs, gallery: NoteGallery, requests: Sequence[Request], sounds: AudioSet
) -> MetricValues:
    """The row of sounds that have nothing to do with their prompt: a random instrument of those with notes there."""
    likenesses = [gallery.compare(sounds.embeddings[request.sound], request.note) for request in requests]
    clips = [request.clip for request in requests]
    values = {
        INSTRUMENT: _mean_by(clips, np.array([1 / likeness.instruments for likeness in likenesses])),
        SIMILARITY: _mean_by(clips, np.array([likeness.floor for likeness in likenesses])),
    }
    row: dict[str, MetricValue] = {name: inputs.summarize(each) for name, each in values.items()}
    instruments, nearest = [request.note.instrument for request in requests], [each.nearest for each in likenesses]
    chance = chance_of_agreement(instruments, nearest)
    return row if np.isnan(chance) else {**row, CONSISTENT: inputs.summarize(chance)}


def agreement(requests: Sequence[Request], nearest: Sequence[str]) -> np.ndarray:
    """For each group, the share of pairs of sounds at two pitches that have one nearest instrument; NaN: no pair."""
    shares = []
    for group in dict.fromkeys(request.group for request in requests):
        rows = [i for i, request in enumerate(requests) if request.group == group]
        names, pitches = np.array([nearest[i] for i in rows]), np.array([requests[i].note.pitch for i in rows])
        is_pair = pitches[:, None] != pitches
        is_same = names[:, None] == names
        shares.append(is_same[is_pair].mean() if is_pair.any() else np.nan)
    return np.array(shares)


def chance_of_agreement(instruments: Sequence[str], nearest: Sequence[str]) -> float:
    """The share of pairs of sounds of two instruments that have one nearest instrument; NaN: there is no pair."""

    def pairs(names: Sequence[Hashable]) -> int:
        return sum(count**2 for count in Counter(names).values())

    both = pairs([*zip(instruments, nearest, strict=True)])
    total = len(instruments) ** 2 - pairs(instruments)
    return (pairs(nearest) - both) / total if total else float("nan")


def _mean_by(clips: Sequence[int], values: np.ndarray) -> np.ndarray:
    """The mean of the values [R] of each clip, without NaN; NaN for a clip that has no value."""
    rows: dict[int, list[float]] = {}
    for clip, value in zip(clips, values.tolist(), strict=True):
        rows.setdefault(clip, []).append(value)
    known = [[value for value in each if value == value] for each in rows.values()]
    return np.array([np.mean(each) if each else np.nan for each in known])
