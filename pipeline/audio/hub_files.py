"""Files of repositories of the Hugging Face hub."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

from pipeline.common.errors import InputError, first_line


def hub_file(repo: str, name: str, setting: str, remedy: str) -> Path:
    """Return the path of a file of a repository, from the hub's cache or downloaded.

    Args:
        repo: The repository, `owner/name`.
        name: The file.
        setting: The setting that named the repository, the start of a message.
        remedy: What to do without a network, the end of a message.

    Raises:
        InputError: The file is not in the cache and cannot be downloaded.
    """
    import huggingface_hub as hub

    try:
        cached = hub.try_to_load_from_cache(repo, name)
        if isinstance(cached, str):
            return Path(cached)
        _check_network(hub.constants.ENDPOINT)
        return Path(hub.hf_hub_download(repo, name))
    except Exception as error:  # the layers below raise their own classes: DNS, HTTP, TLS, sockets, Xet
        reason = first_line(error)
        raise InputError(
            f"{setting}: {name} is not in the hub's cache and could not be downloaded ({reason}). "
            f"With a network: `hf download {repo} {name}`; {remedy}"
        ) from error


def _check_network(address: str) -> None:
    """Raise at once if the hub's host name cannot be resolved; the hub's client retries for half a minute."""
    if not urllib.request.getproxies():
        socket.getaddrinfo(urlparse(address).hostname, 443)
