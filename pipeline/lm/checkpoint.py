"""Checkpoints of a run: saved whole or not at all, found again, and thinned out.

    checkpoints/step-1200/          DeepSpeed's own files of all ranks
    checkpoints/step-1200/complete.json   written last: the step, the place of the stream, the model's settings

A folder without `complete.json` is torn: its save was interrupted. It is never read, and removed by the next run.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import InputError
from pipeline.lm.distributed import World
from pipeline.lm.model import CodecGPT, ModelConfig, write_pretrained

log = logging.getLogger(__name__)
COMPLETE = "complete.json"


def saved(run: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    found = [(_step(path), path) for path in (run / "checkpoints").glob("step-*") if (path / COMPLETE).is_file()]
    return [path for step, path in sorted(found) if step >= 0]


def torn(run: Path) -> list[Path]:
    """Folders whose save was interrupted."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if not (path / COMPLETE).is_file())


def find(run: Path, resume: str) -> Path | None:
    """The checkpoint to go on from: resume is `auto`, `never`, or the path of a checkpoint or of a run folder.

    Raises InputError where `never` would mix two runs in one folder, or the path holds no complete checkpoint.
    """
    newest = (saved(run) or [None])[-1]
    if resume == "auto":
        return newest
    if resume == "never":
        if newest:
            raise InputError(f"{run} holds a run that reached {newest.name}: remove it, or give another run=DIR")
        return None
    path = Path(resume)
    chosen = path if (path / COMPLETE).is_file() else (saved(path) or [None])[-1]
    if chosen is None:
        raise InputError(
            f"resume={resume} holds no complete checkpoint: give auto, never, a run folder or a step-N folder"
        )
    return chosen


def save(engine: Any, run: Path, world: World, state: dict[str, Any], keep: int) -> Path:
    """Save the engine on all ranks under the step in `state`, say that it is complete, and keep the newest `keep`."""
    folder = run / "checkpoints" / f"step-{state['step']}"
    if world.first and folder.exists():
        shutil.rmtree(folder)  # torn, or this very step again after a resume from elsewhere
    world.wait()
    engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
    world.wait()
    if world.first:
        state = {**state, "ranks": world.ranks, "model": asdict(engine.module.config)}
        temporary = folder / f".{COMPLETE}.tmp"
        temporary.write_text(json.dumps(state, indent=1) + "\n")
        with temporary.open() as file:
            os.fsync(file.fileno())
        temporary.replace(folder / COMPLETE)
        for old in [*torn(run), *(saved(run)[:-keep] if keep else [])]:
            (old / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(old)
    return folder


def state_of(checkpoint: Path) -> dict[str, Any]:
    """What `complete.json` says: step, place, seed, ranks, model."""
    return json.loads((checkpoint / COMPLETE).read_text())


def check_model(checkpoint: Path, config: ModelConfig) -> None:
    """Raises InputError, naming the settings that differ, unless the checkpoint is of such a model."""
    then, now = state_of(checkpoint)["model"], json.loads(json.dumps(asdict(config)))
    differ = [f"{name}={then.get(name)!r} then, {now[name]!r} now" for name in now if then.get(name) != now[name]]
    if differ:
        raise InputError(
            f"{checkpoint} is of another model ({'; '.join(differ)}): give its settings, or another run=DIR"
        )


def load(engine: Any, checkpoint: Path, world: World) -> None:
    """Load weights and optimizer on all ranks. Raises InputError for another number of ranks."""
    ranks = state_of(checkpoint)["ranks"]
    if ranks != world.ranks:
        raise InputError(f"{checkpoint} was saved by {ranks} ranks, and these are {world.ranks}: run on {ranks}")
    loaded, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    assert loaded is not None, f"{checkpoint} is complete, and DeepSpeed found nothing in it"


def export(engine: Any, run: Path, world: World) -> None:
    """Write `export/`: weights and config in safetensors, all that inference needs of the model."""
    model: CodecGPT = engine.module
    if engine.zero_optimization_partition_weights():
        state = engine._zero3_consolidated_16bit_state_dict()  # gathered on rank 0; the public call writes a pickle
    else:
        state = model.state_dict()
    if world.first:
        assert state is not None
        write_pretrained(run / "export", model.config, {name: _float(value) for name, value in state.items()})
    world.wait()


def _float(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value


def _step(path: Path) -> int:
    found = re.fullmatch(r"step-(\d+)", path.name)
    return int(found.group(1)) if found else -1
