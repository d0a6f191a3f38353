"""A training step from the cache against the article's way, and how near it comes to the device's matrix rate.

    python -m tests.benchmarks.bench_train                                   # on a CPU: a tiny GPT-2
    python -m tests.benchmarks.bench_train --models small medium --batch 32  # on a GPU
    python -m tests.benchmarks.bench_train --growth                          # longer clips, larger batches

Same clips (4 s, 8 codebooks), same GPT-2, same batch:
  article   fp32; each step encodes its audio with the package's EnCodec (32 codebooks, 8 kept), keeps GPT-2's word
            embedding, counts inactive cells, plain AdamW
  ours      `pipeline.train` itself, from shards: bf16 and compiled layers on a GPU, fp32 on a CPU
MFU is `pipeline.models.model_stats.operations`, over the rate of a large bf16
(on a CPU fp32) matrix product measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pipeline.audio.codecs.encodec import untrained_encodec
from pipeline.config.cli import compose
from pipeline.data.manifest import Manifest
from pipeline.data.shard import Sample, ShardWriter
from pipeline.models import model_stats
from pipeline.models.codec_gpt import GPT2Config, GPT2Model
from pipeline.tools.memory_table import shape
from pipeline.train import main as train

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
    embedder = {"name": "made up", "weights": "1" * 64, "sample_rate": 24000, "dim": P}
    Manifest({**codec, "codebook_size": 1024, "dtype": "float32"}, embedder, {}, {"train": [shard.info]}).save(folder)


def ours(model: str, batch: int, steps: int, words: list[str], frames: int = T) -> tuple[float, float]:
    """Milliseconds a step, and the share of it that waited for data."""
    with tempfile.TemporaryDirectory() as folder:
        write_cache(Path(folder) / "cache", 2000, frames)
        row_every = max(1, steps // 4)
        cfg = compose("train", [
            "+exp=delay_gpt2", f"model={model}", f"shards={folder}/cache", f"run={folder}/run", "tracking=none",
            f"trainer.micro_batch={batch}", f"trainer.steps={steps}", f"trainer.log_every={row_every}",
            "trainer.val_every=0", "trainer.save_every=0", "audio_samples.clips=0", *words,
        ])  # fmt: skip
        train.task(cfg)  # type: ignore[attr-defined]
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/loss" in row][1:]  # the first warms up
    return 1000 * batch / np.median([row["speed/clips_per_second"] for row in rows]), rows[-1]["speed/data_wait"]


def article(size: GPT2Config, batch: int, steps: int, device: torch.device) -> float:
    """Milliseconds a step as the article trains."""
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
    """The median of so many calls in milliseconds, after two that warm up."""
    took = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        step()  # type: ignore[operator]
        if device.type == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return 1000 * float(np.median(took[2:]))


def matrix_rate(device: torch.device) -> float:
    """Operations a second of a large matrix product in the precision of training."""
    n, kind = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
    a, b = torch.randn(n, n, device=device, dtype=kind), torch.randn(n, n, device=device, dtype=kind)
    return 2 * n**3 / (timed(lambda: a @ b, 10, device) / 1000)


def measure(models: list[str], batch: int, steps: int, words: list[str]) -> None:
    """Print a row a model."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = matrix_rate(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}: {rate / 1e12:.2f} TFLOP/s of matrix product; {batch} clips of 4 s a step")
    print("| model | article ms | ours ms | ratio | MFU | data wait |\n|---|---|---|---|---|---|")
    for model in models:
        config = compose("train", [f"model={model}"]).model
        size = GPT2Config(n_embd=config.width, n_layer=config.layers, n_head=config.heads)
        then = article(size, batch, max(4, steps // 10), device)
        now, wait = ours(model, batch, steps, words)
        mfu = batch * model_stats.training_flops(shape(model, "delay", T), T) / (now / 1000) / rate
        print(f"| {model} | {then:.1f} | {now:.1f} | {then / now:.1f} | {mfu:.0%} | {wait:.2%} |", flush=True)


def grow(model: str, batch: int, steps: int, words: list[str]) -> None:
    """Print milliseconds a step and a clip for clips of more and more frames, then for larger and larger batches."""
    print("| clips a step | frames | ms a step | ms a clip | codes a second | data wait |\n|---|---|---|---|---|---|")
    shapes = [(batch, frames) for frames in (75, 150, 300, 600)] + [(n, T) for n in (1, 2, 2 * batch, 4 * batch)]
    for clips, frames in shapes:
        took, wait = ours(model, clips, steps, words, frames)
        rate = clips * frames * K / took * 1000
        print(f"| {clips} | {frames} | {took:.1f} | {took / clips:.1f} | {rate:,.0f} | {wait:.2%} |", flush=True)


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
