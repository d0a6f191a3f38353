"""Measure a trained model on clips that it has not seen, and write what it makes of their prompts.

  python -m pipeline.evaluate run=quickstart/run shards=quickstart/shards
  python -m pipeline.evaluate run=RUN shards=DIR n=256 temperatures=[0.5,0.7,0.9] sampling.guidance=2 split=test

Prints and writes to RUN/evaluation/evaluate.json:
  loss              nats a code and bits a second over all validation clips, beside codebook histograms of the training
                    clips (unigram) and ln 1024 (uniform)
  prompt fidelity   cosine of a prompt and the embedding of what was made from it. Ceiling: the codec's reconstruction
                    of the prompt's own clip; floor: other clips' reconstructions
  pitch             share of notes within half a semitone of the clip's label; pitch class: octaves aside. Ceiling: the
                    codec's reconstruction; floor: other clips' labels
  Fréchet distance  between the embeddings of n generations and of all validation clips: smaller is nearer. It falls
                    with n and depends on the embedding: compare it with the ceiling, not with other papers
  different sounds  Vendi score of the embeddings: n if all sounds differ, 1 if all are the same
  falls silent      share whose last quarter is silent where the clip's is not
  loops             share whose last half repeats with one period in all codebooks (steady tones do so by themselves:
                    see the ceiling)
Brackets hold 95 % intervals by bootstrap over clips. RUN/evaluation/ has the wavs: {clip}.codec.wav is the codec's
reconstruction, {clip}.t0.7.wav a generation at temperature 0.7. `python -m pipeline.report run=RUN` makes a page of it.

What people change: n=, temperatures=, sampling.guidance=, split=, out=, seed=, wandb=true, device=.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from pipeline.common.files import check_output_folder
from pipeline.config.cli import hydra_command


@hydra_command("evaluate")
def main(cfg: DictConfig) -> None:
    """Measure, write, and print the figures."""
    from pathlib import Path

    from omegaconf import OmegaConf
    from rich.console import Console

    from pipeline.evaluation import tables
    from pipeline.evaluation.evaluator import evaluate, write_evaluation
    from pipeline.evaluation.wandb_upload import upload_evaluation
    from pipeline.generation.loaded_run import load_run

    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    out = Path(cfg.out)
    check_output_folder("out", out)
    instrument = load_run(cfg.run, cfg.device, cfg.codec_weights, cfg.embedder_weights)
    with Console(stderr=True).status("measuring") as status:
        found = evaluate(settings, instrument, status.update)
    write_evaluation(found, out, instrument.codec.sample_rate)
    if cfg.wandb:
        upload_evaluation(Path(cfg.run), found, instrument.codec.sample_rate)
    tables.print_evaluation(found.results, out)


if __name__ == "__main__":
    main()
