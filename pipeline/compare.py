"""Compare runs on the same clips: what they have learned, at what cost, and how fast they train and generate.

  python -m pipeline.train -m +exp=delay_gpt2,flatten_gpt2,parallel_gpt2,valle_gpt2 trainer.compute_budget_pflop=10000
  python -m pipeline.compare runs=[runs/delay_gpt2,runs/flatten_gpt2,runs/parallel_gpt2,runs/valle_gpt2] shards=DIR

One row per run and temperature: pattern, codec and codebooks (with a warning if the runs differ in these two),
validation loss in bits per second of audio, prompt fidelity, pitch (as in pipeline.evaluate, 95 % intervals in
brackets), compute spent in training, codes per second in training (from its log) and in generation (measured here).
Writes compare.json and compare.md.

What people change: n=, temperatures=, sampling.guidance=, out=, device=.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from pipeline.config.cli import hydra_command


@hydra_command("compare")
def main(cfg: DictConfig) -> None:
    """Compare, write the results, and print the table."""
    from pathlib import Path

    from omegaconf import OmegaConf
    from rich.console import Console

    from pipeline.common.files import check_output_folder
    from pipeline.evaluation.comparison import comparability_warning, compare, console_table, markdown_table
    from pipeline.evaluation.evaluation_output import write_json

    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    out = Path(cfg.out)
    check_output_folder("out", out)
    with Console(stderr=True).status("comparing") as status:
        comparison = compare(settings, status.update)
    write_json(out / "compare.json", {"rows": comparison.rows, "evaluations": comparison.evaluations})
    (out / "compare.md").write_text(markdown_table(comparison.rows))
    Console().print(console_table(comparison, cfg.split))
    if warning := comparability_warning(comparison.rows):
        print(f"warning: {warning}")
    print(f"written: {out}/compare.json, {out}/compare.md")


if __name__ == "__main__":
    main()
