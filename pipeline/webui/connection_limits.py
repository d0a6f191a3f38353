"""HTTP connections with time limits for slow clients, and a limited number of them."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class AddressSet(Protocol):
    """Addresses that can be tested with `in`."""

    def __contains__(self, address: Any) -> bool: ...


def limited_protocol(
    header_seconds: float, stall_seconds: float, connections: int, per_address: int, proxies: AddressSet
) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol with limits.

    Args:
        header_seconds: time to receive the headers of a request before the connection is closed.
        stall_seconds: longest time in which a client may read no data before the connection is closed.
        connections: limit of open connections; further ones are closed when they open.
        per_address: limit of open connections from one address.
        proxies: addresses that `per_address` does not apply to.
    """

    class LimitedProtocol(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None
        _stall_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            address = self.client[0] if self.client else None
            addresses = [(getattr(other, "client", None) or (None,))[0] for other in self.connections]
            if len(self.connections) > connections or (
                addresses.count(address) > per_address and address not in proxies
            ):
                transport.abort()
                return
            self._header_timer = self.loop.call_later(header_seconds, transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                _cancel(self._header_timer)
                self._header_timer = None
            elif self._header_timer is None:  # the next request has started to arrive
                self._header_timer = self.loop.call_later(header_seconds, self.transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            _cancel(self._header_timer)
            _cancel(self._stall_timer)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stall_timer = self.loop.call_later(stall_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            _cancel(self._stall_timer)
            super().resume_writing()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            if self.transport.get_write_buffer_size():  # closing waits for a client that may never read
                self.loop.call_later(stall_seconds, self.transport.abort)

    return LimitedProtocol


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
