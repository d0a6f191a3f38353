"""The table of a paper, in Markdown and in LaTeX: originals, the codec, each model, and the floor, by metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.audio.metrics import PITCH_TRACKER
from pipeline.common.errors import redact
from pipeline.evaluation.metrics import METRICS, Metric
from pipeline.evaluation.results import ORIGINALS, EvaluationResult, MetricValues
from pipeline.evaluation.tables import markdown_table

_LATEX = str.maketrans({
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\to$",
    "∞": r"$\infty$",
})  # fmt: skip


@dataclass(frozen=True)
class PaperTable:
    """A table.

    Attributes:
        caption: What was measured, on what, and how.
        metrics: The columns, by name of the metric.
        rows: The values by title of the row.
    """

    caption: str
    metrics: Mapping[str, Metric]
    rows: Mapping[str, MetricValues]

    def cells(self) -> list[list[str]]:
        """The texts: a row of headings, then a row for each set of sounds; without secrets."""
        headings = ["", *(metric.heading for metric in self.metrics.values())]
        return [headings, *([redact(title), *self._values(values)] for title, values in self.rows.items())]

    def to_markdown(self) -> str:
        """The table in Markdown, and the caption."""
        headings, *rows = [[text.replace("|", r"\|") for text in cells] for cells in self.cells()]
        return f"{markdown_table(headings, rows)}\n{self.caption}\n"

    def to_latex(self) -> str:
        """The table in LaTeX, for the package booktabs."""
        headings, *rows = [f"{' & '.join(map(escape_latex, cells))} \\\\" for cells in self.cells()]
        columns = "l" + "r" * len(self.metrics)
        start = [r"\begin{table}", r"\centering", f"\\caption{{{escape_latex(self.caption)}}}"]
        body = [f"\\begin{{tabular}}{{{columns}}}", r"\toprule", headings, r"\midrule", *rows, r"\bottomrule"]
        return "\n".join([*start, *body, r"\end{tabular}", r"\end{table}", ""])

    def _values(self, values: MetricValues) -> list[str]:
        return [metric.format(values.get(name)) for name, metric in self.metrics.items()]


def build_table(
    evaluations: Mapping[str, EvaluationResult], codecs: Mapping[str, str], shards: str, metrics: Sequence[str]
) -> PaperTable:
    """The table of runs that were evaluated on the same clips.

    Args:
        evaluations: The results by run.
        codecs: By run, its codec and codebooks: runs with the same have the same ceiling.
        shards: The dataset.
        metrics: The names of the columns; a metric that no row has is left out.

    Raises:
        InputError: There is no metric of a name.
    """
    first = next(iter(evaluations.values()))
    rows: dict[str, MetricValues] = {ORIGINALS: first.originals} if first.originals else {}
    for codec in dict.fromkeys(codecs.values()):
        run = next(run for run, each in codecs.items() if each == codec)
        rows[f"ceiling ({codec})"] = evaluations[run].ceiling
    for run, result in evaluations.items():
        rows |= {f"{run}, temperature {t}": values for t, values in result.temperatures.items()}
    rows["floor"] = first.floor
    chosen = {name: METRICS.get(name, "metrics")() for name in metrics}
    known = {name: metric for name, metric in chosen.items() if any(name in values for values in rows.values())}
    return PaperTable(_caption(first, redact(shards)), known, rows)


def escape_latex(text: str) -> str:
    """A text whose characters LaTeX prints as they are."""
    return text.translate(_LATEX)


def _caption(result: EvaluationResult, shards: str) -> str:
    settings, distance = result.settings, result.distance
    sentences = [
        f"{settings.n} clips of the split {settings.split} of {shards}",
        *([] if result.protocol is None else [f"Protocol {result.protocol.name}: {result.protocol}"]),
        "In brackets: 95 % intervals by bootstrap over clips",
        f"Embedder: {distance.embedding.name}; distances are to {distance.n} clips of the split",
        f"Pitch by {PITCH_TRACKER}",
        "↑ higher is better, ↓ lower is better",
    ]
    return ". ".join(sentences) + "."
