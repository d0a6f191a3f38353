"""Encode a corpus once into a cache of shards that training reads: codes of a codec, prompt vectors, labels.

  python -m pipeline.preprocess data=nsynth
      reads data/nsynth, writes shards/nsynth, with Meta's EnCodec and the released EnCodecMAE
  python -m pipeline.preprocess data=folder data.root=DIR out=DIR codec=encodec_embedded embedder=encodecmae_tiny
      any folder of sound files, with the small weights that ship with this package
  python -m pipeline.preprocess data=jamendo part=3/16
      one of sixteen parts, each on its own machine; under Slurm (sbatch --array, srun -n) no part= is needed. Copies of
      the corpus on several machines must agree in their files' times of change, which cp -a and rsync -t keep
  python -m pipeline.preprocess data=nsynth embedder=encodecmae_mel256_base_st reembed=true
      new prompts for a cache whose codes are kept

The same command again goes on where the last one stopped, however it stopped, and the finished cache is the same byte
for byte. Inputs that were changed, added or removed since are noticed, and only the shards they touch are made anew.
Inputs that cannot be used are skipped, by name and with the reason, in the cache's manifest.json; the next run retries
those that only the machine kept from being read (a mount that was away, a killed process). ^C and SIGTERM
leave nothing half-written behind; the exit codes are 130 and 143.

What people change: data=, data.root=, out= (a folder, or s3://..., gs://...), codec=, codec.codebooks=, embedder=,
samples_per_shard=, devices=, encoder_workers=, part=.
Look at the result with: python -m pipeline.shards verify|describe|decode DIR
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

from omegaconf import DictConfig

from pipeline.config.cli import hydra_command


@hydra_command("preprocess")
def main(cfg: DictConfig) -> int:
    """Preprocess, and return the exit code."""
    from omegaconf import OmegaConf

    from pipeline.preprocessing.runner import preprocess

    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(settings, dict)
    before = signal.signal(signal.SIGTERM, _end)
    try:
        return preprocess(settings)  # type: ignore[arg-type]
    except SystemExit:
        print("terminated: what is whole stays; run the same command again", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: FrameType | None) -> None:
    """End as for ^C, but once: Slurm may say it again while files are put away."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
