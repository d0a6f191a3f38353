"""What is printed when a mapped file is cut short: whoever reads behind its new end is ended by SIGBUS."""

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
    """The files that this process has mapped to read them, and that are now shorter than what is mapped of them."""
    found = []
    for line in maps.read_text().splitlines() if maps.exists() else []:
        addresses, rights, offset, _, _, *name = line.split(maxsplit=5)
        if rights == "r--s" and name and name[0].startswith("/") and Path(name[0]).is_file():
            start, end = (int(address, 16) for address in addresses.split("-"))
            pages = -(-Path(name[0]).stat().st_size // _PAGE_BYTES)
            if int(offset, 16) + end - start > pages * _PAGE_BYTES:
                found.append(name[0])
    return list(dict.fromkeys(found))


@functools.cache
def report_sigbus() -> None:
    """From now on SIGBUS prints the files that have been cut short and all stacks, before it ends the process.

    Python's own handlers do not run while an instruction fails again and again: this is one of C, which calls back.
    """
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)

    def report(number: int) -> None:
        libc.signal(number, before)  # so that the same instruction, tried again, ends the process
        for name in truncated_files() or ["a mapped file"]:
            print(f"error: {name} has been cut short while it was read: restore it", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.__stderr__ or 2)

    handler = _Handler(report)
    _handlers.append(handler)
    before = libc.signal(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
