"""Checkpoints of a run: written completely or not at all, listed, validated, and deleted by a retention policy.

    checkpoints/step-1200/                DeepSpeed's files of all ranks
    checkpoints/step-1200/complete.json   written last: the step, the position of the data stream, the model's config,
                                          and the sha256 of each file
    checkpoints/latest                    the name of the newest one, for DeepSpeed's own tools (zero_to_fp32.py)

A folder without `complete.json` is incomplete: its save was interrupted. It is never read; the next save deletes it.
A checkpoint whose files do not match their checksums is damaged: it is refused, and `resume=auto` skips it.
DeepSpeed's files hold the optimizer state sharded by rank. To resume on another number of ranks, they are converted to
its universal format in the folder of the run that resumes.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.common.errors import InputError
from pipeline.common.files import is_intact, sha256_file, with_checksum, write_atomic
from pipeline.models import lora
from pipeline.models.model_config import ModelConfig
from pipeline.models.model_files import write_pretrained
from pipeline.models.quantization import quantize_state
from pipeline.training import zero_to_fp32
from pipeline.training.distributed import World
from pipeline.training.ema import Ema

if TYPE_CHECKING:
    from pipeline.training.async_checkpoint import AsyncCheckpointEngine

log = logging.getLogger(__name__)
COMPLETE = "complete.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint with its metadata; see `read_metadata`."""

    path: Path
    metadata: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read the metadata. Raises InputError if they are damaged."""
        return cls(path, read_metadata(path))

    @property
    def step(self) -> int:
        """The step after which it was saved."""
        return int(self.metadata["step"])

    def needs_universal(self, world: World) -> bool:
        """Whether the optimizer state is sharded for another number of ranks, so that it is converted to load it."""
        return bool(self.metadata["ranks"] != world.world_size and self.metadata["stage"] > 0)


def list_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    complete = [(_step(path), path) for path in (run / "checkpoints").glob("step-*") if (path / COMPLETE).is_file()]
    return [path for step, path in sorted(complete) if step >= 0]


def incomplete_checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run whose save was interrupted."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if not (path / COMPLETE).is_file())


def best_of(checkpoints: list[Path]) -> Path | None:
    """The checkpoint with the lowest validation loss at its own step; None if none was validated."""
    losses = {path: loss for path in checkpoints if (loss := read_metadata(path).get("val_loss")) is not None}
    return min(losses, key=losses.__getitem__, default=None)


def select_checkpoint(run: Path, name: str) -> Path:
    """The checkpoint of a run that `checkpoint=` names.

    Args:
        run: the run folder.
        name: `newest`, `best` (by validation loss), or the path of a `step-N` folder.

    Raises:
        InputError: there is no such checkpoint.
    """
    if name not in ("newest", "best"):
        if not (Path(name) / COMPLETE).is_file():
            raise InputError(f"checkpoint={name}: not a complete checkpoint; give newest, best, or a step-N folder")
        return Path(name)
    if not run.is_dir():
        raise InputError(f"run={run}: there is no such folder; pipeline.train writes runs/NAME")
    checkpoints = list_checkpoints(run)
    if not checkpoints:
        raise InputError(f"run={run} has no complete checkpoint: pipeline.train writes one every trainer.save_every")
    if name == "newest":
        return checkpoints[-1]
    best = best_of(checkpoints)
    if best is None:
        raise InputError(f"run={run} has no checkpoint with a validation loss: give checkpoint=newest")
    return best


def resolve_resume(run: Path, resume: str, world: World) -> tuple[Checkpoint | None, list[str]]:
    """Choose the checkpoint to resume from, the same on all ranks, and validate its files.

    Args:
        run: the run folder.
        resume: `auto`, `never`, or the path of a checkpoint or of a run folder.
        world: the ranks, which share the reading of the files.

    Returns:
        The newest intact checkpoint (None: start from scratch), and a line for each newer one that is damaged.

    Raises:
        InputError: `never` would mix two runs in one folder; the path has no complete checkpoint; the named checkpoint
            is damaged; or all checkpoints are damaged.
    """
    candidates: list[Path] = world.gather(_candidates(run, resume))[0]
    if resume == "never":
        if candidates:
            raise InputError(f"{run} contains a run at {candidates[0].name}: delete it, or give another run=DIR")
        return None, []
    if not candidates and resume != "auto":
        raise InputError(
            f"resume={resume} has no complete checkpoint: give auto, never, a run folder or a step-N folder"
        )
    skipped: list[str] = []
    for path in candidates:
        checkpoint, local_faults = _read_part(path, world.rank, world.world_size)
        faults = [line for lines in world.gather(local_faults) for line in lines]
        if checkpoint and not faults:
            return checkpoint, skipped
        if path == Path(resume):
            raise InputError(f"resume={resume} is damaged ({faults[0]}): give an earlier checkpoint, or resume=auto")
        skipped.append(f"checkpoint {path} is damaged and skipped: {faults[0]}")
    if candidates:
        raise InputError(f"{skipped[0]}; no intact checkpoint is left: restore one, or give another run=DIR")
    return None, []


def _candidates(run: Path, resume: str) -> list[Path]:
    """The checkpoints that `resume` may mean, newest first."""
    if resume in ("auto", "never"):
        return list_checkpoints(run)[::-1]
    path = Path(resume)
    return [path] if (path / COMPLETE).is_file() else list_checkpoints(path)[::-1]


def damage(path: Path) -> list[str]:
    """A line for each file of a checkpoint that is missing or differs from its sha256.

    Checkpoints of older versions have no checksums, so no damage is detected.
    """
    return _read_part(path)[1]


def _read_part(path: Path, part: int = 0, parts: int = 1) -> tuple[Checkpoint | None, list[str]]:
    """The metadata of a checkpoint, and the damage of every `parts`-th file, starting with file number `part`."""
    try:
        checkpoint = Checkpoint.read(path)
    except InputError as error:
        return None, [str(error)]
    files, faults = checkpoint.metadata.get("files", {}), []
    for name in sorted(files)[part::parts]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            faults.append(f"{COMPLETE} names a file outside of the checkpoint")
            continue
        try:
            if sha256_file(path / name) != files[name]:
                faults.append(f"{name} has changed since it was written (its sha256 differs)")
        except OSError as error:
            faults.append(f"{name} cannot be read ({error.strerror})")
    return checkpoint, faults


@dataclass(frozen=True)
class RetentionPolicy:
    """Which checkpoints are kept: the `last` newest (0: all), the best by validation loss, every `every`-th step."""

    last: int
    best: bool
    every: int

    def retained(self, checkpoints: list[Path]) -> set[Path]:
        """Those of the complete checkpoints (oldest first) that are kept."""
        kept = set(checkpoints[-self.last :]) if self.last else set(checkpoints)
        if self.every:
            kept |= {path for path in checkpoints if _step(path) % self.every == 0}
        if self.best and (best := best_of(checkpoints)):
            kept.add(best)
        return kept


@dataclass(frozen=True)
class PendingCheckpoint:
    """A checkpoint that is being written."""

    folder: Path
    metadata: dict[str, Any]
    writer: AsyncCheckpointEngine


def start_save(
    engine: Any, run: Path, world: World, state: dict[str, Any], ema: Ema | None = None, background: bool = False
) -> PendingCheckpoint:
    """Start to save the engine on all ranks. The checkpoint is complete only after `commit`.

    Args:
        engine: the DeepSpeed engine.
        run: the run folder.
        world: the ranks.
        state: the metadata of the trainer, with its `step`.
        ema: the moving average of the weights, on the first rank.
        background: return before the files are written.
    """
    from pipeline.training.async_checkpoint import AsyncCheckpointEngine

    folder = run / "checkpoints" / f"step-{state['step']}"
    if world.is_main and folder.exists():
        shutil.rmtree(folder)  # incomplete, or the same step again after a resume from an earlier checkpoint
    world.barrier()
    writer = engine.checkpoint_engine = AsyncCheckpointEngine(background)
    adapter = engine.module.adapter  # of which the base is not saved
    engine.save_checkpoint(
        str(folder.parent), tag=folder.name, save_latest=False, exclude_frozen_parameters=adapter is not None
    )
    if ema is not None:
        writer.add_checksum(ema.save(folder))
    layout = {"ranks": world.world_size, "stage": engine.zero_optimization_stage(), "bf16": engine.bfloat16_enabled()}
    if adapter is not None:
        layout["adapter"] = adapter.model_dump()
    return PendingCheckpoint(folder, {**state, **layout, "model": asdict(engine.module.config)}, writer)


def commit(world: World, pending: PendingCheckpoint, retention: RetentionPolicy) -> Path:
    """Wait until all ranks have written their files, mark the checkpoint complete, and delete those not retained.

    Raises:
        OSError: a file could not be written, for example because the disk is full.
    """
    files = {name: sha256 for part in world.gather(pending.writer.wait()) for name, sha256 in part.items()}
    if world.is_main:
        folder, run = pending.folder, pending.folder.parents[1]
        metadata = with_checksum({**pending.metadata, "files": files})
        write_atomic(folder / COMPLETE, json.dumps(metadata, indent=1) + "\n", sync=True)
        write_atomic(folder.parent / "latest", folder.name, sync=True)
        checkpoints = [path for path in list_checkpoints(run) if _step(path) <= pending.metadata["step"]]
        for universal in folder.parent.glob("universal-*"):
            shutil.rmtree(universal)
        outdated = [path for path in checkpoints if path not in retention.retained(checkpoints)]
        for path in [*incomplete_checkpoints(run), *outdated]:
            (path / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(path)
    return pending.folder


def read_metadata(checkpoint: Path) -> dict[str, Any]:
    """The content of `complete.json`.

    Its keys are step, place (the position of the data stream), seed, settings, ranks, stage, bf16, model, files (the
    sha256 of each), and val_loss if the model was validated at this step, and adapter if only that is trained.

    Raises:
        InputError: the file is damaged.
    """
    try:
        metadata = json.loads((checkpoint / COMPLETE).read_text())
        if not isinstance(metadata, dict) or not isinstance(metadata.get("files", {}), dict):
            raise TypeError("it is not the JSON object of a checkpoint")
        if not is_intact(metadata):
            raise ValueError("its sha256 differs")
        metadata.pop("sha256", None)
        counts = [metadata[name] for name in ("step", "ranks", "stage")]
        if not all(type(count) is int for count in counts) or not isinstance(metadata["model"], dict):
            raise TypeError(f"step, ranks and stage are {counts}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{checkpoint / COMPLETE} is damaged ({error!r:.200}): give another checkpoint") from error
    return metadata


def to_universal(checkpoint: Checkpoint, world: World, run: Path) -> Path:
    """Convert a checkpoint to DeepSpeed's universal format, which loads on any number of ranks.

    The first rank writes it to the folder of the run that resumes, whose next save deletes it.

    Raises:
        RuntimeError: the conversion failed; the message has DeepSpeed's output.
    """
    folder = run / "checkpoints" / checkpoint.path.name.replace("step", "universal")
    if world.is_main:
        from deepspeed.checkpoint import ds_to_universal

        log.info("converting %s for %d ranks", checkpoint.path, world.world_size)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        options = ["--input_folder", str(checkpoint.path), "--output_folder", str(folder), "--inject_missing_state"]
        command = [sys.executable, "-m", ds_to_universal.__name__, *options]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            error = process.stderr[-3000:]
            raise RuntimeError(f"{checkpoint.path} cannot be converted for {world.world_size} ranks:\n{error}")
    world.barrier()
    return folder


def load(engine: Any, checkpoint: Checkpoint, world: World, run: Path) -> None:
    """Load weights and optimizer state on all ranks; the optimizer's settings stay those of the engine.

    Args:
        engine: a DeepSpeed engine, built with what `Checkpoint.needs_universal` returned.
        checkpoint: the checkpoint.
        world: the ranks.
        run: the folder of the run that resumes.

    Raises:
        InputError: a file is damaged, or contains more than the data of a checkpoint.
    """
    path = checkpoint.path
    zero_to_fp32.check_pickles_are_safe(path, world.rank, world.world_size)
    world.barrier()
    if checkpoint.needs_universal(world):
        path = to_universal(checkpoint, world, run)
        zero_to_fp32.check_pickles_are_safe(path, world.rank, world.world_size)
        world.barrier()
    optimizer = engine.optimizer
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    strict = engine.module.adapter is None
    loaded, _ = engine.load_checkpoint(str(path.parent), tag=path.name, load_module_strict=strict)
    assert loaded is not None, f"{path} is complete, but DeepSpeed has not loaded it"
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update(values)  # DeepSpeed loads those of the checkpoint, and at ZeRO-3 those of one group for all
    for state in optimizer.state.values():
        if "step" in state:  # a universal checkpoint at ZeRO-3 shares one tensor, which each group would increment
            state["step"] = state["step"].clone()


def export(path: Path, folder: Path, use_ema: bool = True, precision: Literal["fp32", "int8"] = "fp32") -> None:
    """Write the weights of a checkpoint, in safetensors, and the config of its model.

    An adapter is written to `folder/adapter`, and merged into its base to `folder`.

    Args:
        path: a complete checkpoint.
        folder: where to write.
        use_ema: write the moving average of the weights if the checkpoint has one.
        precision: of the weights of matrices in the file.

    Raises:
        InputError: the checkpoint is damaged, or the base of its adapter is missing.
    """
    if faults := damage(path):
        raise InputError(f"{path} is damaged ({faults[0]}): give another checkpoint")
    weights = zero_to_fp32.consolidated_state_dict(path, use_ema)
    metadata = read_metadata(path)
    if "adapter" in metadata:
        adapter = lora.Adapter.model_validate(metadata["adapter"])
        trained = {name: value for name, value in weights.items() if name not in ("prompt_mean", "prompt_std")}
        weights = lora.merge_adapter(lora.load_base(adapter, str(path)).state_dict(), trained, adapter)
        lora.write_adapter(folder / lora.ADAPTER, trained, adapter)
    stored = quantize_state(weights) if precision == "int8" else weights
    write_pretrained(folder, ModelConfig(**metadata["model"]), stored)


def _step(path: Path) -> int:
    match = re.fullmatch(r"step-(\d+)", path.name)
    return int(match.group(1)) if match else -1
