"""Encode a corpus into a dataset of shards for training: codes of a codec, prompt vectors of an embedder, labels.

  python -m pipeline.preprocess data=nsynth
      reads data/nsynth and writes shards/nsynth, with Meta's EnCodec and the released EnCodecMAE
  python -m pipeline.preprocess data=folder data.root=DIR out=DIR codec=encodec_embedded embedder=encodecmae_tiny
      any folder of audio files, with the small weights that ship with this package
  python -m pipeline.preprocess data=jamendo part=3/16
      one of sixteen parts, each on its own machine; Slurm (sbatch --array, srun -n) sets the part automatically. Copies
      of the corpus on several machines must have the same modification times, which cp -a and rsync -t keep
  python -m pipeline.preprocess data=nsynth embedder=encodecmae_mel256_base_st reembed=true
      new prompts for an existing dataset, whose codes are kept

The same command resumes an interrupted run, and the finished dataset is the same byte for byte. Inputs that were
changed, added or removed are noticed, and only the shards that they affect are built again. Inputs that cannot be used
are skipped and listed with the reason in manifest.json; the next run retries those that could not be read for now (an
unmounted disk, a killed process). ^C and SIGTERM leave no incomplete files; the exit codes are 130 and 143.

Main settings: data=, data.root=, out= (a folder, or s3://..., gs://...), codec=, codec.codebooks=, embedder=,
samples_per_shard=, devices=, encoder_workers=, part=; prepare.trim=, prepare.loudness=, prepare.min_sound=,
prepare.group_copies= (see docs/preprocessing.md).
At the end it names what is wrong with the dataset: python -m pipeline.shards doctor DIR says more, and what to do.
Inspect the result with: python -m pipeline.shards verify|describe|doctor|decode DIR
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

from pipeline.config.cli import hydra_command
from pipeline.data.storage import LocalStorage, Storage
from pipeline.preprocessing.settings import PreprocessSettings


@hydra_command(PreprocessSettings)
def main(settings: PreprocessSettings) -> int:
    """Preprocess, and return the exit code."""
    from pipeline.preprocessing.runner import preprocess

    previous_handler = signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        return preprocess(settings, lambda store: _print_findings(store, settings))
    except SystemExit:
        print("terminated: finished shards are kept; run the same command again", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


def _print_findings(store: Storage, settings: PreprocessSettings) -> None:
    """Print what is wrong with the finished dataset, unless its shards are remote."""
    if settings.examine_clips and isinstance(store, LocalStorage):
        from pipeline.evaluation.doctor.command import print_findings

        print_findings(store, settings.examine_clips, settings.codec.weights_dir, settings.embedder.source)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    """Exit as after ^C. Further signals are ignored: Slurm may repeat them while temporary files are removed."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
