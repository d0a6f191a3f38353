"""How fast preprocessing is, against the usual loop and against the encoder's own limit, and how much memory it takes.

    python -m tests.benchmarks.bench_preprocess                   the table: about 4 minutes on 2 cores
    python -m tests.benchmarks.bench_preprocess --memory 20000    also peak memory at 1,000 and 20,000 clips
    python -m tests.benchmarks.bench_preprocess --device cuda     on a GPU

EnCodec's 24 kHz architecture with random weights, 8 codebooks, four-second files of 16 kHz, the same for all rows:

(a) the usual loop: load a file with soundfile and soxr, `model.encode` of the encodec package, default bandwidth
(b) ours on one device or process, from files to shards
(c) ours on all devices or cores
(d) the limit: our encoder alone, on batches that are ready in memory

Starting processes and loading models is not timed; rates are audio-seconds a second. No embedder takes part.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch

from pipeline.audio.embedders.base import Embedder
from pipeline.common.machine import num_cores
from pipeline.corpora import Clip
from pipeline.data.build_state import BuildPlan
from pipeline.data.shard import read_shard
from pipeline.data.storage import LocalStorage
from pipeline.preprocessing import encoder_pool
from pipeline.preprocessing.decode import DecodeOptions
from pipeline.preprocessing.encoder import EncodedBatch, Encoder
from pipeline.preprocessing.runner import BATCH_SIZE
from pipeline.preprocessing.shard_builder import JobIterator, ShardAssembler, ShardTask
from pipeline.preprocessing.shard_planner import ClipSpool, plan_shards
from tests.helpers.untrained_codec import untrained_codec, untrained_encodec

CODEBOOKS, SECONDS = 8, 4.0


class NoEmbedder(Embedder):
    """A vector of nothing, for the codec's speed alone."""

    name, weights, sample_rate, dim = "none", "", 24_000, 8
    best_batch = 1

    def embed(self, wav: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """wav [B, S] -> zeros [B, 8]."""
        return torch.zeros(len(wav), self.dim)


def load(device: str) -> Encoder:
    """What `load_encoder` does, with random weights."""
    if device == "cpu":
        torch.set_num_threads(1)
    return Encoder(untrained_codec(CODEBOOKS, device), NoEmbedder())


def write_files(folder: Path, count: int, seconds: float) -> list[Clip]:
    """Sounds of some notes and some noise, 16 bits at 16 kHz."""
    rng = np.random.default_rng(0)
    times = np.arange(round(16_000 * seconds)) / 16_000
    clips = []
    for i in range(count):
        pitches = 110 * 2 ** (rng.integers(0, 48, 3) / 12)
        wav = np.sin(2 * np.pi * pitches[:, None] * times).sum(0) * np.exp(-times) + 0.05 * rng.standard_normal(
            len(times)
        )
        soundfile.write(folder / f"{i:06d}.wav", 0.2 * wav, 16_000)
        clips.append(Clip(f"{i:06d}", str(folder / f"{i:06d}.wav"), "train"))
    return clips


def usual_loop(clips: list[Clip], device: str) -> tuple[float, dict[str, np.ndarray]]:
    """(a): audio-seconds a second, and the codes [K, T] of each clip."""
    model = untrained_encodec().to(device).eval()
    codes = {}
    with torch.no_grad():
        model.encode(torch.zeros(1, 1, 96_000, device=device))  # warms up
        start = time.perf_counter()
        for clip in clips:
            wav, rate = soundfile.read(clip.path, dtype="float32")
            wav = torch.from_numpy(soxr.resample(wav, rate, 24_000, quality="HQ"))[None, None].to(device)
            codes[clip.key] = model.encode(wav)[0][0][0].cpu().numpy()
    return len(clips) * SECONDS / (time.perf_counter() - start), codes


def ours(clips: list[Clip], out: Path, devices: list[str], readers: int) -> float:
    """(b), (c): audio-seconds a second once every encoder has given its first results."""
    store = LocalStorage(out)
    store.check_writable()
    spool = ClipSpool(out.parent)
    plan = plan_shards(clips, spool, 1000, None, BuildPlan({}, {"codec": {}}, "", []), list)
    tasks = [ShardTask(shard) for shard in plan.shards]
    reading = DecodeOptions(24_000, 60.0, BATCH_SIZE[devices[0].partition(":")[0]], 300.0)
    marks: list[tuple[float, int]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        ShardAssembler(store, tasks, plan.resolved, Path(folder), lambda _: None) as assembly,
        encoder_pool.EncoderPool(load, devices, readers, reading) as encoders,
    ):
        for encoded in timed(
            encoders.imap_unordered(iter(JobIterator(tasks, spool, Path(folder), reading.batch))), marks
        ):
            assembly.add(encoded)
    begin = 2 * len(devices)
    return (marks[-1][1] - marks[begin][1]) * SECONDS / (marks[-1][0] - marks[begin][0])


def timed(results: Iterator[EncodedBatch], marks: list[tuple[float, int]]) -> Iterator[EncodedBatch]:
    """The same results; marks gets the time and the count of clips so far, at each."""
    count = 0
    for encoded in results:
        assert not encoded.skipped, encoded.skipped
        count += encoded.num_clips
        marks.append((time.perf_counter(), count))
        yield encoded


def limit(clips: list[Clip], device: str) -> float:
    """(d): audio-seconds a second of batches that wait in memory."""
    codec = load(device).codec
    size = BATCH_SIZE[torch.device(device).type]
    wavs = [soxr.resample(soundfile.read(clip.path, dtype="float32")[0], 16_000, 24_000) for clip in clips]
    batches = [torch.from_numpy(np.stack(wavs[i : i + size]))[:, None] for i in range(0, len(wavs) - size + 1, size)]
    codec.encode(batches[0])
    start = time.perf_counter()
    for batch in batches:
        codec.encode(batch).cpu()
    return len(batches) * size * SECONDS / (time.perf_counter() - start)


def disagreement(clips: list[Clip], out: Path, device: str) -> float:
    """The share of codes that are not the package's, computed in full precision on the first clips."""
    torch.backends.cudnn.allow_tf32 = False  # the package leaves it on, and gets 2 % other codes by it
    theirs = usual_loop(clips[:64], device)[1]
    result = {sample.key: sample.codes for path in sorted(out.glob("*.tar")) for sample in read_shard(path)}
    assert result.keys() == {clip.key for clip in clips}
    return float(np.mean([(result[key] != codes[:CODEBOOKS]).mean() for key, codes in theirs.items()]))


def measured(function: Callable[..., float], *arguments: Any) -> tuple[float, float]:
    """What a function gives in a process of its own, and the GiB that this process and all it begins take at most.

    Shared pages count once; a GPU's memory does not count.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        child = pool.submit(os.getpid).result()
        result = pool.submit(function, *arguments)
        peak = 0
        while not result.done():
            peak = max(peak, sum(map(_pss, _family(child))))
            time.sleep(0.2)
        return result.result(), peak / 2**20


def _family(pid: int) -> list[int]:
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    ours = {pid}
    while more := {child for child, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sorted(ours)


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--files", type=int, default=160)
    parser.add_argument("--memory", type=int, default=0, help="clips at which memory is measured as well")
    args = parser.parse_args()
    device = "cuda:0" if args.device == "cuda" else "cpu"
    everything = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if device != "cpu" else ["cpu"] * num_cores()
    readers = encoder_pool.resolve_decode_workers("auto", everything)
    name = torch.cuda.get_device_name() if device != "cpu" else f"{num_cores()} cores"
    print(f"torch {torch.__version__}, {name}, {args.files} files of {SECONDS:g} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        clips = write_files(Path(folder), args.files, SECONDS)
        d, _ = measured(limit, clips, device)
        print(f"(d) the encoder alone, one {'thread' if device == 'cpu' else 'GPU'}  {d:8.1f}", flush=True)
        b, peak = measured(ours, clips, Path(folder) / "b", everything[:1], readers)
        print(f"(b) ours on one                    {b:8.1f}   {b / d:.0%} of (d), {peak:.2f} GiB", flush=True)
        a, _ = usual_loop(clips, device)
        print(f"(a) the usual loop                 {a:8.1f}", flush=True)
        c, peak = measured(ours, clips, Path(folder) / "c", everything, readers) if len(everything) > 1 else (b, peak)
        print(f"(c) ours on all {len(everything):<4}               {c:8.1f}   {c / a:.1f} x (a), {peak:.2f} GiB")
        print(f"codes that are not the package's: {disagreement(clips, Path(folder) / 'b', device):.4%}", flush=True)
    for count in (1000, args.memory) if args.memory else ():
        with tempfile.TemporaryDirectory() as folder:
            clips = write_files(Path(folder), count, 0.25)
            _, peak = measured(ours, clips, Path(folder) / "out", everything, readers)
            print(f"peak memory at {count:,} clips of 0.25 s: {peak:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
