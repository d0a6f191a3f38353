"""Run on two ranks: train a small model for two steps at every ZeRO stage and precision, and save it.

    torchrun --nproc_per_node 2 -m tests.helpers.sharded_checkpoints DIR

DIR/{kind}/checkpoints/step-2 is what the trainer writes; truth.safetensors has the fp32 weights of the engine.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pipeline.models.codec_gpt import CodecGPT
from pipeline.training import checkpoint, distributed
from pipeline.training.distributed import World
from pipeline.training.ema import Ema
from pipeline.training.optimizers import parameter_groups
from tests.helpers.models import tiny

ODD = {"width": 33, "heads": 3, "positions": 65}  # sizes that do not divide by two ranks
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
KINDS: dict[str, dict[str, Any]] = {
    "0-fp32": {"stage": 0},
    "0-bf16": {"stage": 0},
    "1-fp32": {"stage": 1},
    "1-bf16": {"stage": 1},
    "2-bf16": {"stage": 2},
    "2-offload-fp32": {"stage": 2, **OFFLOAD},
    "3-fp32": {"stage": 3},
    "3-pieces-bf16": {"stage": 3, "sub_group_size": 40_000},
    "3-offload-bf16": {"stage": 3, **OFFLOAD, "offload_param": {"device": "cpu"}},
}


def train(zero: dict[str, Any], bf16: bool, world: World) -> Any:
    """An engine after two steps; prompts are normalized, so that the buffers are not trivial."""
    import deepspeed

    model = tiny(**ODD)
    model.fit_prompt_normalization(torch.randn(50, 12, generator=torch.Generator().manual_seed(1)))
    settings = {
        "zero_optimization": {**zero, "reduce_bucket_size": 1_000_000},
        "train_micro_batch_size_per_gpu": 2,
        "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-2, betas=(0.9, 0.95))
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
    random = torch.Generator().manual_seed(world.rank)
    for _ in range(2):
        codes, prompt = torch.randint(0, 1024, (2, 4, 12), generator=random), torch.randn(2, 12, generator=random)
        loss_sums, num_tokens = engine(codes, None, {"prompt": prompt})
        engine.backward(loss_sums.sum() / num_tokens.sum())
        engine.step()
    return engine


def truth(engine: Any, stage: int, bf16: bool) -> dict[str, torch.Tensor]:
    """The weights that the optimizer updates, gathered by DeepSpeed."""
    from deepspeed.utils import safe_get_full_fp32_param

    model: CodecGPT = engine.module
    weights = dict(model.named_buffers())
    if stage:
        weights |= {name: safe_get_full_fp32_param(p) for name, p in model.named_parameters()}
    elif not bf16:
        weights |= dict(model.named_parameters())
    else:
        names = {id(p): name for name, p in model.named_parameters()}
        for low, high in zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True):
            weights |= {names[id(p)]: value for p, value in zip(low, high, strict=True)}
    return {name: value.detach().float().contiguous() for name, value in weights.items() if name != "offsets"}


def main(out: Path) -> None:
    world = distributed.init_distributed(60)
    for name, zero in KINDS.items():
        run, bf16 = out / name, name.endswith("bf16")
        engine = train(zero, bf16, world)
        mean = Ema(engine.module, 0.5) if zero["stage"] == 1 else None
        state = {"step": 2, "place": 8, "seed": 0}
        pending = checkpoint.start_save(engine, run, world, state, mean if world.is_main else None)
        checkpoint.commit(world, pending, checkpoint.RetentionPolicy(0, False, 0))
        weights = truth(engine, zero["stage"], bf16)
        if world.is_main:
            save_file(weights, run / "truth.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
