"""Compare runs on the same clips: what they have learned, at what cost, and how fast they train and generate.

  python -m pipeline.train -m +exp=delay_gpt2,flatten_gpt2,parallel_gpt2,valle_gpt2 trainer.compute_budget_pflop=10000
  python -m pipeline.compare runs=[runs/delay_gpt2,runs/flatten_gpt2,runs/parallel_gpt2,runs/valle_gpt2] shards=DIR

One row per run and temperature: pattern, codec and codebooks (with a warning if the runs differ in these two),
validation loss in bits per second of audio, the metrics of pipeline.evaluate (95 % intervals in brackets), compute
spent in training, codes per second in training (from its log) and in generation (measured here).
Writes compare.json and compare.md; and table.md and table.tex, the table of a paper: the original recordings
(corpus_root=), the codec, each run and the floor, with a caption that names the clips, the protocol, and the embedder.

  python -m pipeline.compare 'ratings=listening-test-*.json'

compares models by the answers of listeners to a test of pipeline.report instead: mean ratings, and how often one model
is preferred to another, with 95 % intervals over listeners and clips. Listeners who rate the hidden reference below 90
in more than 15 % of the trials are excluded, as in ITU-R BS.1534.

What people change: n=, protocol=, corpus_root=, metrics=, temperatures=, sampling.guidance=, out=, device=.
"""

from __future__ import annotations

from pipeline.config.cli import hydra_command
from pipeline.evaluation.settings import CompareSettings


@hydra_command(CompareSettings)
def main(settings: CompareSettings) -> None:
    """Compare, write the results, and print the table."""
    from pathlib import Path

    from rich.console import Console

    from pipeline.common.files import check_output_folder
    from pipeline.common.settings import format_command
    from pipeline.evaluation.comparison import Comparison, compare
    from pipeline.evaluation.listening.results import ListeningResults, compare_ratings
    from pipeline.evaluation.results import write_results

    out = Path(settings.out)
    check_output_folder("out", out)
    results: Comparison | ListeningResults
    with Console(stderr=True).status("comparing") as status:
        results = compare_ratings(settings) if settings.ratings else compare(settings, status.update)
    write_results(out / "compare.json", results.to_dict())
    (out / "compare.md").write_text(results.to_markdown())
    results.print(Console())
    for note in results.notes:
        print(note)
    if not isinstance(results, Comparison):
        print(f"written: {out}/compare.json, {out}/compare.md")
        return
    (out / "table.md").write_text(results.table.to_markdown())
    (out / "table.tex").write_text(results.table.to_latex())
    print(f"written: {out}/compare.json, {out}/compare.md; for a paper: {out}/table.md, {out}/table.tex")
    print(f"next: {format_command('report', run=results.best_run, shards=settings.shards)}")


if __name__ == "__main__":
    main()
