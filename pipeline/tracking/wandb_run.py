"""One W&B run for all restarts of a run folder. It never asks for input, and is offline without a key or a network.

All functions here may be slow or fail: `pipeline.tracking.background_worker` calls them, never the training loop.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline.common.errors import one_line, redact, redact_all
from pipeline.common.exit_codes import EXIT_REQUEUE
from pipeline.common.files import write_atomic
from pipeline.common.paths import ROOT
from pipeline.common.settings import flatten_settings
from pipeline.data.storage import is_remote
from pipeline.tracking import wandb_artifacts, wandb_log, wandb_media
from pipeline.tracking.wandb_environment import mode_from_environment, prepare_folders

log = logging.getLogger(__name__)
SOURCES = ("pipeline/**/*.py", "conf/**/*.yaml", "jobs/*.sh", "jobs/*.sbatch")
AUDIO_TABLE = "val/audio"
_ALERT_INTERVAL = timedelta(minutes=10)


class WandbRun:
    """An open W&B run."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Start or resume the W&B run of a run folder. settings: those of `conf/tracking/wandb.yaml`."""
        # `wandb sync` runs later and elsewhere: what it uploads is in the run folder, by absolute paths
        self.folder, self.settings = folder.absolute(), redact_all(settings)
        prepare_folders(self.folder / "wandb")
        sys.argv[1:] = map(redact, sys.argv[1:])  # W&B stores the command line
        import wandb

        self.id = run_id(folder)
        self.last_steps = wandb_log.last_logged_steps(folder, self.id)
        self.wandb = wandb
        wandb.setup(settings=wandb.Settings(silent=True))
        mode = _resolve_mode(mode_from_environment(settings))
        try:
            self.run = self._init(mode, name, config)
        except Exception as error:
            if mode == "offline":
                raise
            log.warning("W&B cannot be reached, so this run is stored offline: %.300s", one_line(error))
            self.run = self._init("offline", name, config)
        self.run.define_metric(wandb_log.STEP)
        self.run.define_metric("*", step_metric=wandb_log.STEP)
        self.run.define_metric("val/loss", step_metric=wandb_log.STEP, summary="min,last")
        if self.last_steps:
            log.info("W&B resumes run %s, logged up to step %d", self.id, max(self.last_steps.values()))

    def _init(self, mode: str, name: str, config: Mapping[str, Any]) -> Any:
        s = self.settings
        return self.wandb.init(
            project=s["project"],
            entity=s["entity"],
            name=s["title"] or self.folder.name,
            group=s["group"] or name,
            tags=list(s["tags"]),
            notes=s["notes"],
            job_type="train",
            id=self.id,
            resume="allow" if self.last_steps else None,  # only a restart appends to existing rows
            dir=str(self.folder),
            mode=mode,  # type: ignore[arg-type]
            config=_wandb_config({key: value for key, value in config.items() if key != "tracking"}),
            settings=self.wandb.Settings(
                console="off",
                silent=True,
                init_timeout=s["timeout_seconds"],
                finish_timeout=s["timeout_seconds"],
                git_root=str(ROOT),
                git_remote_url=_git_remote(),
                x_transaction_log_flush_interval=2.0,  # seconds of rows that are lost when a node dies
                x_file_stream_retry_max=1_000_000,  # outages of any length
            ),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log a row, without the metrics that were logged for this step before a crash."""
        new = {name: value for name, value in metrics.items() if step > self.last_steps.get(name, -1)}
        if new:
            self.run.log({wandb_log.STEP: step, **new})

    def log_audio(self, step: int, clips: Sequence[wandb_media.NamedAudio], rate: int) -> None:
        """Log a table of audio."""
        if step > self.last_steps.get(AUDIO_TABLE, -1):
            self.run.log({wandb_log.STEP: step, AUDIO_TABLE: wandb_media.audio_table(clips, step, rate)})

    def alert(self, title: str, text: str) -> None:
        """Send an alert, at most one every ten minutes for each title."""
        self.run.alert(title, text, level="ERROR", wait_duration=_ALERT_INTERVAL)

    def log_artifact(self, kind: str, path: str) -> None:
        """Log a dataset as an input, or a checkpoint or export as an output: small files, and the path of the rest.

        Checkpoints and exports are named after the run, so that each is a new version of the one before. W&B uploads
        copies, because a checkpoint may be deleted before an offline run is synced.
        """
        if not is_remote(path):
            path = str(Path(path.removeprefix("file://")).absolute())
        metadata, files = wandb_artifacts.artifact_metadata(
            kind, path, self.folder / "wandb" / "data", self.settings["weights"]
        )
        address = redact(path)
        name = f"{kind}-{_artifact_name(Path(address.partition('?')[0]).name) if kind == 'cache' else self.id}"
        metadata = redact_all({**metadata, "path": address})
        artifact = self.wandb.Artifact(name, wandb_artifacts.KINDS[kind], metadata=metadata)
        for file in files:
            artifact.add_file(str(file), skip_cache=True)
        if not is_remote(path):
            artifact.add_reference(Path(path).as_uri(), name="path", checksum=False)
        aliases = ["latest", *([f"step-{metadata['step']}"] if "step" in metadata else [])]
        # `run.use_artifact` does not work offline, and waits for the server online; it calls this first
        self.run._log_artifact(artifact, aliases=aliases, is_user_created=True, use_after_commit=kind == "cache")

    def save_sources(self) -> None:
        """Upload the source code of this program and the log of the run."""
        if (self.folder / "log.txt").exists():
            self.run.save(self.folder / "log.txt", base_path=self.folder, policy="live")
        if not self.settings["code"]:
            return
        sources = copy_sources(self.folder / "wandb" / "data")
        artifact = self.wandb.Artifact(f"code-{_artifact_name(ROOT.name)}", "code")
        artifact.add_dir(str(sources), policy="immutable", skip_cache=True)
        self.run.config.update({"code.sha256": sources.name.removeprefix("code-")}, allow_val_change=True)
        self.run._log_artifact(artifact, is_user_created=True, use_after_commit=True)

    def close(self, code: int) -> None:
        """Upload the rest. code: the exit code; EXIT_REQUEUE is a run that will be resumed."""
        if code == EXIT_REQUEUE:
            self.run.mark_preempting()
        self.run.finish(exit_code=code)


def copy_sources(folder: Path) -> Path:
    """Copy the source code to `folder/code-SHA256`, once for each version: it may change before a sync.

    Site settings (`jobs/site.env`) are left out, because they may contain keys.
    """
    files = sorted(file for pattern in SOURCES for file in ROOT.glob(pattern) if file.is_file())
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    target, partial = folder / f"code-{digest}", folder / f"code-{digest}.partial"
    if not target.exists():
        shutil.rmtree(partial, ignore_errors=True)
        for file in files:
            copy = partial / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        partial.replace(target)
    return target


def _wandb_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their names on the command line, without secrets: `pattern` for `pattern.name`, `optim.lr`."""
    return {name.removesuffix(".name"): value for name, value in flatten_settings(redact_all(config)).items()}


def run_id(folder: Path) -> str:
    """The W&B id of a run folder, created once: requeued jobs resume the same W&B run."""
    path = folder / "wandb_id"
    if not path.exists():
        write_atomic(path, secrets.token_hex(4) + "\n")
    return path.read_text().strip()


def kill_service() -> None:
    """Kill W&B's service process, which otherwise outlives this process and keeps its output open."""
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                if b"wandb-core" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)

    def teardown() -> None:
        with contextlib.suppress(Exception):  # its process is gone; afterwards W&B does not wait for it at exit
            import wandb

            wandb.teardown(1)

    thread = threading.Thread(target=teardown, daemon=True)
    thread.start()
    thread.join(5)


def _resolve_mode(mode: str) -> str:
    """The mode of a run. "auto" and "online" become "offline" without a valid key; it never asks for one."""
    import wandb

    if mode not in ("auto", "online"):
        return mode
    try:
        if wandb.login(prompt=False):
            return "online"
        reason = "there is no key (`wandb login`, or WANDB_API_KEY)"
    except Exception as error:
        reason = one_line(error)
    if mode == "online" or "no key" not in reason:
        log.warning("W&B cannot be reached, so this run is stored offline: %.300s", reason)
    return "offline"


def _git_remote() -> str | None:
    """The address that this program was cloned from, without secrets; None where git does not know it."""
    command = ["git", "-C", str(ROOT), "config", "--get", "remote.origin.url"]
    try:
        address = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return redact(address) or None


def _artifact_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-") or "unnamed"
