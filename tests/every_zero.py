"""Run on two ranks: the losses of three steps under every choice of conf/deepspeed, as JSON by choice and precision.

torchrun --nproc_per_node 2 -m tests.every_zero losses.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from pipeline import training
from pipeline.config import CONF, compose
from pipeline.lm import distributed
from pipeline.lm.distributed import World
from tests.lm.models import tiny

CHOICES = sorted(file.stem for file in (CONF / "deepspeed").glob("*.yaml"))


def losses(choice: str, precision: str, world: World) -> list[float]:
    """The mean loss of all ranks at each step, as the trainer sets it up."""
    words = [f"deepspeed={choice}", f"trainer.precision={precision}", "trainer.micro_batch=2", "optim.lr=0.001"]
    engine = training.build_engine(compose("train", words), tiny(), world)
    random = torch.Generator().manual_seed(world.rank)
    codes, prompt = torch.randint(0, 1024, (2, 4, 12), generator=random), torch.randn(2, 12, generator=random)
    found = []
    for _ in range(3):
        nats, cells = engine(codes, None, prompt)
        loss = nats.sum() / cells.sum()
        engine.backward(loss)
        engine.step()
        found.append(world.total([loss.item()])[0] / world.ranks)
    return found


def main(out: Path) -> None:
    world = distributed.start(60)
    told = {}
    for choice in CHOICES:
        for precision in ("fp32", "bf16"):
            told[f"{choice} {precision}"] = losses(choice, precision, world)
    if world.first:
        out.write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
