"""Downloads the files of a corpus that are missing, and verifies them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.common.errors import InputError
from pipeline.corpora.download.http import RemoteFile, RetryPolicy, bytes_on_disk, download, remote_size, verify_file
from pipeline.corpora.download.parallel import download_all
from pipeline.corpora.download.sources import CorpusSource as CorpusSource
from pipeline.corpora.download.sources import list_remote_files

Sizes = Mapping[RemoteFile, int | None]  # bytes; None if the server does not report them


def list_files_with_sizes(
    name: str, root: str | Path, source: CorpusSource, policy: RetryPolicy, parallel: int
) -> dict[RemoteFile, int | None]:
    """Return the files of a corpus and their sizes in bytes, None if the server does not report it.

    Args:
        name: The corpus, as in `data=`.
        root: The folder to download into.
        source: Which parts of the corpus to download, and from where.
        policy: How to retry.
        parallel: The number of requests at a time.

    Raises:
        InputError: The corpus cannot be downloaded, or a setting has an unknown value.
        DownloadError: The server cannot be reached, or a list of files cannot be downloaded.
    """

    def download_list(remote: RemoteFile) -> None:
        remote_size(remote, policy.timeout)  # fails at once without a network, whereas a download would retry
        download(remote, policy)

    remotes = list_remote_files(name, Path(root), source, download_list)
    with ThreadPoolExecutor(parallel) as pool:
        sizes = pool.map(lambda remote: remote_size(remote, policy.timeout), remotes)
        return dict(zip(remotes, sizes, strict=True))


def download_missing(
    root: str | Path, sizes: Sizes, policy: RetryPolicy, parallel: int, *, verify_present: bool
) -> tuple[int, int]:
    """Download the files that are not complete.

    Args:
        root: The folder to download into.
        sizes: The files and their sizes.
        policy: How to retry.
        parallel: The number of files at a time.
        verify_present: Whether to verify the files that are complete already.

    Returns:
        The number of files that were complete before, and the number of files that failed.

    Raises:
        InputError: The disk does not have enough free space.
    """
    present = [remote for remote, size in sizes.items() if _is_complete(remote, size)]
    missing = {remote: size for remote, size in sizes.items() if remote not in present}
    _check_disk_space(Path(root), missing)
    failed = download_all(
        missing, lambda remote, on_progress, stop: download(remote, policy, on_progress, stop), parallel
    )
    if verify_present:
        failed += download_all(dict.fromkeys(present), lambda remote, *_: verify_file(remote), parallel)
    return len(present), failed


def _is_complete(remote: RemoteFile, size: int | None) -> bool:
    """Whether a file is complete; one of another size was made by other means, or is out of date."""
    return remote.path.is_file() and size in (None, remote.path.stat().st_size)


def _check_disk_space(root: Path, missing: Sizes) -> None:
    needed = sum(max(0, (size or 0) - bytes_on_disk(remote)) for remote, size in missing.items())
    folder = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"data.root={root} has {free / 1e9:,.1f} GB free, but the missing files need {needed / 1e9:,.1f} GB:"
            " set data.root= to a larger disk, or download less (splits=, folders=, quality=)"
        )
