"""Downloads the files of a corpus that are missing, and verifies them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.common.errors import InputError
from pipeline.corpora.base import RemoteFile
from pipeline.corpora.download.http import RetryPolicy, bytes_on_disk, download, remote_size, verify_file
from pipeline.corpora.download.parallel import download_all
from pipeline.corpora.download.settings import DownloadSettings

Sizes = Mapping[RemoteFile, int | None]  # bytes; None if the server does not report them


def list_files_with_sizes(settings: DownloadSettings) -> dict[RemoteFile, int | None]:
    """Return the files of a corpus and their sizes in bytes, None if the server does not report it.

    Raises:
        InputError: The corpus cannot be downloaded, or a setting does not fit what the publisher offers.
        DownloadError: The server cannot be reached, or a list of files cannot be downloaded.
    """

    def fetch(remote: RemoteFile) -> None:
        remote_size(remote, settings.timeout)  # fails at once without a network, whereas a download would retry
        download(remote, retry_policy(settings))

    remotes = settings.data.remote_files(settings, fetch)
    with ThreadPoolExecutor(settings.parallel) as pool:
        sizes = pool.map(lambda remote: remote_size(remote, settings.timeout), remotes)
        return dict(zip(remotes, sizes, strict=True))


def retry_policy(settings: DownloadSettings) -> RetryPolicy:
    """When to retry."""
    return RetryPolicy(settings.attempts, settings.timeout, settings.pause)


def download_missing(settings: DownloadSettings, sizes: Sizes) -> tuple[int, int]:
    """Download the files that are not complete, and verify the others if the settings say so.

    Args:
        settings: The settings.
        sizes: The files and their sizes.

    Returns:
        The number of files that were complete before, and the number of files that failed.

    Raises:
        InputError: The disk does not have enough free space.
    """
    policy = retry_policy(settings)
    present = [remote for remote, size in sizes.items() if _is_complete(remote, size)]
    missing = {remote: size for remote, size in sizes.items() if remote not in present}
    _check_disk_space(Path(settings.data.root), missing)
    failed = download_all(
        missing, lambda remote, on_progress, stop: download(remote, policy, on_progress, stop), settings.parallel
    )
    if settings.verify:
        failed += download_all(dict.fromkeys(present), lambda remote, *_: verify_file(remote), settings.parallel)
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
