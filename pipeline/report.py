"""Write a report about a trained model: one HTML file that contains its sounds, for any browser, also offline.

  python -m pipeline.report run=quickstart/run
  python -m pipeline.report run=RUN shards=DIR n=10 corpus_root=data/nsynth prompts=[moo.wav,drill.mp3]

It repeats the article's studies on your own model: clips through the codec at each bit rate; generations at each
temperature; external prompts (prompts=); interpolations. It also plots the training curves, and the results of
`python -m pipeline.evaluate run=RUN shards=DIR` if they are from this export. Click a spectrogram to play it.

What people change: prompts=, corpus_root= (the corpus folder, for the original recordings), n=, temperatures=,
num_interpolations=, split=, seed=, out=.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from pipeline.config.cli import hydra_command


@hydra_command("report")
def main(cfg: DictConfig) -> None:
    """Write the report, and print where it is."""
    from pathlib import Path

    from omegaconf import OmegaConf
    from rich.console import Console

    from pipeline.common.files import check_output_file
    from pipeline.evaluation.report_builder import build_report

    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    out = Path(cfg.out)
    check_output_file("out", out)
    with Console(stderr=True).status("generating") as status:
        report = build_report(settings, status.update)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(report.html)
    for line in report.notes:
        print(line)
    print(f"{out}  {report.sounds} sounds, {len(report.html) / 1e6:.1f} MB: open it in any browser")


if __name__ == "__main__":
    main()
