"""Make a page to listen to a trained model: one HTML file with its sounds inside, which any browser plays offline.

  python -m pipeline.report run=quickstart/run
  python -m pipeline.report run=RUN shards=DIR n=10 corpus_root=data/nsynth prompts=[moo.wav,drill.mp3]

It repeats the article's studies on your own model: clips through the codec at each bit rate; generations at each
temperature; prompts from elsewhere (prompts=); interpolations. With figures as plots: training's curves, and those of
`python -m pipeline.evaluate run=RUN shards=DIR` where that has been run on this very export. Press a spectrogram to
hear it.

What people change: prompts=, corpus_root= (the corpus' folder, for the recordings themselves), n=, temperatures=,
num_interpolations=, split=, seed=, out=.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from pipeline.common.files import check_output_file
from pipeline.common.settings import format_override
from pipeline.config.cli import hydra_command


@hydra_command("report")
def main(cfg: DictConfig) -> None:
    """Make the page, and print where it is."""
    import shlex
    from pathlib import Path

    from omegaconf import OmegaConf
    from rich.console import Console

    from pipeline.common.errors import redact
    from pipeline.common.metrics_file import read_metrics
    from pipeline.evaluation import run_folder
    from pipeline.evaluation.report_html import render_report
    from pipeline.evaluation.report_sections import build_sections
    from pipeline.generation.loaded_run import load_run

    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    run, out = Path(cfg.run), Path(cfg.out)
    check_output_file("out", out)
    if settings["shards"] == "auto":
        settings["shards"] = run_folder.training_shards(run)
    instrument = load_run(run, cfg.device, cfg.codec_weights, cfg.embedder_weights)
    with Console(stderr=True).status("listening") as status:
        found = build_sections(settings, instrument, status.update)
    words = (format_override("run", run), format_override("shards", redact(settings["shards"])))
    command = shlex.join(["python", "-m", "pipeline.evaluate", *words])
    told, hint = run_folder.read_evaluation(Path(cfg.evaluation)), f"More figures come from: {command}"
    if told and told["export"]["sha256"] != instrument.sha256:
        told, hint = None, f"The figures in {cfg.evaluation} are of another export, and left out; anew: {command}"
        print(hint)
    facts = run_folder.run_facts(instrument, settings)
    text = render_report(run.name, facts, found, instrument.codec.sample_rate, read_metrics(run), told, hint)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    sounds = sum(len(row.sounds) for study in found for row in study.rows)
    print(f"{out}  {sounds} sounds, {len(text) / 1e6:.1f} MB: open it in any browser")


if __name__ == "__main__":
    main()
