"""One W&B run for all restarts of a run folder, by W&B's public API. It never asks for input.

All functions here may be slow or fail: `pipeline.tracking.background_worker` calls them, never the training loop.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.audio.spectrogram import spectrogram
from pipeline.common.errors import one_line, redact, redact_all
from pipeline.common.exit_codes import EXIT_REQUEUE
from pipeline.common.files import write_atomic
from pipeline.common.paths import CONF, PACKAGE, ROOT
from pipeline.common.settings import flatten_settings
from pipeline.data.manifest import Manifest
from pipeline.data.storage import is_remote
from pipeline.tracking.base import NamedAudio, TrackedRun

if TYPE_CHECKING:
    import wandb

    from pipeline.tracking.trackers.wandb import WandbSettings

log = logging.getLogger(__name__)
STEP, AUDIO_TABLE = "trainer/step", "val/audio"
_ALERT_INTERVAL = timedelta(minutes=10)
_OUTPUTS = {"checkpoint": ("checkpoint", "complete.json"), "export": ("model", "config.json")}  # type, metadata


class WandbRun:
    """An open W&B run."""

    def __init__(self, settings: WandbSettings, run: TrackedRun) -> None:
        """Start or resume the W&B run of a run folder; offline without a key or a network."""
        self.folder, self.settings = run.folder.absolute(), settings
        prepare_folders(self.folder / "wandb")
        sys.argv[1:] = map(redact, sys.argv[1:])  # W&B stores the command line
        import wandb

        self.id = run_id(self.folder)
        self._logged_file = self.folder / "wandb" / "logged_steps.json"
        self._logged_steps: dict[str, int] = {}  # the last step of each metric that W&B has
        if self._logged_file.is_file():
            self._logged_steps = json.loads(self._logged_file.read_text())
        wandb.setup(settings=wandb.Settings(silent=True))
        mode = _resolve_mode(settings.current_mode())
        try:
            self.run = self._init(mode, run)
        except Exception as error:
            if mode == "offline":
                raise
            log.warning("W&B cannot be reached, so this run is stored offline: %.300s", one_line(error))
            self.run = self._init("offline", run)
        self.run.define_metric(STEP)
        self.run.define_metric("*", step_metric=STEP)
        self.run.define_metric("val/loss", step_metric=STEP, summary="min,last")
        if self._logged_steps:
            log.info("W&B resumes run %s, logged up to step %d", self.id, max(self._logged_steps.values()))

    def _init(self, mode: Any, run: TrackedRun) -> wandb.Run:
        import wandb

        s = self.settings
        names: dict[str, Any] = {
            "project": s.project, "entity": s.entity, "name": s.title or self.folder.name, "group": s.group or run.name,
            "tags": s.tags, "notes": s.notes,
        }  # fmt: skip
        options = wandb.Settings(
            console="off",
            silent=True,
            init_timeout=s.timeout_seconds,
            git_root=str(ROOT),
            git_remote_url=_git_remote(),
        )
        config = _wandb_config({key: value for key, value in run.config.items() if key != "tracking"})
        # the first start does not append: its rows replace themselves if an offline run is synced again
        return wandb.init(
            **redact_all(names), id=self.id, resume="allow" if self._logged_steps else None, job_type="train",
            dir=str(self.folder), mode=mode, config=config, settings=options,
        )  # fmt: skip

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Log a row, without the metrics that an earlier start logged up to a later step."""
        new = {name: value for name, value in metrics.items() if step > self._logged_steps.get(name, -1)}
        if new:
            self.run.log({STEP: step, **new})
            self._logged_steps |= dict.fromkeys(new, step)
            write_atomic(self._logged_file, json.dumps(self._logged_steps))

    def log_audio(self, step: int, clips: Sequence[NamedAudio], rate: int) -> None:
        """Log a table of audio."""
        self.log(step, {AUDIO_TABLE: _audio_table(clips, step, rate)})

    def alert(self, title: str, text: str) -> None:
        """Send an alert, at most one every ten minutes for each title."""
        self.run.alert(title, text, level="ERROR", wait_duration=_ALERT_INTERVAL)

    def log_artifact(self, kind: str, path: str) -> None:
        """Log a checkpoint or export as an artifact: small files, and the path of the rest. A dataset is in the config.

        W&B's input artifacts do not work offline, and wait for the server online.
        """
        import wandb

        if kind == "cache":
            name, metadata = _describe_dataset(path)
            self.run.config.update({f"dataset.{name}": metadata}, allow_val_change=True)
            return
        folder = Path(path).absolute()
        artifact_type, file = _OUTPUTS[kind]
        metadata = {**_without_long_lists(json.loads((folder / file).read_text())), "path": str(folder)}
        # named after the run, so that each is a new version of the one before
        artifact = wandb.Artifact(f"{kind}-{self.id}", artifact_type, metadata=redact_all(metadata))
        weights = sorted(folder.glob("*.safetensors")) if kind == "export" and self.settings.weights else []
        for item in (folder / file, *weights):
            artifact.add_file(str(item), skip_cache=True)
        artifact.add_reference(folder.as_uri(), name="path", checksum=False)
        step = [f"step-{metadata['step']}"] if "step" in metadata else []
        self.run.log_artifact(artifact, aliases=["latest", *step])

    def save_sources(self) -> None:
        """Upload the source code of this program and the log of the run."""
        import wandb

        if (self.folder / "log.txt").exists():
            self.run.save(self.folder / "log.txt", base_path=self.folder, policy="live")
        if not self.settings.code:
            return
        digest = hashlib.sha256(b"".join(file.read_bytes() for _, file in source_files())).hexdigest()[:12]
        self.run.config.update({"code.sha256": digest}, allow_val_change=True)
        logged = self.folder / "wandb" / f"code-{digest}"  # a mark: each version of the code is logged once
        if not logged.exists():
            artifact = wandb.Artifact("code-codec-audio-lm", "code")
            for name, file in source_files():
                artifact.add_file(str(file), name=name, skip_cache=True)
            self.run.log_artifact(artifact)
            logged.touch()

    def close(self, code: int) -> None:
        """Upload the rest. code: the exit code; EXIT_REQUEUE is a run that will be resumed."""
        if code == EXIT_REQUEUE:
            self.run.mark_preempting()
        self.run.finish(exit_code=code)


def stop_service() -> None:
    """Stop W&B's service process, for which this process otherwise waits when it exits."""

    def teardown() -> None:
        with contextlib.suppress(Exception):  # there is none, or it is gone; afterwards W&B does not wait at exit
            import wandb

            wandb.teardown(1)

    thread = threading.Thread(target=teardown, daemon=True)
    thread.start()
    thread.join(5)


def run_id(folder: Path) -> str:
    """The W&B id of a run folder, created once: requeued jobs resume the same W&B run."""
    path = folder / "wandb_id"
    if not path.exists():
        write_atomic(path, secrets.token_hex(4) + "\n")
    return path.read_text().strip()


def prepare_folders(folder: Path) -> None:
    """Let W&B keep data that waits for a sync in `folder`, and its other files where the home folder is not writable.

    The home folder of an unknown user in a container is `/`, or there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["WANDB_DATA_DIR"] = str(folder / "data")
    try:
        home = Path.home()
    except RuntimeError:  # a user without a name or HOME; W&B does not start without a home
        home = folder
        os.environ["HOME"] = str(home)
    if not (home.is_dir() and os.access(home, os.W_OK)):
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "cache"))
        os.environ.setdefault("WANDB_CONFIG_DIR", str(folder / "config"))


def source_files() -> Iterator[tuple[str, Path]]:
    """The source files of this program with their names, without site settings, which may contain keys."""
    folders = [("pipeline", PACKAGE, "**/*.py"), ("conf", CONF, "**/*.yaml")]
    if not CONF.is_relative_to(PACKAGE):  # in a clone
        folders += [("jobs", ROOT / "jobs", "*.sh"), ("jobs", ROOT / "jobs", "*.sbatch")]
    for name, folder, pattern in folders:
        for file in sorted(folder.glob(pattern)):
            yield f"{name}/{file.relative_to(folder)}", file


def _wandb_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their names on the command line, without secrets: `pattern` for `pattern.name`, `optim.lr`."""
    return {name.removesuffix(".name"): value for name, value in flatten_settings(redact_all(config)).items()}


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


def _audio_table(clips: Sequence[NamedAudio], step: int, rate: int) -> wandb.Table:
    """A table with a row for each clip, and a player and a spectrogram for each of its sounds."""
    import wandb

    names = list(dict.fromkeys(name for _, sounds in clips for name in sounds))
    table = wandb.Table(columns=["step", "clip", *(f"{name}{kind}" for name in names for kind in ("", " spectrogram"))])
    for clip, sounds in clips:
        row: list[Any] = [step, clip]
        for name in names:
            wav = sounds.get(name)
            if wav is None:
                row += [None, None]
            else:
                row += [wandb.Audio(wav, sample_rate=rate), wandb.Image(spectrogram(wav), file_type="png")]
        table.add_data(*row)
    return table


def _describe_dataset(path: str) -> tuple[str, dict[str, Any]]:
    """The name of a dataset, and its path, codec, embedder and splits."""
    if not is_remote(path):
        path = str(Path(path.removeprefix("file://")).absolute())
    manifest, address = Manifest.load(path), redact(path)
    splits = {name: {"clips": manifest.num_samples(name), "hours": manifest.hours(name)} for name in manifest.splits}
    metadata = {
        "codec": manifest.codec, "embedder": manifest.embedder, "data": _without_long_lists(manifest.data),
        "splits": splits, "skipped": len(manifest.skipped), "path": address,
    }  # fmt: skip
    return Path(address.partition("?")[0]).name or "unnamed", redact_all(metadata)


def _without_long_lists(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata without lists that are too long to read in W&B."""
    return {name: value for name, value in metadata.items() if not isinstance(value, list) or len(value) <= 16}
