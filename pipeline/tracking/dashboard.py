"""The W&B workspace of this project as code: its sections and panels. Needs wandb-workspaces."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import InputError, one_line

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

STEP, AUDIO_TABLE = "trainer/step", "val/audio"
_PANEL_WIDTHS = {1: 24, 2: 12, 3: 8}  # by panels in a row; a workspace has 24 columns


def save_workspace(entity: str | None, project: str, name: str, codebooks: int, update_url: str | None) -> str:
    """Create a workspace on W&B's server, or replace the panels of an existing one.

    Args:
        entity: A user or team; None for the user's default.
        project: The project of the runs.
        name: The name of the workspace.
        codebooks: The number of codebooks whose losses are shown.
        update_url: The address of an existing workspace.

    Returns:
        The address of the workspace.

    Raises:
        InputError: W&B cannot be reached, or refuses the workspace.
    """
    import wandb

    _require_library()
    from wandb_workspaces.workspaces import Workspace

    wandb.setup(settings=wandb.Settings(silent=True))
    try:
        if not wandb.login(prompt=False):
            raise InputError("there is no W&B key: `wandb login`, or WANDB_API_KEY, or dry_run=true")
        workspace = build_workspace(entity or str(wandb.Api().default_entity), project, name, codebooks)
        if update_url:
            existing = Workspace.from_url(update_url)
            existing.sections, existing.settings = workspace.sections, workspace.settings
            workspace = existing
        return str(workspace.save().url)
    except InputError:
        raise
    except Exception as error:  # W&B has many kinds, all with a clear message
        raise InputError(f"W&B refuses the workspace: {one_line(error)}") from error


def build_workspace(entity: str, project: str, name: str, codebooks: int) -> Workspace:
    """The workspace, in the classes of wandb-workspaces. Raises InputError if that is not installed."""
    _require_library()
    import wandb_workspaces.workspaces as ws

    sections = [_losses(codebooks), _patterns(), _audio(), _optimizer(), _speed()]
    settings = ws.WorkspaceSettings(x_axis=STEP, smoothing_type="none", remove_legends_from_panels=False)
    return ws.Workspace(entity=entity, project=project, name=name, sections=sections, settings=settings)


def _require_library() -> None:
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise InputError('the dashboard needs wandb-workspaces: pip install "wandb[workspaces]"')


def to_json(workspace: Workspace) -> dict[str, Any]:
    """The specification that is sent to W&B for a workspace."""
    return workspace._to_model().model_dump(by_alias=True, mode="json")


def _line(title: str, *names: str, columns: int = 3, row: int = 0, column: int = 0, **options: Any) -> Any:
    """A chart of metrics over steps, at position `column` of a row with `columns` charts."""
    import wandb_workspaces.reports.v2 as wr

    width = _PANEL_WIDTHS[columns]
    layout = wr.Layout(x=column * width, y=row * 6, w=width, h=6)
    return wr.LinePlot(title=title, y=list(names), layout=layout, **{"x": STEP, **options})


def _section(name: str, panels: list[Any]) -> Section:
    from wandb_workspaces.workspaces import Section

    return Section(name=name, panels=panels, is_open=True)


def _losses(codebooks: int) -> Section:
    codebook_numbers = range(1, codebooks + 1)
    return _section(
        "Loss (nats per code)",
        [
            _line("validation", "val/loss", columns=2),
            _line("training", "train/loss", columns=2, column=1, smoothing_type="exponential", smoothing_factor=0.8),
            _line("validation, each codebook", *[f"val/loss/codebook_{k}" for k in codebook_numbers], columns=2, row=1),
            _line(
                "training, each codebook",
                *[f"train/loss/codebook_{k}" for k in codebook_numbers],
                columns=2,
                row=1,
                column=1,
            ),
        ],
    )


def _patterns() -> Section:
    import wandb_workspaces.reports.v2 as wr

    by: dict[str, Any] = {"groupby": wr.Config("pattern"), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    layout = wr.Layout(x=16, y=0, w=8, h=6)
    best = wr.BarPlot(title="best validation loss", metrics=[wr.SummaryMetric("val/loss.min")], layout=layout, **by)
    return _section(
        "Comparison of patterns",
        [
            _line("training loss by clips seen", "train/loss", x="train/clips", **by),
            _line("validation loss by hours seen", "val/loss", x="train/hours", column=1, **by),
            best,
        ],
    )


def _audio() -> Section:
    import wandb_workspaces.reports.v2 as wr

    layout = wr.Layout(x=0, y=0, w=24, h=10)
    return _section("Audio samples", [wr.WeavePanelSummaryTable(table_name=AUDIO_TABLE, layout=layout)])


def _optimizer() -> Section:
    return _section(
        "Optimizer",
        [
            _line("learning rate", "train/lr"),
            _line("gradient norm", "train/grad_norm", column=1, log_y=True),
            _line("parameter norm", "train/parameter_norm", column=2),
            _line("skipped steps (loss or gradient not finite)", "train/skipped", row=1),
        ],
    )


def _speed() -> Section:
    return _section(
        "Speed and memory",
        [
            _line("clips per second", "speed/clips_per_second"),
            _line("codes per second and GPU", "speed/codes_per_second_per_gpu", column=1),
            _line("fraction of the GPU's peak (MFU)", "speed/mfu", column=2),
            _line("fraction of time waiting for data", "speed/data_wait", row=1),
            _line("GPU memory, GiB", "memory/gpu_gib", row=1, column=1),
            _line("host memory, GiB", "memory/host_gib", row=1, column=2),
        ],
    )
