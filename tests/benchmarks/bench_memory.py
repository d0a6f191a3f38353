"""How much memory training really takes, beside what the preflight foretells.

    python -m tests.benchmarks.bench_memory                      tiny, on one rank: a minute on a CPU
    python -m tests.benchmarks.bench_memory --sizes small medium large xl --deepspeed zero1 zero3_offload     on a GPU

Each case runs in a process of its own for three optimizer steps on random clips of 4 s under the delay pattern, in bf16
on a GPU and fp32 on a CPU, without dropout (on a CPU attention with dropout keeps what a GPU never does). Measured is
the most that PyTorch's allocator held at one time; foretold are `least` and `total` of
`pipeline.training.run_estimate.MemoryEstimate`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.config.cli import compose
from pipeline.models.codec_gpt import CodecGPT, ModelConfig
from pipeline.tools.memory_table import CODEBOOKS, FRAME_RATE, PROMPT, markdown, shape
from pipeline.training import distributed
from pipeline.training.distributed import World
from pipeline.training.engine import build_engine, use_bf16
from pipeline.training.run_estimate import Hardware, MemoryEstimate, estimate_memory, parse_zero_config

ROOT = Path(__file__).parents[2]
FRAMES = 4 * FRAME_RATE


def case(told: argparse.Namespace, size: str, choice: str) -> tuple[int, MemoryEstimate]:
    """Bytes at the peak of three steps, and what was foretold."""
    words = [f"model={size}", f"deepspeed={choice}", f"trainer.micro_batch={told.micro_batch}"]
    words += [f"trainer.activation_checkpointing={told.checkpointing}", f"trainer.compile={told.compile}"]
    cfg, world = compose("train", words), distributed.init_distributed(600)
    config, cuda = replace(shape(size, "delay", FRAMES), dropout=0.0), world.device.type == "cuda"
    bf16 = use_bf16(cfg, world.device.type)
    setup = parse_zero_config(cfg.deepspeed.zero_optimization, bf16, Hardware("", cuda, 1, 1, 0, 0, 0))
    mode = "checkpointed" if told.checkpointing else "compiled" if told.compile else "eager"
    need = estimate_memory(config, setup, told.micro_batch, FRAMES, mode)
    if cuda:
        train(cfg, config, world)
        return torch.cuda.max_memory_allocated(), need
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        train(cfg, config, world)
    held = peak = 0
    for event in seen.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak, need


def train(cfg: Any, config: ModelConfig, world: World) -> None:
    """Build the engine as the trainer does, and take three steps."""
    clips = cfg.trainer.micro_batch
    codes = torch.randint(0, 1024, (clips, CODEBOOKS, FRAMES), device=world.device)
    prompt = torch.randn(clips, PROMPT, device=world.device)
    engine = build_engine(cfg, CodecGPT(config), world)
    for _ in range(3):
        nats, cells = engine(codes, None, prompt)
        loss = nats.sum() / cells.sum()
        del nats
        engine.backward(loss)
        engine.step()


def main() -> None:
    """Print the table; or, asked for one case, its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["tiny"])
    parser.add_argument("--deepspeed", nargs="+", default=["zero0", "zero1", "zero2", "zero3"])
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.case:
        peak, need = case(told, *told.case)
        print(json.dumps([peak, need.least, need.total]))
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    found = [["model", "deepspeed", f"measured on {device} (GiB)", "foretold: least", "total"]]
    for size in told.sizes:
        for choice in told.deepspeed:
            command = [sys.executable, "-m", "tests.benchmarks.bench_memory", *sys.argv[1:], "--case", size, choice]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stderr
            figures = json.loads(done.stdout.splitlines()[-1])
            found.append([f"{size}", choice, *(f"{figure / 2**30:.3f}" for figure in figures)])
    print(markdown(found))


if __name__ == "__main__":
    main()
