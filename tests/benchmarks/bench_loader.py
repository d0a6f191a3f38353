"""Shuffled batches of a dataset per CPU-second: our loader, others, and a gather from an array in memory.

    python -m tests.benchmarks.bench_loader                     the table: two minutes
    python -m tests.benchmarks.bench_loader --growth            our loader against the number of shards

One process, one thread, warm page cache, CPU time of the process. All read the same clips (8 x 300 codes, a prompt of
768 float16, and JSON) and return batches of 16 as tensors, codes [16, 8, 300] and prompts [16, 768]. Each loader runs
--rounds times, alternating with the others, and its best time counts. The limit is the same gather from two arrays in
memory, in a given order. Loaders that are not installed are skipped. They pin older versions of packages that we use
too, but run with ours, so install them with --no-deps:

    pip install --no-deps litdata mosaicml-streaming torchvision lightning-utilities tifffile obstore Brotli xxhash \
        zstd python-snappy cramjam catalogue
"""

from __future__ import annotations

import argparse
import itertools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from pipeline.data.dataloader import ShardDataLoader
from pipeline.data.dataset import ShardedDataset
from pipeline.data.manifest import Manifest
from pipeline.data.sampler import EpochSampler
from pipeline.data.shard import Sample, ShardWriter

K, T, P, BATCH = 8, 300, 768, 16
_CLIPS_PER_SHARD = 250  # with --growth
CODEC = {"name": "x", "weights": "0", "sample_rate": 24000, "frame_rate": 75, "codebooks": K, "codebook_size": 1024}
EMBEDDER = {"name": "x", "weights": "0", "sample_rate": 24000, "dim": P}


def clips(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint16 [N, K, T] and prompts float16 [N, P]."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 1024, (count, K, T), np.uint16), rng.normal(size=(count, P)).astype(np.float16)


def metadata(n: int) -> dict:
    """The metadata of a clip of NSynth."""
    labels = {"pitch": n % 128, "velocity": 100, "instrument_family": "brass", "instrument_source": "acoustic"}
    path = f"audio/brass_acoustic_{n:06d}.wav"
    return {"path": path, "start": 0.0, "duration": T / 75, "split": "train", "labels": labels}


def write_ours(folder: Path, codes: np.ndarray, prompts: np.ndarray, shards: int) -> None:
    """Write a dataset as preprocessing does."""
    folder.mkdir()
    infos = []
    for s, rows in enumerate(np.array_split(np.arange(len(codes)), shards)):
        with ShardWriter(folder, f"train-{s:06d}.tar") as shard:
            for n in rows.tolist():
                shard.add(Sample(f"clip-{n}", codes[n], prompts[n], metadata(n)))
        infos.append(shard.info)
    Manifest(CODEC, EMBEDDER, {}, {"train": infos}).save(folder)


def ours(folder: Path) -> Callable[[], Iterator]:
    """The loader of training, without its threads."""
    split = ShardedDataset(folder, "train")
    stream = ShardDataLoader([split], EpochSampler(split.clips_per_shard, 0, 256), batch_size=BATCH, num_threads=0)
    return lambda: itertools.islice(stream.batches(), len(split) // BATCH)


def webdataset(folder: Path, decoded: bool) -> Callable[[], Iterable]:
    """The stock pipeline, or one that reads arrays directly from their bytes."""
    import webdataset as wds

    urls = sorted(map(str, folder.glob("*.tar")))
    shuffled = wds.WebDataset(urls, shardshuffle=len(urls), seed=0, empty_check=False).shuffle(1000, seed=0)
    if decoded:
        return lambda: shuffled.decode().to_tuple("codes.npy", "prompt.npy").batched(BATCH).map(_tensors)
    return lambda: shuffled.map(_from_bytes).batched(BATCH).map(_tensors)


def _from_bytes(sample: dict) -> tuple[np.ndarray, np.ndarray]:
    codes = np.frombuffer(sample["codes.npy"], np.uint16, K * T, 128).reshape(K, T)
    return codes, np.frombuffer(sample["prompt.npy"], np.float16, P, 128)


def _tensors(batch: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.as_tensor(np.asarray(batch[0])), torch.as_tensor(np.asarray(batch[1]))


def litdata(folder: Path, codes: np.ndarray, prompts: np.ndarray) -> Callable[[], Iterable]:
    """litdata: its own writer, arrays of fixed size, shuffled, its own loader."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=2**26)
    for n in range(len(codes)):
        writer[n] = {"codes": codes[n].astype(np.int16), "prompt": prompts[n]}
    writer.done()
    writer.merge(1)
    dataset = StreamingDataset(str(folder), shuffle=True, seed=0)
    return lambda: StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0)


def mosaic(folder: Path, codes: np.ndarray, prompts: np.ndarray) -> Callable[[], Iterable]:
    """mosaicml-streaming: its own writer, arrays of known shape, shuffled, PyTorch's loader as in its guide."""
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    columns = {"codes": f"ndarray:int16:{K},{T}", "prompt": f"ndarray:float16:{P}"}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for n in range(len(codes)):
            writer.write({"codes": codes[n].astype(np.int16), "prompt": prompts[n]})
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    return lambda: DataLoader(dataset, batch_size=BATCH, num_workers=0)


def gather(codes: np.ndarray, prompts: np.ndarray) -> Callable[[], Iterator]:
    """Two arrays in memory, in an order that is computed beforehand."""
    codes, rows = codes.view(np.int16), np.random.default_rng(0).permutation(len(codes)).reshape(-1, BATCH)
    return lambda: (
        (torch.from_numpy(codes.take(row, 0)), torch.from_numpy(prompts.take(row, 0))) for row in rows
    )  # take is faster than indexing


def contenders(folder: Path, count: int) -> dict[str, Callable[[], Iterable]]:
    """All loaders that are installed; each returns the batches of one epoch."""
    codes, prompts = clips(count)
    write_ours(folder / "ours", codes, prompts, max(1, count // 1000))
    rows: dict[str, Callable[[], Iterable]] = {
        "webdataset, .decode()": webdataset(folder / "ours", decoded=True),
        "webdataset, arrays from bytes": webdataset(folder / "ours", decoded=False),
    }
    for name, make in (("litdata", litdata), ("mosaicml-streaming", mosaic)):
        try:
            rows[name] = make(folder / name, codes, prompts)
        except ImportError as error:
            print(f"{name} is skipped: {error}")
    rows["ours"] = ours(folder / "ours")
    rows["two arrays in memory (the limit)"] = gather(codes, prompts)
    return rows


def rate(epoch: Callable[[], Iterable], count: int) -> float:
    """Clips per CPU-second of one epoch, which must be complete."""
    start, num_clips = time.process_time(), 0
    for batch in epoch():
        codes = batch.codes if hasattr(batch, "codes") else batch["codes"] if isinstance(batch, dict) else batch[0]
        num_clips += len(codes)
    seconds = time.process_time() - start
    assert num_clips >= count - BATCH, num_clips
    return num_clips / seconds


def compare(folder: Path, count: int, rounds: int) -> None:
    """Print the table."""
    rows = contenders(folder, count)
    best = dict.fromkeys(rows, 0.0)
    for _ in range(rounds):
        for name, epoch in rows.items():
            best[name] = max(best[name], rate(epoch, count))
    stock = best["webdataset, .decode()"]
    for name, clip_rate in best.items():
        print(f"{name:36} {clip_rate:11,.0f} clips/CPU-s {clip_rate / stock:8.1f} x")
    ours_rate = best.pop("ours")
    limit = best.pop("two arrays in memory (the limit)")
    print(
        f"ours: {ours_rate / stock:.1f} x stock webdataset, {ours_rate / max(best.values()):.1f} x the best other, ",
        end="",
    )
    print(f"{ours_rate / limit:.0%} of the limit")


def grow(folder: Path, numbers: list[int], rounds: int) -> None:
    """Print rates for more and more shards: of the first epoch, which opens them, and the best of later epochs."""
    print(f"shards of {_CLIPS_PER_SHARD} clips   clips/CPU-s, first epoch   later ones   CPU-s until the first batch")
    for shards in numbers:
        count = shards * _CLIPS_PER_SHARD // BATCH * BATCH
        write_ours(folder / str(shards), *clips(count), shards)
        start = time.process_time()
        next(iter(ours(folder / str(shards))()))
        first_batch = time.process_time() - start
        epoch = ours(folder / str(shards))
        opening, *later = (rate(epoch, count) for _ in range(1 + rounds))
        print(f"{shards:20,} {opening:26,.0f} {max(later):12,.0f} {first_batch:16.3f}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 100, 1000], help="for --growth")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        if args.growth:
            grow(Path(folder), args.shards, args.rounds)
        else:
            compare(Path(folder), args.clips // BATCH * BATCH, args.rounds)


if __name__ == "__main__":
    main()
