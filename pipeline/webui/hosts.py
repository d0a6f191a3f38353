"""Check which host names and origins may use the page, also behind a reverse proxy."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

ANY = "*"
MAX_SHOWN = 100  # characters of a name in a message


class AllowedHosts:
    """Host names of this machine, IP addresses, and those of the setting `allowed_hosts`.

    A site that lets its own name point at this machine (DNS rebinding) uses none of these names.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.configured = {name.lower() for name in names}
        self._local = {"localhost", socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}

    def allows(self, host: str) -> bool:
        """Return whether a `Host` header names this page."""
        name = hostname(host)
        return ANY in self.configured or name in self.configured | self._local or _is_address(name)

    def same_origin(self, origin: str, hosts: Iterable[str]) -> bool:
        """Return whether an `Origin` header is one of the hosts that the request names, or a configured one."""
        scheme, _, host = origin.partition("://")
        return scheme in ("http", "https") and (
            hostname(host) in self.configured or _netloc(host) in {_netloc(name) for name in hosts}
        )


def hostname(host: str) -> str:
    """Return the lowercase name of `name:port`; empty if it has none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def refusal(host: str) -> str:
    """Return the message for a host that is not allowed, with the setting that allows it."""
    name = hostname(host)[:MAX_SHOWN]
    return f"host name {name!r} is not allowed: start the page with allowed_hosts=[{name}]"


def _netloc(host: str) -> tuple[str, int | None]:
    """Name and port; None for a port that is the default of http or https."""
    try:
        port = urlsplit(f"//{host}").port
    except ValueError:
        port = -1
    return hostname(host), None if port in (80, 443) else port


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
