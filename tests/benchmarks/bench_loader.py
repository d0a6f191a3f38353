"""Batches of a cache, in shuffled order, for a second of CPU: our stream beside others, and a plain array's gather.

    python -m tests.benchmarks.bench_loader                     the table: two minutes
    python -m tests.benchmarks.bench_loader --growth            our loader against the number of shards

One process, one thread, warm page cache, time of the process's CPU. The same clips for all: 8 x 300 codes, a prompt of
768 halves, and json; what comes out are 16 clips as tensors, codes [16, 8, 300] and prompts [16, 768]. Each row is run
--rounds times in turns with the others, and its best time counts. The limit is the same gather from two arrays in
memory, without an order to work out. Peers that are not installed are left out. They pin older versions of what they
share with us; --no-deps leaves ours alone, and they run all the same:

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
_GROWN = 250  # clips of a shard where the number of shards grows
CODEC = {"name": "x", "weights": "0", "sample_rate": 24000, "frame_rate": 75, "codebooks": K, "codebook_size": 1024}
EMBEDDER = {"name": "x", "weights": "0", "sample_rate": 24000, "dim": P}


def clips(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint16 [N, K, T] and prompts float16 [N, P]."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 1024, (count, K, T), np.uint16), rng.normal(size=(count, P)).astype(np.float16)


def info(n: int) -> dict:
    """What a clip of NSynth has beside its arrays."""
    labels = {"pitch": n % 128, "velocity": 100, "instrument_family": "brass", "instrument_source": "acoustic"}
    path = f"audio/brass_acoustic_{n:06d}.wav"
    return {"path": path, "start": 0.0, "duration": T / 75, "split": "train", "labels": labels}


def write_ours(folder: Path, codes: np.ndarray, prompts: np.ndarray, shards: int) -> None:
    """A cache, as preprocessing leaves it."""
    folder.mkdir()
    infos = []
    for s, rows in enumerate(np.array_split(np.arange(len(codes)), shards)):
        with ShardWriter(folder, f"train-{s:06d}.tar") as shard:
            for n in rows.tolist():
                shard.add(Sample(f"clip-{n}", codes[n], prompts[n], info(n)))
        infos.append(shard.info)
    Manifest(CODEC, EMBEDDER, {}, {"train": infos}).save(folder)


def ours(folder: Path) -> Callable[[], Iterator]:
    """The stream that training reads, without its threads."""
    split = ShardedDataset(folder, "train")
    stream = ShardDataLoader([split], EpochSampler(split.clips_per_shard, 0, 256), batch_size=BATCH, num_threads=0)
    return lambda: itertools.islice(stream.batches(), len(split) // BATCH)


def webdataset(folder: Path, decoded: bool) -> Callable[[], Iterable]:
    """The stock pipeline, or one that takes arrays from their bytes as they lie."""
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
    """Written by its own writer as arrays of fixed size; shuffled, read by its own loader."""
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
    """Written by its own writer as arrays of known shape; shuffled, read by torch's loader, as its guide does."""
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    columns = {"codes": f"ndarray:int16:{K},{T}", "prompt": f"ndarray:float16:{P}"}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for n in range(len(codes)):
            writer.write({"codes": codes[n].astype(np.int16), "prompt": prompts[n]})
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    return lambda: DataLoader(dataset, batch_size=BATCH, num_workers=0)


def gather(codes: np.ndarray, prompts: np.ndarray) -> Callable[[], Iterator]:
    """Two arrays in memory, rows drawn beforehand."""
    codes, rows = codes.view(np.int16), np.random.default_rng(0).permutation(len(codes)).reshape(-1, BATCH)
    return lambda: (
        (torch.from_numpy(codes.take(row, 0)), torch.from_numpy(prompts.take(row, 0))) for row in rows
    )  # take is quicker than indexing


def contenders(folder: Path, count: int) -> dict[str, Callable[[], Iterable]]:
    """All that can be run, each giving the batches of one epoch."""
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
            print(f"{name} is left out: {error}")
    rows["ours"] = ours(folder / "ours")
    rows["two arrays in memory (the limit)"] = gather(codes, prompts)
    return rows


def rate(epoch: Callable[[], Iterable], count: int) -> float:
    """Clips a CPU-second of one epoch, which must come whole."""
    began, seen = time.process_time(), 0
    for batch in epoch():
        found = batch.codes if hasattr(batch, "codes") else batch["codes"] if isinstance(batch, dict) else batch[0]
        seen += len(found)
    taken = time.process_time() - began
    assert seen >= count - BATCH, seen
    return seen / taken


def compare(folder: Path, count: int, rounds: int) -> None:
    """The table."""
    rows = contenders(folder, count)
    best = dict.fromkeys(rows, 0.0)
    for _ in range(rounds):
        for name, epoch in rows.items():
            best[name] = max(best[name], rate(epoch, count))
    stock = best["webdataset, .decode()"]
    for name, found in best.items():
        print(f"{name:36} {found:11,.0f} clips/CPU-s {found / stock:8.1f} x")
    mine = best.pop("ours")
    limit = best.pop("two arrays in memory (the limit)")
    print(f"ours: {mine / stock:.1f} x stock webdataset, {mine / max(best.values()):.1f} x the best other, ", end="")
    print(f"{mine / limit:.0%} of the limit")


def grow(folder: Path, numbers: list[int], rounds: int) -> None:
    """More and more shards of as many clips each: the first epoch, which opens them, and the best of those after it."""
    print(f"shards of {_GROWN} clips   clips/CPU-s, first epoch   later ones   CPU-s until the first batch")
    for shards in numbers:
        count = shards * _GROWN // BATCH * BATCH
        write_ours(folder / str(shards), *clips(count), shards)
        began = time.process_time()
        next(iter(ours(folder / str(shards))()))
        first = time.process_time() - began
        epoch = ours(folder / str(shards))
        opening, *later = (rate(epoch, count) for _ in range(1 + rounds))
        print(f"{shards:20,} {opening:26,.0f} {max(later):12,.0f} {first:16.3f}", flush=True)


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
