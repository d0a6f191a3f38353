"""One W&B run over all restarts of one run folder, opened without ever asking, and offline where there is no way in.

Every function here may take long or fail: `pipeline.tracking.background_worker` calls them, never the training loop.
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
from pipeline.data.storage import is_remote
from pipeline.tracking import wandb_artifacts, wandb_log, wandb_media
from pipeline.tracking.wandb_environment import mode_from_environment, prepare_folders

log = logging.getLogger(__name__)
SOURCES = ("pipeline/**/*.py", "conf/**/*.yaml", "jobs/*.sh", "jobs/*.sbatch")
SOUNDS = "val/audio"
_ALERT_AGAIN = timedelta(minutes=10)


class WandbRun:
    """An open W&B run."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Open the run of a run folder, for the first time or again. settings: as `conf/tracking/wandb.yaml`."""
        # `wandb sync` runs later and in another folder: what it uploads is kept in the run folder, by absolute paths
        self.folder, self.settings = folder.absolute(), redact_all(settings)
        prepare_folders(self.folder / "wandb")
        sys.argv[1:] = map(redact, sys.argv[1:])  # W&B stores the command line
        import wandb

        self.id = run_id(folder)
        self.told = wandb_log.last_logged_steps(folder, self.id)
        self.wandb = wandb
        wandb.setup(settings=wandb.Settings(silent=True))
        mode = _mode(mode_from_environment(settings))
        try:
            self.run = self._init(mode, name, config)
        except Exception as error:
            if mode == "offline":
                raise
            log.warning("W&B cannot be reached, so this run is kept offline: %.300s", one_line(error))
            self.run = self._init("offline", name, config)
        self.run.define_metric(wandb_log.STEP)
        self.run.define_metric("*", step_metric=wandb_log.STEP)
        self.run.define_metric("val/loss", step_metric=wandb_log.STEP, summary="min,last")
        if self.told:
            log.info("W&B goes on with run %s, told up to step %d already", self.id, max(self.told.values()))

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
            resume="allow" if self.told else None,  # only a restart appends: its lines then follow those before
            dir=str(self.folder),
            mode=mode,  # type: ignore[arg-type]
            config=flat(redact_all({key: value for key, value in config.items() if key != "tracking"})),
            settings=self.wandb.Settings(
                console="off",
                silent=True,
                init_timeout=s["timeout_seconds"],
                finish_timeout=s["timeout_seconds"],
                git_root=str(ROOT),
                git_remote_url=_git_remote(),
                x_transaction_log_flush_interval=2.0,  # seconds of rows that a dying node takes along
                x_file_stream_retry_max=1_000_000,  # outages of any length: the rest of training is sent when it ends
            ),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A row of metrics; what W&B has of this step or a later one already, before a crash, is not told again."""
        new = {name: value for name, value in metrics.items() if step > self.told.get(name, -1)}
        if new:
            self.run.log({wandb_log.STEP: step, **new})

    def log_audio(self, step: int, heard: Sequence[tuple[str, wandb_media.Sounds]], rate: int) -> None:
        """A table of sounds."""
        if step > self.told.get(SOUNDS, -1):
            self.run.log({wandb_log.STEP: step, SOUNDS: wandb_media.audio_table(heard, step, rate)})

    def alert(self, title: str, text: str) -> None:
        """A message to whoever follows the run, at most every ten minutes under one title."""
        self.run.alert(title, text, level="ERROR", wait_duration=_ALERT_AGAIN)

    def log_artifact(self, kind: str, place: str) -> None:
        """A cache, as the run's input; a checkpoint or an export, as its output: small files, and where the whole lies.

        A checkpoint's and an export's name is the run's, so that each new one is a version of the last. W&B uploads
        copies: by the time that an offline run is synced, the checkpoint may have been deleted.
        """
        if not is_remote(place):
            place = str(Path(place.removeprefix("file://")).absolute())
        metadata, files = wandb_artifacts.artifact_metadata(
            kind, place, self.folder / "wandb" / "data", self.settings["weights"]
        )
        shown = redact(place)
        name = f"{kind}-{_safe(Path(shown.partition('?')[0]).name) if kind == 'cache' else self.id}"
        metadata = redact_all({**metadata, "place": shown})
        made = self.wandb.Artifact(name, wandb_artifacts.KINDS[kind], metadata=metadata)
        for file in files:
            made.add_file(str(file), skip_cache=True)
        if not is_remote(place):
            made.add_reference(Path(place).as_uri(), name="place", checksum=False)
        aliases = ["latest", *([f"step-{metadata['step']}"] if "step" in metadata else [])]
        # `run.use_artifact` refuses to work offline and waits for the server online; this is what it does first
        self.run._log_artifact(made, aliases=aliases, is_user_created=True, use_after_commit=kind == "cache")

    def save_sources(self) -> None:
        """What tells later how this run came about: the sources that ran, and the log."""
        if (self.folder / "log.txt").exists():
            self.run.save(self.folder / "log.txt", base_path=self.folder, policy="live")
        if not self.settings["code"]:
            return
        sources = copy_sources(self.folder / "wandb" / "data")
        made = self.wandb.Artifact(f"code-{_safe(ROOT.name)}", "code")
        made.add_dir(str(sources), policy="immutable", skip_cache=True)
        self.run.config.update({"code.sha256": sources.name.removeprefix("code-")}, allow_val_change=True)
        self.run._log_artifact(made, is_user_created=True, use_after_commit=True)

    def close(self, code: int) -> None:
        """Upload the rest, within `tracking.timeout_seconds`. code: 75 is a run that will go on."""
        if code == EXIT_REQUEUE:
            self.run.mark_preempting()
        self.run.finish(exit_code=code)


def copy_sources(folder: Path) -> Path:
    """Copy this program's sources to `folder/code-SHA256`, once for each state of them: they may change before a sync.

    Site settings (`jobs/site.env`) are left out, which may hold keys.
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


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by the names that the command line knows them by: `pattern`, `optim.lr`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix[:-1] if prefix and name == "name" else f"{prefix}{name}"] = value
    return found


def run_id(folder: Path) -> str:
    """The W&B id of a run folder, made once: requeues go on in the same W&B run."""
    path = folder / "wandb_id"
    if not path.exists():
        write_atomic(path, secrets.token_hex(4) + "\n")
    return path.read_text().strip()


def kill_service() -> None:
    """End the process that W&B sends from at once: left alone, it outlives us, and holds on to our output."""
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                if b"wandb-core" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)

    def forget() -> None:
        with contextlib.suppress(Exception):  # that its process is gone; and W&B waits no more for it at exit
            import wandb

            wandb.teardown(1)

    last = threading.Thread(target=forget, daemon=True)
    last.start()
    last.join(5)


def _mode(asked: str) -> str:
    """Online where that is not forbidden, and there is a key that the server takes; nobody is asked for one."""
    import wandb

    if asked not in ("auto", "online"):
        return asked
    try:
        if wandb.login(prompt=False):
            return "online"
        reason = "there is no key (`wandb login`, or WANDB_API_KEY)"
    except Exception as error:
        reason = one_line(error)
    if asked == "online" or "no key" not in reason:
        log.warning("W&B cannot be reached, so this run is kept offline: %.300s", reason)
    return "offline"


def _git_remote() -> str | None:
    """Where this program was cloned from, without a token that the address may hold; None where git does not say."""
    command = ["git", "-C", str(ROOT), "config", "--get", "remote.origin.url"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return redact(found) or None


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-") or "unnamed"
