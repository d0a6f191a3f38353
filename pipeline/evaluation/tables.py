"""Tables of evaluation results on the terminal, at most `WIDTH` columns wide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from pipeline.evaluation.metrics import list_metrics
from pipeline.evaluation.results import EvaluationResult, LossResults

WIDTH = 80
MAX_COLUMN = 24  # longer headings are folded
Column = tuple[str, Sequence[str]]  # a heading and its cells


def print_evaluation(console: Console, result: EvaluationResult) -> None:
    """Print the losses and all metrics."""
    clips, rows = result.settings.n, result.rows()
    labels, columns = loss_columns(result.loss)
    print_table(console, f"loss over {result.loss.clips} clips", labels, columns)
    metrics = {name: metric for name, metric in list_metrics().items() if name in result.ceiling}
    columns = [
        (metric.heading, [metric.format(values.get(name)) for values in rows.values()])
        for name, metric in metrics.items()
    ]
    print_table(console, f"generated from the prompts of {clips} clips", [*rows], columns)
    for analysis in result.analyses.values():
        print_table(console, analysis.title, [*analysis.rows], [*analysis.columns().items()])
        console.print("\n".join([analysis.text, *analysis.notes]), highlight=False, markup=False)
    if result.protocol is not None:
        console.print(f"protocol: {result.protocol}", highlight=False, markup=False)
    console.print(
        f"in brackets: 95 % intervals over {clips} clips; ↑ higher is better, ↓ lower is better\n"
        f"embeddings: {result.distance.embedding.name}; distances: to {result.distance.n} clips of the dataset",
        highlight=False,
    )


def loss_columns(losses: LossResults) -> tuple[list[str], list[Column]]:
    """The labels of the rows, and a column for each loss."""
    codebooks = range(1, len(losses.model.nats_codebook) + 1)
    labels = ["nats per code", *(f"  codebook {number}" for number in codebooks), "bits per second"]
    columns: list[Column] = [
        (name, [f"{loss.nats:.3f}", *(f"{nats:.3f}" for nats in loss.nats_codebook), f"{loss.bits_second:.0f}"])
        for name, loss in losses.rows().items()
    ]
    return labels, columns


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown. Cells are inserted as they are."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (headings, ["---"] * len(headings), *rows))


def print_table(console: Console, title: str, labels: Sequence[str], columns: Sequence[Column]) -> None:
    """Print a table without the rows that have no values; as several tables where one would be wider than `WIDTH`.

    Args:
        console: Where it is printed.
        title: The title.
        labels: The first column.
        columns: The other columns.
    """
    parts: list[list[Column]] = []
    room = 0
    for heading, cells in columns:
        width = min(max(map(len, (heading, *cells))), MAX_COLUMN) + 3  # with a space on both sides and a line
        if width > room:
            parts.append([])
            room = WIDTH - max(map(len, labels)) - 4
        parts[-1].append((heading, cells))
        room -= width
    for part in parts:
        table = Table(title=title if part is parts[0] else None, title_justify="left")
        table.add_column("")
        for heading, _ in part:
            table.add_column(heading, justify="right", overflow="fold", max_width=MAX_COLUMN)
        for label, *cells in zip(labels, *(cells for _, cells in part), strict=True):
            if {*cells} != {"-"}:
                table.add_row(label, *cells)
        console.print(table)
