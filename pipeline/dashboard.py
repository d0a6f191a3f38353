"""Make the W&B workspace that shows what training logs: losses a codebook, patterns compared, speed, sounds.

  python -m pipeline.dashboard entity=my-team                       create it in project codec-audio-lm; its address
  python -m pipeline.dashboard update_url="https://..."             replace the panels of an existing one
  python -m pipeline.dashboard dry_run=true out=dashboard.json      write what would be sent, without a network or a key

Charts count in optimizer steps (trainer/step); those of the loss also in clips and in frames, which compare runs of
unequal batches. Needs wandb-workspaces: pip install "wandb[workspaces]"

People change: entity=, project=, name=, codebooks=, update_url=.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from pipeline.common.errors import InputError, one_line
from pipeline.common.files import check_output_file
from pipeline.common.settings import require_min
from pipeline.config.cli import hydra_command

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

STEP, SOUNDS = "trainer/step", "val/audio"
WIDTHS = {1: 24, 2: 12, 3: 8}  # of the 24 columns of a workspace


@hydra_command("dashboard")
def main(cfg: DictConfig) -> None:
    """Build the workspace; save it, or write it down."""
    import json
    from pathlib import Path

    require_min(1, cfg, "codebooks")
    if cfg.dry_run:
        check_output_file("out", cfg.out)
        made = workspace(cfg.entity or "entity", cfg.project, cfg.name, cfg.codebooks)
        Path(cfg.out).write_text(json.dumps(to_json(made), indent=1) + "\n")
        print(f"{cfg.out}: {len(made.sections)} sections, nothing was sent")
        return
    print(_save(cfg))


def _save(cfg: DictConfig) -> str:
    """Save the workspace; its address. Raises InputError where W&B cannot be reached, or refuses."""
    import wandb

    _need_library()
    from wandb_workspaces.workspaces import Workspace

    wandb.setup(settings=wandb.Settings(silent=True))
    try:
        if not wandb.login(prompt=False):
            raise InputError("there is no W&B key: `wandb login`, or WANDB_API_KEY, or dry_run=true")
        made = workspace(cfg.entity or str(wandb.Api().default_entity), cfg.project, cfg.name, cfg.codebooks)
        if cfg.update_url:
            old = Workspace.from_url(cfg.update_url)
            old.sections, old.settings = made.sections, made.settings
            made = old
        return str(made.save().url)
    except InputError:
        raise
    except Exception as error:  # of W&B's many kinds, all of which say what is wrong
        raise InputError(f"W&B refuses the workspace: {one_line(error)}") from error


def workspace(entity: str, project: str, name: str, codebooks: int) -> Workspace:
    """The workspace as W&B's own library describes it. Raises InputError where that is not installed."""
    _need_library()
    import wandb_workspaces.workspaces as ws

    sections = [_losses(codebooks), _patterns(), _sounds(), _optimizer(), _speed()]
    settings = ws.WorkspaceSettings(x_axis=STEP, smoothing_type="none", remove_legends_from_panels=False)
    return ws.Workspace(entity=entity, project=project, name=name, sections=sections, settings=settings)


def _need_library() -> None:
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise InputError('the dashboard needs wandb-workspaces: pip install "wandb[workspaces]"')


def to_json(made: Workspace) -> dict[str, Any]:
    """What would be sent for a workspace."""
    return made._to_model().model_dump(by_alias=True, mode="json")


def metrics(found: Any) -> set[str]:
    """The names of metrics that a specification reads: y and x axes, medias."""
    if isinstance(found, list):
        return set().union(*map(metrics, found))
    if not isinstance(found, dict):
        return set()
    names = set(found.get("metrics") or []) | set(found.get("mediaKeys") or [])
    names |= {found["xAxis"]} if isinstance(found.get("xAxis"), str) else set()
    return {name for name in names if isinstance(name, str)}.union(*map(metrics, found.values()))


def _line(title: str, *names: str, columns: int = 3, row: int = 0, place: int = 0, **options: Any) -> Any:
    """A chart of names over steps: the `place`-th of a row that holds `columns`."""
    import wandb_workspaces.reports.v2 as wr

    width = WIDTHS[columns]
    layout = wr.Layout(x=place * width, y=row * 6, w=width, h=6)
    return wr.LinePlot(title=title, y=list(names), layout=layout, **{"x": STEP, **options})


def _section(name: str, panels: list[Any]) -> Section:
    from wandb_workspaces.workspaces import Section

    return Section(name=name, panels=panels, is_open=True)


def _losses(codebooks: int) -> Section:
    each = range(1, codebooks + 1)
    return _section(
        "Loss, in nats a code",
        [
            _line("validation", "val/loss", columns=2),
            _line("training", "train/loss", columns=2, place=1, smoothing_type="exponential", smoothing_factor=0.8),
            _line("validation, each codebook", *[f"val/loss/codebook_{k}" for k in each], columns=2, row=1),
            _line("training, each codebook", *[f"train/loss/codebook_{k}" for k in each], columns=2, row=1, place=1),
        ],
    )


def _patterns() -> Section:
    import wandb_workspaces.reports.v2 as wr

    by: dict[str, Any] = {"groupby": wr.Config("pattern"), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    layout = wr.Layout(x=16, y=0, w=8, h=6)
    best = wr.BarPlot(title="best validation loss", metrics=[wr.SummaryMetric("val/loss.min")], layout=layout, **by)
    return _section(
        "Patterns compared",
        [
            _line("training loss by clips heard", "train/loss", x="train/clips", **by),
            _line("validation loss by hours heard", "val/loss", x="train/hours", place=1, **by),
            best,
        ],
    )


def _sounds() -> Section:
    import wandb_workspaces.reports.v2 as wr

    layout = wr.Layout(x=0, y=0, w=24, h=10)
    return _section("Sounds", [wr.WeavePanelSummaryTable(table_name=SOUNDS, layout=layout)])


def _optimizer() -> Section:
    return _section(
        "Optimizer",
        [
            _line("learning rate", "train/lr"),
            _line("gradient norm", "train/grad_norm", place=1, log_y=True),
            _line("parameter norm", "train/parameter_norm", place=2),
            _line("steps skipped, for a loss or gradient that is not finite", "train/skipped", row=1),
        ],
    )


def _speed() -> Section:
    return _section(
        "Speed and memory",
        [
            _line("clips a second", "speed/clips_per_second"),
            _line("codes a second and GPU", "speed/codes_per_second_per_gpu", place=1),
            _line("share of the GPU's peak (MFU)", "speed/mfu", place=2),
            _line("share of time waiting for data", "speed/data_wait", row=1),
            _line("GPU memory, GiB", "memory/gpu_gib", row=1, place=1),
            _line("host memory, GiB", "memory/host_gib", row=1, place=2),
        ],
    )


if __name__ == "__main__":
    main()
