"""The results of a listening test: mean ratings with intervals over listeners and clips.

Letters: L listeners, C clips, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from markupsafe import escape
from rich.console import Console
from rich.markup import escape as escape_markup

from pipeline.common.errors import InputError
from pipeline.evaluation.listening.answers import Ratings, printable, read_ratings
from pipeline.evaluation.results import MetricValue
from pipeline.evaluation.settings import CompareSettings
from pipeline.evaluation.tables import markdown_table, print_table

MIN_REFERENCE = 90  # BS.1534: a listener who rates the hidden reference lower in more trials than MAX_MISSED...
MAX_MISSED = 0.15  # ...did not recognise it, and is excluded
INTERVALS = "95 % intervals by bootstrap over listeners and clips"
RATING, DIFFERENCE, PREFERRED = "rating (0 to 100)", "difference", "preferred (%)"


@dataclass(frozen=True)
class ListeningResults:
    """The results of a listening test.

    Attributes:
        ratings: The ratings of all listeners.
        excluded: The share of trials in which a listener did not recognise the hidden reference, by file.
        means: The mean rating of each kind of sound by its title.
        pairs: For each pair of models: the mean difference of their ratings, and how often the first is rated higher;
            equal ratings count half.
    """

    ratings: Ratings
    excluded: Mapping[str, float]
    means: Mapping[str, MetricValue]
    pairs: Mapping[tuple[str, str], tuple[MetricValue, MetricValue]]

    @property
    def notes(self) -> list[str]:
        """One line for each file that was skipped, and for each listener who was excluded."""
        names = dict(zip(self.ratings.files, self.ratings.listeners, strict=True))
        skipped = [f"skipped: {file}: {reason}" for file, reason in self.ratings.skipped.items()]
        return [printable(line) for line in skipped] + [
            f"excluded: {printable(file)}{f' ({names[file]})' if names[file] else ''} rated the hidden reference below "
            f"{MIN_REFERENCE} in {100 * share:.0f} % of the trials, more than {100 * MAX_MISSED:.0f} %"
            for file, share in self.excluded.items()
        ]

    @property
    def title(self) -> str:
        """What was measured, in one line."""
        listeners, clips = len(self.ratings.files) - len(self.excluded), len(self.ratings.key.clips)
        return f"{listeners} listener{'s' * (listeners > 1)}, {clips} clip{'s' * (clips > 1)}; {INTERVALS}"

    def to_dict(self) -> dict[str, Any]:
        """The content of `compare.json`."""
        key = self.ratings.key
        pairs = [
            {"first": first, "second": second, "difference": difference.to_dict(), "preferred": preferred.to_dict()}
            for (first, second), (difference, preferred) in self.pairs.items()
        ]
        results = {
            "page": self.ratings.page,
            "question": key.question,
            "listeners": len(self.ratings.files) - len(self.excluded),
            "clips": key.clips,
            "intervals": INTERVALS,
            "means": {title: {"role": key.conditions[title], **mean.to_dict()} for title, mean in self.means.items()},
            "pairs": pairs,
            "excluded": dict(self.excluded),
            "skipped": dict(self.ratings.skipped),
            "details": key.details,
        }
        return {"ratings": results}

    def to_markdown(self) -> str:
        """The tables in Markdown, with what was asked, skipped and excluded."""
        parts = [_to_markdown(title, columns) for title, columns in self._tables()]
        notes = [f"- {_escape_cell(note)}\n" for note in self.notes]
        return "\n".join([f"{_escape_cell(self.ratings.key.question)}\n\n{self.title}.\n", *parts, "".join(notes)])

    def print(self, console: Console) -> None:
        """Print the tables."""
        console.print(printable(self.ratings.key.question), highlight=False, markup=False)
        for title, columns in self._tables():
            labels = [escape_markup(label) for label in columns.pop("")]
            print_table(console, title, labels, [*columns.items()])
        console.print(self.title, highlight=False, markup=False)

    def _tables(self) -> list[tuple[str, dict[str, list[str]]]]:
        """The title of each table, and its columns by heading; the first has the labels of the rows."""
        means = {printable(title): mean.format() for title, mean in self.means.items()}
        tables = [("mean ratings", {"": [*means], RATING: [*means.values()]})]
        if self.pairs:
            labels = [printable(f"{first} - {second}") for first, second in self.pairs]
            differences, shares = zip(*self.pairs.values(), strict=True)
            columns = {
                "": labels,
                DIFFERENCE: [value.format() for value in differences],
                PREFERRED: [value.format(is_percent=True) for value in shares],
            }
            tables.append(("the first against the second", columns))
        return tables


def compare_ratings(settings: CompareSettings) -> ListeningResults:
    """Read the answers of listeners, and compute means with intervals.

    Raises:
        InputError: As of `read_ratings`; all listeners are excluded; or runs are named too.
    """
    assert settings.ratings is not None
    if settings.runs is not None:
        raise InputError("ratings=: compares runs by answers of listeners, and runs= by measurements; give one of them")
    return summarize_ratings(read_ratings(settings.ratings), settings.resamples, settings.seed)


def summarize_ratings(ratings: Ratings, resamples: int, seed: int) -> ListeningResults:
    """The results of ratings, without the listeners who did not recognise the hidden reference.

    Raises:
        InputError: All listeners are excluded.
    """
    roles = ratings.key.conditions
    (reference, *_) = [title for title, role in roles.items() if role == "reference"]
    missed = (ratings.values[reference] < MIN_REFERENCE).mean(1)
    is_kept = missed <= MAX_MISSED
    excluded = {file: float(share) for file, share in zip(ratings.files, missed, strict=True) if share > MAX_MISSED}
    if not is_kept.any():
        raise InputError(
            f"ratings={', '.join(ratings.files)}: every listener rated the hidden reference below {MIN_REFERENCE} in "
            f"more than {100 * MAX_MISSED:.0f} % of the trials, so none is left; give the answers of more listeners"
        )
    values = {title: matrix[is_kept] for title, matrix in ratings.values.items()}
    weights = _draw_weights(int(is_kept.sum()), len(ratings.key.clips), resamples, seed)
    means = {title: _summarize(matrix, weights) for title, matrix in values.items()}
    models = [title for title, role in roles.items() if role == "model"]
    pairs = {}
    for first, second in combinations(models, 2):
        difference = values[first] - values[second]
        preferred = (difference > 0) + 0.5 * (difference == 0)
        pairs[first, second] = (_summarize(difference, weights), _summarize(preferred, weights))
    return ListeningResults(ratings, excluded, means, pairs)


def _draw_weights(L: int, C: int, R: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each listener [R, L] and each clip [R, C] is drawn, independently of each other, as shares."""
    rng = np.random.default_rng(seed)
    listeners, clips = (rng.multinomial(count, np.full(count, 1 / count), R) / count for count in (L, C))
    return listeners, clips


def _summarize(values: np.ndarray, weights: tuple[np.ndarray, np.ndarray]) -> MetricValue:
    """The mean of values [L, C] with its interval; the same draws for all, so that differences are of pairs."""
    listeners, clips = weights
    means = ((listeners @ values) * clips).sum(1)
    return MetricValue(mean=float(values.mean()), interval=np.quantile(means, [0.025, 0.975]).tolist(), n=values.size)


def _to_markdown(title: str, columns: Mapping[str, Sequence[str]]) -> str:
    headings, *rows = ([*map(_escape_cell, row)] for row in ([*columns], *zip(*columns.values(), strict=True)))
    return f"**{title}**\n\n{markdown_table(headings, rows)}"


def _escape_cell(text: str) -> str:
    """A text for Markdown: neither HTML, nor a column of a table, nor emphasis or a link."""
    escaped = str(escape(printable(text)))
    return "".join(f"\\{character}" if character in "\\|*_`[]" else character for character in escaped)
