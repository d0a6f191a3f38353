"""Memory that training really takes, compared with the estimates of the preflight.

    python -m tests.benchmarks.bench_memory                      tiny, on one rank: a minute on a CPU
    python -m tests.benchmarks.bench_memory --sizes small medium large xl --deepspeed zero1 zero3_offload     on a GPU

Each case runs in a new process: three optimizer steps on random clips of 4 s under the delay pattern, in bf16 on a GPU
and fp32 on a CPU, without dropout (on a CPU, attention with dropout stores what a GPU never stores). The measurement is
the peak of PyTorch's allocator; the estimates are `least` and `total` of
`pipeline.training.memory.MemoryEstimate`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.config.cli import load_settings
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.model_config import ModelConfig
from pipeline.tools.memory_table import FRAMES, PROMPT, markdown, shape
from pipeline.training import distributed
from pipeline.training.context import RunContext
from pipeline.training.engine import build_engine
from pipeline.training.memory import MemoryEstimate, ShardingConfig, estimate_memory
from pipeline.training.settings import TrainSettings

ROOT = Path(__file__).parents[2]


def measure_case(args: argparse.Namespace, size: str, choice: str) -> tuple[int, MemoryEstimate]:
    """Peak bytes of three steps, and the estimate."""
    overrides = [f"model={size}", f"deepspeed={choice}", f"trainer.micro_batch={args.micro_batch}"]
    overrides += [f"trainer.activation_checkpointing={args.checkpointing}", f"trainer.compile={args.compile}"]
    settings = load_settings(TrainSettings, overrides)
    context = RunContext(settings, Path(settings.run), distributed.init_distributed(600))
    config, is_cuda = replace(shape(size, "delay", FRAMES), dropout=0.0), context.world.device.type == "cuda"
    sharding = ShardingConfig.of(settings.deepspeed.zero_optimization, context.bf16, 1, 1)
    mode = "checkpointed" if args.checkpointing else "compiled" if args.compile else "eager"
    estimate = estimate_memory(config, sharding, args.micro_batch, FRAMES, mode)
    if is_cuda:
        train(context, config)
        return torch.cuda.max_memory_allocated(), estimate
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train(context, config)
    allocated = peak = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak = max(peak, allocated)
    return peak, estimate


def train(context: RunContext, config: ModelConfig) -> None:
    """Build the engine as the trainer does, and run three steps."""
    clips, world = context.settings.trainer.micro_batch, context.world
    codes = torch.randint(0, 1024, (clips, config.codebooks, FRAMES), device=world.device)
    prompt = torch.randn(clips, PROMPT, device=world.device)
    engine = build_engine(context, CodecGPT(config))
    for _ in range(3):
        loss_sums, num_tokens = engine(codes, None, {"prompt": prompt})
        loss = loss_sums.sum() / num_tokens.sum()
        del loss_sums
        engine.backward(loss)
        engine.step()


def main() -> None:
    """Print the table; or, in a process of one case, its three numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["tiny"])
    parser.add_argument("--deepspeed", nargs="+", default=["zero0", "zero1", "zero2", "zero3"])
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        peak, estimate = measure_case(args, *args.case)
        print(json.dumps([peak, estimate.least, estimate.total]))
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    table = [["model", "deepspeed", f"measured on {device} (GiB)", "estimate: least", "total"]]
    for size in args.sizes:
        for choice in args.deepspeed:
            command = [sys.executable, "-m", "tests.benchmarks.bench_memory", *sys.argv[1:], "--case", size, choice]
            process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
            assert process.returncode == 0, process.stderr
            numbers = json.loads(process.stdout.splitlines()[-1])
            table.append([size, choice, *(f"{number / 2**30:.3f}" for number in numbers)])
    print(markdown(table))


if __name__ == "__main__":
    main()
