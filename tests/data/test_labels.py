"""Vocabularies of labels: counted in any parts, they are the same, and their JSON is read back."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.labels import MAX_VALUES, LabelCounter, LabelVocabulary, Vocabularies, dump_vocabularies
from tests.helpers.damage import damaged_json, seeds, some

VALUES = st.integers(-5, 5) | st.floats() | st.sampled_from(["a", "\udcff", "7"]) | st.lists(st.sampled_from("abc"))
CLIPS = st.lists(st.dictionaries(st.sampled_from(["pitch", "mood", "tags"]), VALUES), max_size=12)


def count(clips: list[dict[str, Any]]) -> LabelCounter:
    counter = LabelCounter()
    for labels in clips:
        counter.add(labels)
    return counter


def through_json(vocabularies: Vocabularies) -> Vocabularies:
    content = json.loads(json.dumps(dump_vocabularies(vocabularies), allow_nan=False))
    return {name: LabelVocabulary.model_validate(label) for name, label in content.items()}


@given(CLIPS, CLIPS)
def test_counts_of_parts_add_up(one: list, other: list) -> None:
    whole = count(one + other).vocabularies()
    assert through_json(whole) == whole
    merged = LabelCounter()
    for part in (other, one):
        merged.add_all(through_json(count(part).vocabularies()))
    assert merged.vocabularies() == whole


def test_kinds_and_values() -> None:
    clips = [
        {"pitch": 60, "mood": "sad", "tags": ["a", "b"]},
        {"pitch": 9, "mood": "sad", "tags": ["b"]},
        {"pitch": 60},
    ]
    vocabularies = count(clips).vocabularies()
    pitch, mood, tags = (vocabularies[name] for name in ("pitch", "mood", "tags"))
    assert (pitch.kind, pitch.clips, pitch.low, pitch.high) == ("number", 3, 9, 60)
    assert list((pitch.values or {}).items()) == [("9", 1), ("60", 2)], "numbers are sorted as numbers"
    assert (mood.kind, mood.clips, mood.low, mood.values) == ("category", 2, None, {"sad": 2})
    assert (tags.kind, tags.values) == ("tags", {"a": 1, "b": 2})


def test_label_with_too_many_values_is_a_name() -> None:
    names = count([{"name": f"clip {number}"} for number in range(MAX_VALUES + 1)]).vocabularies()["name"]
    assert (names.clips, names.values) == (MAX_VALUES + 1, None)


@some(150)
@given(seed=seeds)
def test_damaged_vocabularies_are_refused(seed: int) -> None:
    clips = [{"pitch": 60, "mood": "sad", "tags": ["a", "b"]}, {"pitch": 9.5}]
    damaged = damaged_json(seed, dump_vocabularies(count(clips).vocabularies()))
    try:
        vocabularies = {name: LabelVocabulary.model_validate(label) for name, label in damaged.items()}
    except (ValueError, AttributeError):
        return
    merged = LabelCounter()
    merged.add_all(vocabularies)
    merged.add_all(vocabularies)
    through_json(merged.vocabularies())
