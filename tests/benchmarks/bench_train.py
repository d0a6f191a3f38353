"""A training step from shards compared with that of the article, and its model FLOPs utilization (MFU).

    python -m tests.benchmarks.bench_train                                   # on a CPU: a tiny GPT-2
    python -m tests.benchmarks.bench_train --models small medium --batch 32  # on a GPU
    python -m tests.benchmarks.bench_train --growth                          # longer clips, larger batches

Same clips (4 s, 8 codebooks), same GPT-2, same batch:
  article   fp32; each step encodes its audio with the package's EnCodec (32 codebooks, of which 8 are used), keeps
            GPT-2's word embedding, counts inactive cells, plain AdamW
  ours      `pipeline.train`, from shards: bf16 and compiled layers on a GPU, fp32 on a CPU
MFU is `pipeline.models.model_stats.training_flops` divided by the rate of a large matrix product in bf16 (on a CPU
fp32), measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pipeline.config.cli import compose
from pipeline.data.manifest import Manifest
from pipeline.data.shard import Sample, ShardWriter
from pipeline.models import model_stats
from pipeline.models.codec_gpt import GPT2Config, GPT2Model
from pipeline.tools.memory_table import shape
from pipeline.train import main as train
from tests.helpers.untrained_codec import untrained_encodec

K, T, P = 8, 300, 768


def write_cache(folder: Path, clips: int, frames: int) -> None:
    """Random codes and prompts."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with ShardWriter(folder, "train-000000.tar") as shard:
        for i in range(clips):
            codes = rng.integers(0, 1024, (K, frames), dtype=np.uint16)
            shard.add(Sample(f"clip-{i}", codes, rng.normal(size=P).astype("<f2"), {}))
    codec = {"name": "encodec_24khz", "weights": "0" * 64, "sample_rate": 24000, "frame_rate": 75, "codebooks": K}
    embedder = {"name": "synthetic", "weights": "1" * 64, "sample_rate": 24000, "dim": P}
    Manifest({**codec, "codebook_size": 1024, "dtype": "float32"}, embedder, {}, {"train": [shard.info]}).save(folder)


def ours(model: str, batch: int, steps: int, overrides: list[str], frames: int = T) -> tuple[float, float]:
    """Milliseconds per step, and the fraction of it spent waiting for data."""
    with tempfile.TemporaryDirectory() as folder:
        write_cache(Path(folder) / "cache", 2000, frames)
        log_every = max(1, steps // 4)
        arguments = [
            "+exp=delay_gpt2", f"model={model}", f"shards={folder}/cache", f"run={folder}/run", "tracking=none",
            f"trainer.micro_batch={batch}", f"trainer.steps={steps}", f"trainer.log_every={log_every}",
            "trainer.val_every=0", "trainer.save_every=0", "audio_samples.clips=0", *overrides,
        ]  # fmt: skip
        train.task(arguments)  # type: ignore[attr-defined]
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/loss" in row][1:]  # the first is a warm-up
    return 1000 * batch / np.median([row["speed/clips_per_second"] for row in rows]), rows[-1]["speed/data_wait"]


def article(size: GPT2Config, batch: int, steps: int, device: torch.device) -> float:
    """Milliseconds per step of the article's training."""
    gpt = GPT2Model(size).to(device)
    codec = untrained_encodec().to(device).eval()
    codec.set_target_bandwidth(24.0)
    embed = torch.nn.Embedding(K * 1025, size.n_embd, device=device)
    head = torch.nn.Linear(size.n_embd, K * 1025, device=device)
    optimizer = torch.optim.AdamW([*gpt.parameters(), *embed.parameters(), *head.parameters()], lr=1e-4)
    wav, prompt = torch.randn(batch, 1, 96000, device=device) * 0.1, torch.randn(batch, 1, size.n_embd, device=device)
    offsets = torch.arange(K, device=device)[None, :, None] * 1025

    def step() -> None:
        with torch.no_grad():
            codes = codec.encode(wav)[0][0][:, :K]
        padded = torch.nn.functional.pad(codes + 1, (0, K))
        late = torch.arange(K, device=device)[None, :, None]
        at = (torch.arange(padded.shape[2], device=device)[None, None] - late) % padded.shape[2]
        tokens = padded.gather(2, at.expand(batch, -1, -1))
        hidden = gpt(inputs_embeds=torch.cat([prompt, embed(tokens + offsets).sum(1)], 1)).last_hidden_state
        logits = head(hidden).view(batch, -1, K, 1025).transpose(1, 3)[:, :, :, :-1]
        torch.nn.functional.cross_entropy(logits, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    return timed(step, steps, device)


def timed(step: object, steps: int, device: torch.device) -> float:
    """Median duration of a call in milliseconds, after two warm-up calls."""
    durations = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        step()  # type: ignore[operator]
        if device.type == "cuda":
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - start)
    return 1000 * float(np.median(durations[2:]))


def matrix_rate(device: torch.device) -> float:
    """Operations per second of a large matrix product in the precision of training."""
    n, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
    a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / (timed(lambda: a @ b, 10, device) / 1000)


def measure(models: list[str], batch: int, steps: int, overrides: list[str]) -> None:
    """Print a row per model."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = matrix_rate(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}: {rate / 1e12:.2f} TFLOP/s of matrix product; {batch} clips of 4 s per step")
    print("| model | article ms | ours ms | ratio | MFU | data wait |\n|---|---|---|---|---|---|")
    for model in models:
        config = compose("train", [f"model={model}"]).model
        size = GPT2Config(n_embd=config.width, n_layer=config.layers, n_head=config.heads)
        article_ms = article(size, batch, max(4, steps // 10), device)
        our_ms, data_wait = ours(model, batch, steps, overrides)
        mfu = batch * model_stats.training_flops(shape(model, "delay", T), T) / (our_ms / 1000) / rate
        ratio = article_ms / our_ms
        print(f"| {model} | {article_ms:.1f} | {our_ms:.1f} | {ratio:.1f} | {mfu:.0%} | {data_wait:.2%} |", flush=True)


def grow(model: str, batch: int, steps: int, overrides: list[str]) -> None:
    """Print milliseconds per step and per clip for longer and longer clips, then for larger and larger batches."""
    print("| clips per step | frames | ms per step | ms per clip | codes/s | data wait |\n|---|---|---|---|---|---|")
    shapes = [(batch, frames) for frames in (75, 150, 300, 600)] + [(n, T) for n in (1, 2, 2 * batch, 4 * batch)]
    for clips, frames in shapes:
        step_ms, data_wait = ours(model, clips, steps, overrides, frames)
        rate = clips * frames * K / step_ms * 1000
        print(
            f"| {clips} | {frames} | {step_ms:.1f} | {step_ms / clips:.1f} | {rate:,.0f} | {data_wait:.2%} |",
            flush=True,
        )


def main() -> None:
    """Print the table, or how time grows with length and batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("settings", nargs="*", help="settings of pipeline.train")
    args = parser.parse_args()
    if args.growth:
        grow(args.models[0], args.batch, args.steps, args.settings)
    else:
        measure(args.models, args.batch, args.steps, args.settings)


if __name__ == "__main__":
    main()
