"""Verify, describe, examine, decode, index, merge or convert a dataset: a folder, or s3://..., gs://..., http(s)://...

  python -m pipeline.shards verify DIR      check every byte, count, key and code against the manifest; exit 1 on faults
  python -m pipeline.shards describe DIR    print hours, clips, bytes per hour, labels, and the usage of each codebook
  python -m pipeline.shards doctor DIR      find what is wrong with it, and what to do: duplicates, loudness, silence,
                                            clipping, bandwidth, labels, and what its codec cannot say about its sounds;
                                            writes DIR/doctor/doctor.html, doctor.json, and the worst clips as wavs
  python -m pipeline.shards decode DIR      decode random clips into wav files
  python -m pipeline.shards index DIR       write the indices again, with checksums, after a check against the manifest
  python -m pipeline.shards merge DIR       write the manifest when all parts of a preprocessing run are finished
  python -m pipeline.shards convert DIR     write codes, prompts and labels for others, to=huggingface|npy|lhotse

What people change: workers= of verify; clips=, seed=, split=, out=, device= of doctor and decode; to=, out= of convert.
"""

from __future__ import annotations

import sys

from pipeline.common.settings import hydra_quote
from pipeline.config.cli import hydra_command
from pipeline.data.settings import ShardsSettings


@hydra_command(ShardsSettings)
def main(settings: ShardsSettings) -> int:
    """Run the action that the first word of the command line names, and return the exit code."""
    from pipeline.data.storage import open_storage
    from pipeline.preprocessing.maintenance import ACTIONS

    if settings.action == "doctor":
        from pipeline.evaluation.doctor.command import doctor

        return doctor(open_storage(settings.shards), settings)
    return ACTIONS[settings.action](open_storage(settings.shards), settings)


def positional_to_overrides(arguments: list[str]) -> list[str]:
    """The command line with its first two words as settings: `verify DIR a=b` -> `action=verify shards='DIR' a=b`."""
    arguments = list(arguments) or ["--help"]
    positional = [i for i, argument in enumerate(arguments) if "=" not in argument and not argument.startswith("-")]
    for i, name in zip(positional, ("action", "shards"), strict=False):
        arguments[i] = f"{name}={hydra_quote(arguments[i])}"
    return arguments


if __name__ == "__main__":
    sys.argv[1:] = positional_to_overrides(sys.argv[1:])
    main()
