"""The answers of listeners: the files that the page of a listening test saves. They are not trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError

from pipeline.common.errors import InputError, first_problem, one_line
from pipeline.common.files import expand_globs
from pipeline.evaluation.listening.key import CheckedModel, ListeningKey, SoundId, short_hash

MAX_BYTES = 20_000_000  # of a file of answers
Rating = Annotated[float, Field(ge=0, le=100)]


class TrialAnswers(CheckedModel):
    """The ratings of the sounds of a trial."""

    ratings: dict[SoundId, Rating]


class Answers(CheckedModel):
    """The answers of a listener.

    Attributes:
        page: The name of the page: a hash of its key.
        key: The encoded key.
        session: The name of the listener's test: random.
        listener: The name that the listener gave; may be empty.
        finished: When the last trial was finished, in ISO 8601.
        trials: The trials in the order in which they were shown.
    """

    format: Literal["listening-test-answers"]
    version: Literal[1]
    page: SoundId
    key: Annotated[str, Field(max_length=MAX_BYTES)]
    session: SoundId
    listener: Annotated[str, Field(max_length=100)]
    finished: Annotated[str, Field(max_length=40)]
    trials: list[TrialAnswers]

    def by_trial(self, key: ListeningKey) -> list[Mapping[str, float]]:
        """The ratings of each trial of the key, by the title of what was rated.

        Raises:
            ValueError: A trial is missing, or one is not of this test.
        """
        trials = {frozenset(trial.ratings): trial.ratings for trial in self.trials}
        expected = [frozenset(trial) for trial in key.trials]
        if len(self.trials) != len(expected) or set(trials) != set(expected):
            raise ValueError(f"its trials are not the {len(expected)} of the test")
        return [{titles[name]: rating for name, rating in trials[frozenset(titles)].items()} for titles in key.trials]


@dataclass(frozen=True)
class Ratings:
    """The ratings of a listening test.

    Attributes:
        key: What was rated.
        page: The name of the page.
        files: The file of each listener.
        listeners: The names of the listeners; "" where one gave none.
        values: The ratings by title of what was rated: [listeners, trials].
        skipped: Why files were skipped, by file.
    """

    key: ListeningKey
    page: str
    files: Sequence[str]
    listeners: Sequence[str]
    values: Mapping[str, np.ndarray]
    skipped: Mapping[str, str]


def read_ratings(patterns: Sequence[str]) -> Ratings:
    """Read files of answers. Damaged files, those of another test, and older ones of the same session are skipped.

    Args:
        patterns: Files, or globs of files.

    Raises:
        InputError: There is no such file, or no valid one.
    """
    valid, skipped = dict[str, _File](), dict[str, str]()
    for path in expand_globs("ratings", patterns):
        if not Path(path).exists():
            raise InputError(f"ratings={path}: there is no such file; give files of answers, or a glob: *.json")
        try:
            valid[path] = _read(Path(path))
        except ValidationError as error:
            skipped[path] = first_problem(error)
        except (OSError, ValueError, RecursionError) as error:
            skipped[path] = one_line(error)[:300]
    if not valid:
        path, reason = next(iter(skipped.items()))
        raise InputError(
            f"ratings={path}: not the answers of a listening test ({reason}); give files that the page of "
            "pipeline.report listening_test=true has saved"
        )
    ((page, _),) = Counter(file.answers.page for file in valid.values()).most_common(1)
    kept: dict[str, str] = {}  # the latest file of each session
    for path, file in sorted(valid.items(), key=lambda item: item[1].answers.finished):
        session = file.answers.session
        if file.answers.page != page:
            skipped[path] = f"it is of another listening test ({file.answers.page}, not {page})"
            continue
        if session in kept:
            skipped[kept[session]] = f"{path} is of the same listener, and newer"
        kept[session] = path
    paths = sorted(kept.values())
    files = [valid[path] for path in paths]
    values = {
        title: np.array([[trial[title] for trial in file.trials] for file in files], np.float64)
        for title in files[0].key.conditions
    }
    names = [printable(file.answers.listener) for file in files]
    return Ratings(files[0].key, page, paths, names, values, skipped)


@dataclass(frozen=True)
class _File:
    """A valid file: its answers, its key, and the ratings of each trial."""

    answers: Answers
    key: ListeningKey
    trials: Sequence[Mapping[str, float]]


def _read(path: Path) -> _File:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES / 1e6:.0f} MB")
    answers = Answers.model_validate_json(path.read_bytes())
    if short_hash(answers.key) != answers.page:
        raise ValueError("its key is damaged")
    key = ListeningKey.decode(answers.key)
    return _File(answers, key, answers.by_trial(key))


def printable(text: str) -> str:
    """A text from a file without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)
