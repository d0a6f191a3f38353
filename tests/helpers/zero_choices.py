"""Run on two ranks, then on one: losses under every choice of conf/deepspeed, as JSON by choice and precision.

torchrun --nproc_per_node 2 -m tests.helpers.zero_choices FOLDER   # three steps, a checkpoint, two more steps
torchrun --nproc_per_node 1 -m tests.helpers.zero_choices FOLDER zero1-bf16   # these two, from that checkpoint
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.common.paths import CONF
from pipeline.config.cli import load_settings
from pipeline.training import checkpoint, distributed
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.context import RunContext
from pipeline.training.distributed import World
from pipeline.training.engine import build_engine
from pipeline.training.settings import TrainSettings
from pipeline.training.trainer import local_param_sq_norm
from tests.helpers.models import tiny

CHOICES = sorted(file.stem for file in (CONF / "deepspeed").glob("*.yaml"))
CONVERTED = [(choice, "fp32") for choice in CHOICES] + [("zero1", "bf16"), ("zero3", "bf16")]
CLIPS, BEFORE, AFTER = 4, 3, 2


def build(choice: str, precision: str, world: World, source: Checkpoint | None = None) -> Any:
    """An engine as `pipeline.train` builds it; source: the checkpoint that it is going to load."""
    overrides = [
        f"deepspeed={choice}",
        f"trainer.precision={precision}",
        f"trainer.micro_batch={CLIPS // world.world_size}",
    ]
    settings = load_settings(TrainSettings, [*overrides, "trainer.async_checkpoint=false", "optim.lr=0.01"])
    context = RunContext(settings, Path(settings.run), world)
    return build_engine(context, tiny(), source is not None and source.needs_universal(world))


def losses(engine: Any, world: World, steps: range) -> list[float]:
    """The mean loss of each step over the clips of all ranks; these are the same for any number of ranks."""
    means = []
    for step in steps:
        random = torch.Generator().manual_seed(step % 2)
        codes = torch.randint(0, 1024, (CLIPS, 4, 12), generator=random)
        prompt = torch.randn(CLIPS, 12, generator=random)
        local = slice(world.rank, None, world.world_size)
        loss_sums, num_tokens = engine(codes[local], None, {"prompt": prompt[local]})
        loss = loss_sums.sum() / num_tokens.sum()
        engine.backward(loss)
        engine.step()
        means.append(world.all_reduce_sum([loss.item()])[0] / world.world_size)
    return means


def train_two_ranks(folder: Path, choice: str, precision: str, world: World) -> list[float]:
    """Losses of all steps; saves a checkpoint on the way if one rank is going to resume it."""
    engine = build(choice, precision, world)
    before = losses(engine, world, range(BEFORE))
    if (choice, precision) in CONVERTED:
        pending = checkpoint.start_save(engine, folder / f"{choice}-{precision}", world, {"step": BEFORE})
        checkpoint.commit(world, pending, checkpoint.RetentionPolicy(1, False, 0))
    return before + losses(engine, world, range(BEFORE, BEFORE + AFTER))


def resume_one_rank(folder: Path, choice: str, precision: str, world: World) -> list[float]:
    """Losses of the steps after the checkpoint; the settings of the optimizer stay those of the engine."""
    (path,) = checkpoint.list_checkpoints(folder / f"{choice}-{precision}")
    source = Checkpoint.read(path)
    engine = build(choice, precision, world, source)
    settings = [{**group, "params": None} for group in engine.optimizer.param_groups]
    checkpoint.load(engine, source, world, path.parents[1])
    assert [{**group, "params": None} for group in engine.optimizer.param_groups] == settings
    return losses(engine, world, range(BEFORE, BEFORE + AFTER))


def norm_of_shards(world: World) -> list[float]:
    """The squared norm of all weights, sharded at ZeRO-3 and unsharded; some sizes are not multiples of two."""
    model = tiny(codebooks=1, width=36)
    expected = float(sum(p.detach().square().sum() for p in model.parameters()))
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills uninitialized memory with NaN
    settings = load_settings(TrainSettings, ["deepspeed=zero3", "trainer.async_checkpoint=false"])
    engine = build_engine(RunContext(settings, Path(settings.run), world), model)
    torch.use_deterministic_algorithms(False)
    assert any(p.ds_numel % world.world_size for p in model.parameters())
    return [world.all_reduce_sum([local_param_sq_norm(engine, world)])[0], expected]


def main(folder: Path, *checkpoints: str) -> None:
    world = distributed.init_distributed(60)
    if world.world_size == 2:
        results = {f"{c} {p}": train_two_ranks(folder, c, p, world) for c in CHOICES for p in ("fp32", "bf16")}
        results["norm of shards"] = norm_of_shards(world)
    else:
        pairs = [name.split("-") for name in checkpoints]
        results = {f"{c} {p}": resume_one_rank(folder, c, p, world) for c, p in pairs}
    if world.is_main:
        (folder / f"{world.world_size}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
