"""A message when a mapped file is truncated: reading beyond its new end kills the process with SIGBUS."""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import os
import signal
import sys
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_handlers: list[object] = []  # the handler must live as long as the process


def truncated_files(maps: Path = Path("/proc/self/maps")) -> list[str]:
    """Return the files that this process has mapped for reading and that are now shorter than their mappings."""
    truncated = []
    for line in maps.read_text().splitlines() if maps.exists() else []:
        addresses, rights, offset, _, _, *name = line.split(maxsplit=5)
        if rights == "r--s" and name and name[0].startswith("/") and Path(name[0]).is_file():
            start, end = (int(address, 16) for address in addresses.split("-"))
            pages = -(-Path(name[0]).stat().st_size // _PAGE_BYTES)
            if int(offset, 16) + end - start > pages * _PAGE_BYTES:
                truncated.append(name[0])
    return list(dict.fromkeys(truncated))


@functools.cache
def report_sigbus() -> None:
    """Make SIGBUS print the truncated files and all stacks before it ends the process.

    Python's own signal handlers do not run while one instruction fails repeatedly, so this is a C handler.
    """
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)

    def report(number: int) -> None:
        libc.signal(number, before)  # the same instruction, executed again, then ends the process
        for name in truncated_files() or ["a mapped file"]:
            print(f"error: {name} was truncated while it was read: restore it", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.__stderr__ or 2)

    handler = _Handler(report)
    _handlers.append(handler)
    before = libc.signal(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
