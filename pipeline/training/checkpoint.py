"""Checkpoints of a run: saved whole or not at all, found again, and thinned out.

    checkpoints/step-1200/                DeepSpeed's own files of all ranks
    checkpoints/step-1200/complete.json   written last: the step, the place of the stream, the model's settings, and
                                          the sha256 of each file
    checkpoints/latest                    the name of the last one, for DeepSpeed's own tools (zero_to_fp32.py)

A folder without `complete.json` is torn: its save was interrupted. It is never read, and removed by the next save.
A checkpoint whose files do not match their checksums is damaged: it is refused, and `resume=auto` passes over it.
DeepSpeed's files hold a share of the optimizer for each rank; for another number of ranks they are converted to its
universal format, into the run that resumes, on the first resume.
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
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import InputError
from pipeline.common.files import is_intact, sha256_file, with_checksum, write_atomic
from pipeline.models.codec_gpt import ModelConfig, write_pretrained
from pipeline.training import zero_to_fp32
from pipeline.training.distributed import World
from pipeline.training.ema import Ema

if TYPE_CHECKING:
    from pipeline.training.async_checkpoint import AsyncCheckpointEngine

log = logging.getLogger(__name__)
COMPLETE = "complete.json"


def list_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    found = [(_step(path), path) for path in (run / "checkpoints").glob("step-*") if (path / COMPLETE).is_file()]
    return [path for step, path in sorted(found) if step >= 0]


def incomplete_checkpoints(run: Path) -> list[Path]:
    """Folders whose save was interrupted."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if not (path / COMPLETE).is_file())


def resolve_resume(run: Path, resume: str, world: World) -> tuple[Path | None, list[str]]:
    """Choose the checkpoint to resume from, the same on all ranks, and check its files.

    Args:
        run: the run folder.
        resume: `auto`, `never`, or the path of a checkpoint or of a run folder.
        world: the ranks, which share the reading of the files.

    Returns:
        The newest intact checkpoint (None: start from scratch), and a line for each newer one that is damaged.

    Raises:
        InputError: where `never` would mix two runs in one folder; where the path holds no complete checkpoint; for a
            damaged checkpoint that is named; where all checkpoints are damaged.
    """
    candidates: list[Path] = world.gather(_candidates(run, resume))[0]
    if resume == "never":
        if candidates:
            raise InputError(f"{run} holds a run that reached {candidates[0].name}: remove it, or give another run=DIR")
        return None, []
    if not candidates and resume != "auto":
        raise InputError(
            f"resume={resume} holds no complete checkpoint: give auto, never, a run folder or a step-N folder"
        )
    skipped: list[str] = []
    for path in candidates:
        faults = [line for lines in world.gather(damage(path, world.rank, world.world_size)) for line in lines]
        if not faults:
            return path, skipped
        if path == Path(resume):
            raise InputError(f"resume={resume} is damaged ({faults[0]}): give an earlier checkpoint, or resume=auto")
        skipped.append(f"checkpoint {path} is damaged and skipped: {faults[0]}")
    if candidates:
        raise InputError(f"{skipped[0]}; no intact checkpoint is left there: restore one, or give another run=DIR")
    return None, []


def _candidates(run: Path, resume: str) -> list[Path]:
    """The checkpoints that `resume` may mean, newest first."""
    if resume in ("auto", "never"):
        return list_checkpoints(run)[::-1]
    path = Path(resume)
    return [path] if (path / COMPLETE).is_file() else list_checkpoints(path)[::-1]


def damage(checkpoint: Path, part: int = 0, parts: int = 1) -> list[str]:
    """Compare every `part`th file of `parts` with its sha256; a line for each that is missing or differs.

    Checkpoints of older versions have no checksums: of these nothing is known.
    """
    try:
        files = read_metadata(checkpoint).get("files", {})
    except InputError as error:
        return [str(error)]
    faults = []
    for name in sorted(files)[part::parts]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            faults.append(f"{COMPLETE} names a file outside of it")
            continue
        try:
            if sha256_file(checkpoint / name) != files[name]:
                faults.append(f"{name} has changed since it was written (its sha256 differs)")
        except OSError as error:
            faults.append(f"{name} cannot be read ({error.strerror})")
    return faults


def check_files(checkpoint: Path) -> None:
    """Raises InputError, naming the file, where a checkpoint is damaged."""
    if faults := damage(checkpoint):
        raise InputError(f"{checkpoint} is damaged ({faults[0]}): give another checkpoint")


@dataclass(frozen=True)
class RetentionPolicy:
    """Which checkpoints stay: the `last` newest (0: all), the best by validation loss, and every `every`-th step."""

    last: int
    best: bool
    every: int

    def retained(self, found: list[Path]) -> set[Path]:
        """Those of the complete checkpoints, oldest first, that stay."""
        spared = set(found[-self.last :]) if self.last else set(found)
        if self.every:
            spared |= {path for path in found if _step(path) % self.every == 0}
        if self.best and (best := best_of(found)):
            spared.add(best)
        return spared


def best_of(found: list[Path]) -> Path | None:
    """The checkpoint with the lowest validation loss at its own step, if any was validated."""
    losses = {path: loss for path in found if (loss := read_metadata(path).get("val_loss")) is not None}
    return min(losses, key=losses.__getitem__, default=None)


@dataclass(frozen=True)
class PendingCheckpoint:
    """A checkpoint that is being written."""

    folder: Path
    state: dict[str, Any]
    writer: AsyncCheckpointEngine


def start_save(
    engine: Any, run: Path, world: World, state: dict[str, Any], ema: Ema | None = None, background: bool = False
) -> PendingCheckpoint:
    """Save the engine on all ranks under the step in `state`; complete only after `finish`.

    background: return before all is written, and let training continue.
    """
    from pipeline.training.async_checkpoint import AsyncCheckpointEngine

    folder = run / "checkpoints" / f"step-{state['step']}"
    if world.is_main and folder.exists():
        shutil.rmtree(folder)  # torn, or this very step again after a resume from elsewhere
    world.barrier()
    writer = engine.checkpoint_engine = AsyncCheckpointEngine(background)
    engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
    if ema is not None:
        writer.add_checksum(ema.save(folder))
    how = {"ranks": world.world_size, "stage": engine.zero_optimization_stage(), "bf16": engine.bfloat16_enabled()}
    return PendingCheckpoint(folder, {**state, **how, "model": asdict(engine.module.config)}, writer)


def commit(world: World, saving: PendingCheckpoint, keep: RetentionPolicy) -> Path:
    """Wait until all ranks have written their files, mark the checkpoint complete, and thin out those before it.

    Raises OSError for a file that could not be written, for a full disk for instance.
    """
    files = {name: sha256 for part in world.gather(saving.writer.wait()) for name, sha256 in part.items()}
    if world.is_main:
        folder, run = saving.folder, saving.folder.parents[1]
        _complete(folder, {**saving.state, "files": files})
        write_atomic(folder.parent / "latest", folder.name, sync=True)
        found = [path for path in list_checkpoints(run) if _step(path) <= saving.state["step"]]
        for converted in folder.parent.glob("universal-*"):
            shutil.rmtree(converted)
        for old in [*incomplete_checkpoints(run), *(path for path in found if path not in keep.retained(found))]:
            (old / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(old)
    return saving.folder


def _complete(folder: Path, state: dict[str, Any]) -> None:
    """Write `complete.json`, the last file of a checkpoint."""
    write_atomic(folder / COMPLETE, json.dumps(with_checksum(state), indent=1) + "\n", sync=True)


def read_metadata(checkpoint: Path) -> dict[str, Any]:
    """What `complete.json` says: step, place, seed, ranks, stage, model, the sha256 of each file of `files`, and the
    validation loss if it was taken.

    Raises InputError for one that is damaged.
    """
    try:
        found = json.loads((checkpoint / COMPLETE).read_text())
        if not isinstance(found, dict) or not isinstance(found.get("files", {}), dict):
            raise TypeError("it is not the JSON object of a checkpoint")
        if not is_intact(found):
            raise ValueError("its sha256 differs")
        found.pop("sha256", None)
        counts = [found[name] for name in ("step", "ranks", "stage")]
        if not all(type(count) is int for count in counts) or not isinstance(found["model"], dict):
            raise TypeError(f"step, ranks and stage are {counts}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{checkpoint / COMPLETE} is damaged ({error!r:.200}): take another checkpoint") from error
    return found


def check_model(checkpoint: Path, config: ModelConfig) -> None:
    """Raises InputError, naming the settings that differ, unless the checkpoint is of such a model."""
    then, now = read_metadata(checkpoint)["model"], json.loads(json.dumps(asdict(config)))
    # a resume may go on with longer clips; dropout is no part of the architecture (see `training_settings`)
    names = [name for name in now if name not in ("frames", "dropout", "prompt_dropout")]
    differ = [f"{name}={then.get(name)!r} then, {now[name]!r} now" for name in names if then.get(name) != now[name]]
    if differ:
        raise InputError(
            f"{checkpoint} is of another model ({'; '.join(differ)}): give its settings, or another run=DIR"
        )


def check_engine(checkpoint: Path, stage: int, bf16: bool) -> None:
    """Raises InputError unless an engine of this stage of ZeRO and precision reads such a checkpoint."""
    state = read_metadata(checkpoint)
    then = state["stage"], state.get("bf16", bf16)
    if (_shares(then[0]), then[1]) != (_shares(stage), bf16):
        old, new = (f"ZeRO stage {n} in {'bf16' if half else 'fp32'}" for n, half in (then, (stage, bf16)))
        choices = " or ".join(f"zero{n}" for n in range(4) if _shares(n) == _shares(then[0]))
        raise InputError(
            f"{checkpoint} holds the optimizer of {old}, which {new} cannot read: give deepspeed={choices} and "
            f"trainer.precision={'bf16' if then[1] else 'fp32'}, or another run=DIR"
        )


def check_steps(checkpoint: Path, run: Path, steps: int) -> None:
    """Raises InputError where another run's checkpoint leaves nothing to train: this run would have no checkpoint."""
    step = read_metadata(checkpoint)["step"]
    if step >= steps and checkpoint.resolve().parents[1] != run.resolve():
        raise InputError(
            f"trainer.steps={steps}: {checkpoint} is at step {step} already; give more steps, or export it by "
            f"`python -m pipeline.export run={checkpoint.parents[1]} checkpoint={checkpoint}`"
        )


def _shares(stage: int) -> int:
    """What DeepSpeed's files look like: at stages 1 and 2 alike."""
    return min(stage, 1) + (stage > 2)


def needs_universal(checkpoint: Path, world: World) -> bool:
    """Whether the optimizer's shares are those of another number of ranks: DeepSpeed must then load universal files."""
    state = read_metadata(checkpoint)
    return state["ranks"] != world.world_size and state["stage"] > 0


def to_universal(checkpoint: Path, world: World, run: Path) -> Path:
    """Convert a checkpoint to DeepSpeed's universal format, for any number of ranks, on the first rank.

    The result is in the folder of the run that resumes, and is used again by a resume before its next save.
    Raises RuntimeError, with what DeepSpeed says, where it cannot be made.
    """
    folder = run / "checkpoints" / checkpoint.name.replace("step", "universal")
    if world.is_main and not is_conversion_of(checkpoint, folder):
        from deepspeed.checkpoint import ds_to_universal

        log.info("%s is converted for %d ranks", checkpoint, world.world_size)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        words = ["--input_folder", str(checkpoint), "--output_folder", str(folder), "--inject_missing_state"]
        done = subprocess.run([sys.executable, "-m", ds_to_universal.__name__, *words], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{checkpoint} cannot be converted for {world.world_size} ranks:\n{done.stderr[-3000:]}")
        files = {str(file.relative_to(folder)): sha256_file(file) for file in folder.rglob("*") if file.is_file()}
        _complete(folder, {**read_metadata(checkpoint), "files": files, "source": read_metadata(checkpoint)})
    world.barrier()
    return folder


def is_conversion_of(checkpoint: Path, folder: Path) -> bool:
    """Whether a folder holds the intact universal files of this very checkpoint."""
    return (
        (folder / COMPLETE).is_file()
        and not damage(folder)
        and read_metadata(folder).get("source") == read_metadata(checkpoint)
    )


def load(engine: Any, checkpoint: Path, world: World, run: Path) -> None:
    """Load weights and the optimizer's state on all ranks; the engine was built with what `needs_conversion` says.

    run: the folder of the run that resumes. The optimizer's settings stay what the engine was built with. Raises
    InputError for files that would run code, or are damaged.
    """
    zero_to_fp32.check_pickles_are_safe(checkpoint, world.rank, world.world_size)
    world.barrier()
    if needs_universal(checkpoint, world):
        checkpoint = to_universal(checkpoint, world, run)
        zero_to_fp32.check_pickles_are_safe(checkpoint, world.rank, world.world_size)
        world.barrier()
    optimizer = engine.optimizer
    asked = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    loaded, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    assert loaded is not None, f"{checkpoint} is complete, and DeepSpeed found nothing in it"
    for group, settings in zip(optimizer.param_groups, asked, strict=True):
        group.update(settings)  # DeepSpeed loads the checkpoint's, and of a universal one at ZeRO-3 the first for all
    for state in optimizer.state.values():
        if "step" in state:  # one tensor for all, of a universal one at ZeRO-3: each group would count it on
            state["step"] = state["step"].clone()


def export(found: Path, folder: Path, mean: bool = True) -> None:
    """Write the weights (their running mean, if there is one and `mean`) and config of a checkpoint in safetensors.

    Raises InputError where the checkpoint is damaged.
    """
    check_files(found)
    write_pretrained(
        folder, ModelConfig(**read_metadata(found)["model"]), zero_to_fp32.consolidated_state_dict(found, mean)
    )


def _step(path: Path) -> int:
    found = re.fullmatch(r"step-(\d+)", path.name)
    return int(found.group(1)) if found else -1
