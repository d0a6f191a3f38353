"""Speed of codecs and embedders, compared with the encodec package, and whether the codes are equal.

    python -m tests.benchmarks.bench_codec                     the table: about a minute on 2 cores
    python -m tests.benchmarks.bench_codec --threads 1
    python -m tests.benchmarks.bench_codec --device cuda       on a GPU

Four-second clips in memory; EnCodec's 24 kHz architecture and EnCodecMAE v1 base with random weights,
8 codebooks unless the row says otherwise. Each row is run --rounds times, alternating with all others, and its
best time counts: audio-seconds per second. Preprocessing from files to shards is measured by bench_preprocess.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.audio.codecs import load_codec
from pipeline.audio.embedders import load_embedder
from pipeline.audio.encodec.package import EncodecModel
from pipeline.audio.encodecmae.embedder import EncodecMaeEmbedder
from pipeline.audio.encodecmae.model import Architecture, EncodecFrames, EncodecMae
from pipeline.audio.precision import full_precision
from tests.helpers.decode_stream import decode_stream
from tests.helpers.untrained_codec import untrained_codec, untrained_encodec

SECONDS, RATE, CODEBOOKS = 4.0, 24_000, 8


def clips(count: int) -> Tensor:
    """Chords and noise: [B, 1, S]."""
    random = torch.Generator().manual_seed(0)
    seconds = torch.arange(round(SECONDS * RATE)) / RATE
    pitches = 110 * 2 ** (torch.rand(count, 3, 1, generator=random) * 4)
    noise = torch.randn(count, len(seconds), generator=random)
    return (0.2 * (torch.sin(2 * torch.pi * pitches * seconds).sum(1) * torch.exp(-seconds)) + 0.01 * noise)[:, None]


def encode(model: EncodecModel, wav: Tensor, bandwidth: float) -> Tensor:
    """The package's codes [B, K, T], encoded clip by clip."""
    model.set_target_bandwidth(bandwidth)
    return torch.cat([model.encode(row)[0][0] for row in wav.split(1)])


def base_embedder(device: str) -> EncodecMaeEmbedder:
    """EnCodecMAE v1 base with random weights."""
    arch = Architecture(dim=768, layers=10, heads=12, head_dim=64, ffn=4096, mel=None, shortest_tail=0)
    model = EncodecMae(arch, EncodecFrames(untrained_encodec().encoder), 128)
    return EncodecMaeEmbedder("untrained", model.eval().requires_grad_(False), "random", device)


def contenders(device: str, count: int) -> tuple[dict[str, Callable[[], object]], float]:
    """The functions to time, each on `count` clips, and the fraction of our codes that equal the package's."""
    package, ours = untrained_encodec().to(device), untrained_codec(CODEBOOKS, device)
    embedded = load_codec("encodec_embedded", CODEBOOKS, device=device)
    tiny, base = load_embedder("encodecmae_tiny", device=device), base_embedder(device)
    wav = clips(count).to(device)
    with full_precision(torch.device(device)):  # else PyTorch uses TF32 in convolutions, and 2 % of the codes differ
        codes = encode(package, wav, 6.0)
    same = (ours.encode(wav) == codes).float().mean().item()

    def in_batches(function: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Callable[[], object]:
        return lambda: [function(batch) for batch in x.split(size)]

    rows = {
        "package: encode, one by one, 32 codebooks": lambda: encode(package, wav, 24.0),
        "package: encode, one by one": lambda: encode(package, wav, 6.0),
        "ours: encode, one by one": in_batches(ours.encode, wav, 1),
        f"ours: encode, batches of {ours.best_batch}": in_batches(ours.encode, wav, ours.best_batch),
        "package: decode, one by one": lambda: [package.decode([(row, None)]) for row in codes.split(1)],
        "ours: decode, one by one": in_batches(ours.decode, codes, 1),
        f"ours: decode, batches of {ours.best_batch}": in_batches(ours.decode, codes, ours.best_batch),
        "ours: decode, streamed by 25 frames": lambda: [list(decode_stream(ours, codes.split(25, dim=-1)))],
        f"embedded: encode, batches of {embedded.best_batch}": in_batches(embedded.encode, wav, embedded.best_batch),
        f"embedded: decode, batches of {embedded.best_batch}": in_batches(embedded.decode, codes, embedded.best_batch),
        f"EnCodecMAE tiny, batches of {tiny.best_batch}": in_batches(tiny.embed, wav[:, 0], tiny.best_batch),
        f"EnCodecMAE base, batches of {base.best_batch}": in_batches(base.embed, wav[:, 0], base.best_batch),
    }
    return rows, same


@torch.inference_mode()
def main() -> None:
    """Time all functions and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clips", type=int, help="8 on a CPU, 256 on a GPU")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    on_gpu = args.device.startswith("cuda")
    count = args.clips or (256 if on_gpu else 8)
    rows, same = contenders(args.device, count)
    best = dict.fromkeys(rows, float("inf"))
    for _ in range(args.rounds):
        for name, run in rows.items():
            start = time.perf_counter()
            run()
            if on_gpu:
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - start)
    print(f"{count} clips of {SECONDS:g} s on {args.device}, {args.threads} threads, torch {torch.__version__}")
    slowest = best["package: encode, one by one, 32 codebooks"]
    for name, seconds in best.items():
        print(f"{name:44} {count * SECONDS / seconds:10,.1f} x real time  {slowest / seconds:6.2f}")
    print(f"{same:.4%} of our codes are the package's")


if __name__ == "__main__":
    main()
