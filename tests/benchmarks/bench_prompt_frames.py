"""Prompt fidelity over time of models that read one prompt vector a clip, and of models that read several.

    python -m tests.benchmarks.bench_prompt_frames notes                       # 2,400 rendered notes of 1.5 s
    python -m tests.benchmarks.bench_prompt_frames recordings --steps 400      # 60 recordings, cut to clips of 2 s

Each model is trained on the same clips for the same number of steps. Then it generates from the prompts of clips that
it was not trained on. The fidelity of a quarter is the cosine similarity of the embedder's features of that quarter, of
the generated sound and of the original. Ceiling: the codec's reconstruction; floor: the same quarter of other clips.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from pipeline.audio import metrics
from pipeline.audio.embedders.base import pad_sounds
from pipeline.data.dataset import ShardedDataset
from pipeline.data.shard import stack_prompts
from pipeline.evaluation.evaluator import generate_all
from pipeline.evaluation.reference_clips import sample_reference_clips
from pipeline.generation.loaded_run import LoadedRun, load_run
from pipeline.generation.prompts import decode_codes
from pipeline.generation.settings import sampling_settings
from tests.helpers.ranks import single_rank
from tests.helpers.real_recordings import download_recordings
from tests.helpers.trained_run import run_command

QUARTERS = 4
CHEAP = ("codec=encodec_embedded", "codec.codebooks=4", "embedder=encodecmae_tiny", "examine_clips=0")


def encode(corpus: str, clips: int, folder: Path, vectors: int) -> Path:
    """The dataset of a corpus with this many prompt vectors a clip."""
    out = folder / f"shards-{vectors}"
    if corpus == "notes":
        data = ["data=notes", f"data.root={folder / 'notes'}", f"data.clips={clips}", "data.seconds=1.5"]
    else:
        sounds = folder / "recordings"
        if not sounds.exists():
            download_recordings(sounds, folder / "package")
        data = ["data=folder", f"data.root={sounds}", "data.segment_seconds=2", "data.min_seconds=1", "data.valid=0.2"]
    settings = [f"data.scan_cache_dir={folder / 'scan'}", "data.test=0", f"out={out}", f"embedder.frames={vectors}"]
    assert run_command("preprocess", *data, *settings, *CHEAP) == 0
    return out


def train(shards: Path, run: Path, steps: int) -> LoadedRun:
    """The model of the quickstart, trained for this many steps."""
    settings = [f"shards={shards}", f"run={run}", f"trainer.steps={steps}", "trainer.micro_batch=16"]
    quiet = ["trainer.val_every=0", "trainer.save_every=0", "audio_samples.clips=0", "tracking=none"]
    with single_rank():
        run_command("train", "+exp=quickstart", *settings, *quiet)
    return load_run(run)


def embed_quarters(run: LoadedRun, codes: list[torch.Tensor]) -> np.ndarray:
    """The features of each quarter of decoded clips [K, T]: [N, 4, P]."""
    run.embedder.frames = QUARTERS
    wavs = decode_codes(run.codec, codes)
    return run.embedder.embed_frames(*pad_sounds(run.embedder, wavs, run.codec.sample_rate)).numpy()


def row(name: str, quarters: np.ndarray, originals: np.ndarray) -> str:
    """A row of the table: the fidelity of each quarter [N, 4, P], and of the whole."""
    cosines = [*metrics.cosine(quarters, originals).mean(0), metrics.cosine(quarters.mean(1), originals.mean(1)).mean()]
    return f"| {name} | " + " | ".join(f"{value:.3f}" for value in cosines) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", choices=["notes", "recordings"])
    parser.add_argument("--clips", type=int, default=2400, help="notes to render")
    parser.add_argument("--steps", type=int, default=600, help="training steps of 16 clips")
    parser.add_argument("--vectors", type=int, nargs="+", default=[1, 4], help="prompt vectors a clip, one model each")
    parser.add_argument("--n", type=int, default=128, help="clips to generate, at most")
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--folder", type=Path, help="where datasets and runs are kept; by default they are deleted")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        references = ShardedDataset(encode(args.corpus, args.clips, folder, QUARTERS), "valid")
        sampling, rows = sampling_settings(temperature=0.7, guidance=args.guidance), list[str]()
        for vectors in args.vectors:
            shards = encode(args.corpus, args.clips, folder, vectors)
            run = train(shards, folder / f"run-{vectors}", args.steps)
            clips = sample_reference_clips(ShardedDataset(shards, "valid"), args.n, 0, run, 10_000)
            originals = stack_prompts(
                clip.sample for clip in sample_reference_clips(references, args.n, 0, run, 10_000)
            )
            generated = generate_all(run, clips, [0.7], sampling, seed=0)[0.7]
            rows.append(row(f"{vectors} prompt vector{'s' * (vectors > 1)}", embed_quarters(run, generated), originals))
        ceiling = embed_quarters(run, [clip.codes for clip in clips])
        rows = [row("floor", np.roll(ceiling, 1, 0), originals), *rows, row("ceiling", ceiling, originals)]
    print(f"{len(clips)} clips\n\n| fidelity | 1st quarter | 2nd | 3rd | 4th | whole clip |\n|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
