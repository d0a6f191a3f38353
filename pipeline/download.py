"""Fetch a published corpus into data.root: resumed where it broke off, in parallel, verified.

Nothing is unpacked: pipeline.preprocess reads the archives as they are. A file takes its name only when it is whole
and verified; the same command again goes on, and fetches nothing that is complete.

  python -m pipeline.download data=nsynth                          # 23 GB into data/nsynth
  python -m pipeline.download data=nsynth splits=[valid,test]      # the small parts only
  python -m pipeline.download data=jamendo quality=audio-low       # 156 GB into data/jamendo
  python -m pipeline.download data=jamendo folders=[0,1,2] data.root=/scratch/jamendo

MTG-Jamendo's SHA-256 are its project's own. NSynth publishes none: its archives are verified by the MD5 that the
server states or, where it states none, by reading them through.

What people change: data=, data.root=, splits=, folders=, quality=, parallel=, addresses.nsynth= (a mirror).
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from omegaconf import DictConfig

from pipeline.common.console import print_error
from pipeline.common.errors import InputError
from pipeline.common.settings import format_override
from pipeline.config.cli import hydra_command
from pipeline.corpora.download.http import (
    DownloadError,
    RemoteFile,
    RetryPolicy,
    bytes_on_disk,
    download,
    remote_size,
    verify_file,
)
from pipeline.corpora.download.parallel import download_all
from pipeline.corpora.download.sources import list_remote_files


@hydra_command("download")
def main(cfg: DictConfig) -> int:
    """Fetch what is not there yet, and return the exit code."""
    patience = RetryPolicy(cfg.attempts, cfg.timeout, cfg.pause)

    def get(remote: RemoteFile) -> None:
        remote_size(remote, cfg.timeout)  # without a network it says so at once, where a transfer would be patient
        download(remote, patience)

    try:
        remotes = list_remote_files(cfg, get)
        with ThreadPoolExecutor(cfg.parallel) as pool:
            sizes = dict(zip(remotes, pool.map(lambda remote: remote_size(remote, cfg.timeout), remotes), strict=True))
    except DownloadError as error:
        print_error(str(error))
        return 1
    kept = [remote for remote, size in sizes.items() if _is_whole(remote, size)]
    todo = {remote: size for remote, size in sizes.items() if remote not in kept}
    _refuse_a_full_disk(Path(cfg.data.root), todo)
    failed = download_all(todo, lambda remote, at, stop: download(remote, patience, at, stop), cfg.parallel)
    if cfg.verify:
        failed += download_all(dict.fromkeys(kept), lambda remote, at, stop: verify_file(remote), cfg.parallel)
    print(f"{cfg.data.root}: {len(remotes) - failed} of {len(remotes)} files complete, {len(kept)} of them before")
    if failed:
        print_error("run the same command again: it resumes where this run ended")
        return 1
    words = [
        "python",
        "-m",
        "pipeline.preprocess",
        f"data={cfg.data.name}",
        format_override("data.root", cfg.data.root),
    ]
    print(f"next: {shlex.join(words)}")
    return 0


def _is_whole(remote: RemoteFile, size: int | None) -> bool:
    """A file takes its name when it is whole; one of another size came by other means, or is out of date."""
    return remote.path.is_file() and size in (None, remote.path.stat().st_size)


def _refuse_a_full_disk(root: Path, todo: Mapping[RemoteFile, int | None]) -> None:
    needed = sum(max(0, (size or 0) - bytes_on_disk(remote)) for remote, size in todo.items())
    place = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"data.root={root} has {free / 1e9:,.1f} GB free, the files to come need {needed / 1e9:,.1f} GB:"
            " give data.root= on a larger disk, or less of it (splits=, folders=, quality=)"
        )


if __name__ == "__main__":
    main()
