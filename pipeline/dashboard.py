"""Create the W&B workspace for training runs: loss per codebook, comparison of patterns, speed, audio samples.

  python -m pipeline.dashboard entity=my-team                       create it in project codec-audio-lm
  python -m pipeline.dashboard update_url="https://..."             replace the panels of an existing workspace
  python -m pipeline.dashboard dry_run=true out=dashboard.json      write what would be sent, without a network or a key

The x axis is the optimizer step (trainer/step). Losses are also shown by clips and hours of audio, which compare runs
with different batch sizes. Needs wandb-workspaces: pip install "wandb[workspaces]"

Main settings: entity=, project=, name=, codebooks=, update_url=.
"""

from __future__ import annotations

from omegaconf import DictConfig

from pipeline.common.files import check_output_file
from pipeline.common.settings import require_min
from pipeline.config.cli import hydra_command


@hydra_command("dashboard")
def main(cfg: DictConfig) -> None:
    """Save the workspace, or write its specification to a file."""
    import json
    from pathlib import Path

    from pipeline.tracking import dashboard

    require_min(1, cfg, "codebooks")
    if not cfg.dry_run:
        print(dashboard.save_workspace(cfg.entity, cfg.project, cfg.name, cfg.codebooks, cfg.update_url))
        return
    check_output_file("out", cfg.out)
    workspace = dashboard.build_workspace(cfg.entity or "entity", cfg.project, cfg.name, cfg.codebooks)
    Path(cfg.out).write_text(json.dumps(dashboard.to_json(workspace), indent=1) + "\n")
    print(f"{cfg.out}: {len(workspace.sections)} sections, nothing was sent")


if __name__ == "__main__":
    main()
