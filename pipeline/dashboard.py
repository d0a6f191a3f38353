"""Create the W&B workspace for training runs: loss per codebook, comparison of patterns, speed, audio samples.

  python -m pipeline.dashboard entity=my-team                       create it in project codec-audio-lm
  python -m pipeline.dashboard update_url="https://..."             replace the panels of an existing workspace
  python -m pipeline.dashboard dry_run=true out=dashboard.json      write what would be sent, without a network or a key

The x axis is the optimizer step (trainer/step). Losses are also shown by clips and hours of audio, which compare runs
with different batch sizes. Needs wandb-workspaces: pip install "wandb[workspaces]"

Main settings: entity=, project=, name=, codebooks=, update_url=.
"""

from __future__ import annotations

from typing import ClassVar

from pipeline.common.files import check_output_file
from pipeline.common.setting_types import PositiveInt
from pipeline.common.settings import CommandSettings
from pipeline.config.cli import hydra_command


class DashboardSettings(CommandSettings):
    """The settings of this command."""

    command: ClassVar[str] = "dashboard"

    entity: str | None
    project: str
    name: str
    update_url: str | None
    codebooks: PositiveInt
    dry_run: bool
    out: str


@hydra_command(DashboardSettings)
def main(settings: DashboardSettings) -> None:
    """Save the workspace, or write its specification to a file."""
    import json
    from pathlib import Path

    from pipeline.tracking import dashboard

    if not settings.dry_run:
        print(
            dashboard.save_workspace(
                settings.entity, settings.project, settings.name, settings.codebooks, settings.update_url
            )
        )
        return
    check_output_file("out", settings.out)
    workspace = dashboard.build_workspace(
        settings.entity or "entity", settings.project, settings.name, settings.codebooks
    )
    Path(settings.out).write_text(json.dumps(dashboard.to_json(workspace), indent=1) + "\n")
    print(f"{settings.out}: {len(workspace.sections)} sections, nothing was sent")


if __name__ == "__main__":
    main()
