"""Where metrics go: the run folder's `metrics.jsonl` always, Weights & Biases beside it where it is asked for.

Only the first rank tracks; the others hold a Tracker that does nothing, so callers need not ask.
"""

from __future__ import annotations

import json
import logging
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

log = logging.getLogger(__name__)
METRICS = "metrics.jsonl"


class Tracker:
    """Does nothing: the tracker of all ranks but the first."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers at a step."""

    def finish(self, code: int = 0) -> None:
        """Flush, and say whether the run went well (0)."""


class JsonLines(Tracker):
    """A row a logged step in `metrics.jsonl`."""

    def __init__(self, run: Path, step: int) -> None:
        """Open the file of a run that goes on at `step`: rows of later steps, lost in a crash, go."""
        path = run / METRICS
        rows = path.read_text().splitlines() if path.exists() else []
        kept = [row for row in rows if _step(row) <= step]
        if len(kept) != len(rows):
            path.write_text("".join(row + "\n" for row in kept))
        self._file = path.open("a", buffering=1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")

    def finish(self, code: int = 0) -> None:
        self._file.close()


class WandB(JsonLines):
    """The same rows to Weights & Biases as well, in one run over all restarts."""

    def __init__(self, run: Path, step: int, name: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        super().__init__(run, step)
        import wandb

        mode = settings["mode"]
        if mode == "auto":
            mode = "online" if _has_key() else "offline"
        self._run = wandb.init(
            project=settings["project"],
            entity=settings["entity"],
            name=name,
            id=_run_id(run),
            resume="allow",
            dir=str(run),
            mode=mode,
            config=dict(config),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("trainer/step")
        self._run.define_metric("*", step_metric="trainer/step")
        if mode == "offline":
            log.info("W&B is offline: `wandb sync %s` uploads the run later", self._run.dir.removesuffix("/files"))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        super().log(step, metrics)
        self._run.log({"trainer/step": step, **metrics})

    def finish(self, code: int = 0) -> None:
        super().finish(code)
        self._run.finish(exit_code=code)


def start(run: Path, step: int, name: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> Tracker:
    """The tracker that `conf/tracking` asks for, of a run that goes on at `step`."""
    return JsonLines(run, step) if settings["name"] == "none" else WandB(run, step, name, config, settings)


def _has_key() -> bool:
    """Whether W&B would find a key without asking: in the environment, or where `wandb login` writes it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _run_id(run: Path) -> str:
    """The W&B id of a run folder, made once: requeues go on in the same W&B run."""
    import wandb

    path = run / "wandb_id"
    if not path.exists():
        path.write_text(wandb.util.generate_id() + "\n")
    return path.read_text().strip()


def _step(row: str) -> int:
    """The step of a row; a row torn by a crash counts as lost."""
    try:
        return int(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**62
