"""The W&B workspace of this project as code: its sections and panels. Needs wandb-workspaces."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import InputError, one_line
from pipeline.tracking.wandb_run import AUDIO_TABLE, STEP

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

_COLUMNS = 24  # of a workspace


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
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    def by_codebook(loss: str) -> list[str]:
        return [f"{loss}/codebook_{k}" for k in range(1, codebooks + 1)]

    by: dict[str, Any] = {"groupby": wr.Config("pattern"), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    losses = [
        _line("validation", "val/loss"),
        _line("training", "train/loss", smoothing_type="exponential", smoothing_factor=0.8),
        _line("validation, each codebook", *by_codebook("val/loss")),
        _line("training, each codebook", *by_codebook("train/loss")),
    ]
    patterns = [
        _line("training loss by clips seen", "train/loss", x="train/clips", **by),
        _line("validation loss by hours seen", "val/loss", x="train/hours", **by),
        wr.BarPlot(title="best validation loss", metrics=[wr.SummaryMetric("val/loss.min")], **by),
    ]
    optimizer = [
        _line("learning rate", "train/lr"),
        _line("gradient norm", "train/grad_norm", log_y=True),
        _line("parameter norm", "train/parameter_norm"),
        _line("skipped steps (loss or gradient not finite)", "train/skipped"),
    ]
    speed = [
        _line("clips per second", "speed/clips_per_second"),
        _line("codes per second and GPU", "speed/codes_per_second_per_gpu"),
        _line("fraction of the GPU's peak (MFU)", "speed/mfu"),
        _line("fraction of time waiting for data", "speed/data_wait"),
        _line("GPU memory, GiB", "memory/gpu_gib"),
        _line("host memory, GiB", "memory/host_gib"),
    ]
    sections = [
        _section("Loss (nats per code)", losses, in_row=2),
        _section("Comparison of patterns", patterns),
        _section("Audio samples", [wr.WeavePanelSummaryTable(table_name=AUDIO_TABLE)], in_row=1, height=10),
        _section("Optimizer", optimizer),
        _section("Speed and memory", speed),
    ]
    settings = ws.WorkspaceSettings(x_axis=STEP, smoothing_type="none", remove_legends_from_panels=False)
    return ws.Workspace(entity=entity, project=project, name=name, sections=sections, settings=settings)


def to_json(workspace: Workspace) -> dict[str, Any]:
    """The specification that is sent to W&B for a workspace."""
    return workspace._to_model().model_dump(by_alias=True, mode="json")


def _require_library() -> None:
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise InputError('the dashboard needs wandb-workspaces: pip install "wandb[workspaces]"')


def _line(title: str, *names: str, **options: Any) -> Any:
    """A chart of metrics over steps."""
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(title=title, y=list(names), **{"x": STEP, **options})


def _section(name: str, panels: list[Any], in_row: int = 3, height: int = 6) -> Section:
    """A section with `in_row` panels side by side."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.workspaces import Section

    width = _COLUMNS // in_row
    for i, panel in enumerate(panels):
        panel.layout = wr.Layout(x=i % in_row * width, y=i // in_row * height, w=width, h=height)
    return Section(name=name, panels=panels, is_open=True)
