"""Compare runs on the same clips: what they have learned, what it took, how fast they train and play.

  python -m pipeline.train -m +exp=delay_gpt2,flatten_gpt2,parallel_gpt2,valle_gpt2 trainer.compute_budget_pflop=10000
  python -m pipeline.compare runs=[runs/delay_gpt2,runs/flatten_gpt2,runs/parallel_gpt2,runs/valle_gpt2] shards=DIR

A row a run and temperature: pattern, codec and codebooks (with a warning where the runs differ in these two),
validation loss in bits a second of audio, prompt fidelity, pitch (figures as in pipeline.evaluate, 95 % intervals in
brackets), arithmetic spent in training, codes a second in training (as its log has it) and in generation (measured
here). Writes compare.json and compare.md.

What people change: n=, temperatures=, sampling.guidance=, out=, device=.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from pipeline.common.files import check_output_folder
from pipeline.config.cli import hydra_command


@hydra_command("compare")
def main(cfg: DictConfig) -> None:
    """Compare, write, and print the table."""
    from pathlib import Path

    from omegaconf import OmegaConf
    from rich.console import Console
    from rich.table import Table

    from pipeline.evaluation.comparison import COLUMNS, comparability_warning, compare, format_row, markdown_table
    from pipeline.evaluation.evaluator import write_json

    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    out = Path(cfg.out)
    check_output_folder("out", out)
    with Console(stderr=True).status("comparing") as status:
        found = compare(settings, status.update)
    write_json(out / "compare.json", {"rows": found.rows, "evaluations": found.evaluations})
    (out / "compare.md").write_text(markdown_table(found.rows))
    runs, clips = (
        len(found.evaluations),
        next(iter(found.evaluations.values()))["settings"]["n"],
    )  # n=, or all that the split has
    title = f"{runs} run{'s' * (runs > 1)}, {clips} clip{'s' * (clips > 1)} of {cfg.split}"
    table = Table(title=title, title_justify="left", show_header=False)
    for line in zip(
        COLUMNS.values(), *map(format_row, found.rows), strict=True
    ):  # a column a run: a terminal is narrow
        table.add_row(*line)
    Console().print(table)
    if note := comparability_warning(found.rows):
        print(f"warning: {note}")
    print(f"written: {out}/compare.json, {out}/compare.md")


if __name__ == "__main__":
    main()
