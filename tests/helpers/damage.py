"""Damages valid bytes and JSON, and checks the code that reads them."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from pipeline.common.errors import InputError
from pipeline.common.registry import import_plugins

TRIES = int(os.environ.get("FUZZ", "0"))
QUICK = 150  # examples of a property that takes milliseconds
SECONDS = 10  # of CPU time per input
MEMORY = 3 << 30  # bytes of address space that reading may add
NUMBERS = (
    *(0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 511, 512, 1023, 1024, 1025, 32767, 32768, 65535, 65536),
    *(2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 2**48, 2**62, 2**63 - 1, -1, -2, -512, -(2**31), -(2**63)),
)
TEXTS = (
    *("", ".", "..", "../../x", "/etc/passwd", "~/x", "a/b.tar", "..\\x.tar", "pipe:touch x", "pipe:touch x.tar"),
    *("file:///etc/passwd", "http://user:word@127.0.0.1:9/x.tar", "a\0b.tar", "a\nb", "\ud800", "é" * 300, "x" * 5000),
    *("train-000000.tar", "-1", "1e999", "nan", "0x10", "*", "[a-z]*.tar", "{a,b}.tar", "%2e%2e%2fx.tar"),
)
VALUES = (
    *(None, True, False, 0.5, -0.5, 1e308, float("inf"), float("-inf"), float("nan"), [], {}, [[]], [None], {"a": 1}),
    *(10**30, *NUMBERS, *TEXTS),
)


def some(count: int) -> Callable[[Callable], Callable]:
    """Hypothesis settings: `count` fixed examples, or as many as FUZZ says (fewer for slow tests)."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=TRIES * min(count, QUICK) // QUICK or count,
        deadline=None,
        derandomize=not TRIES,
        database=None,
        suppress_health_check=checks,
    )


seeds = st.integers(0, 2**63)  # hypothesis finds the smallest seed that fails


def damaged(seed: int, whole: Sequence[bytes]) -> bytes:
    """Return one of the valid files with one to six faults."""
    draw = random.Random(seed)
    data = bytearray(draw.choice(whole))
    for _ in range(draw.randint(1, 6)):
        draw.choice(_FAULTS)(draw, data, whole)
    return bytes(data)


def _random_offset(draw: random.Random, data: bytearray) -> int:
    """A random offset, often near the beginning, where headers are."""
    return draw.randrange(1 + (min(len(data), 256) if draw.random() < 0.5 else len(data)))


def _flip(draw: random.Random, data: bytearray, whole: Sequence[bytes]) -> None:
    if data:
        data[min(_random_offset(draw, data), len(data) - 1)] ^= 1 << draw.randrange(8)


def _put(draw: random.Random, data: bytearray, whole: Sequence[bytes]) -> None:
    at = _random_offset(draw, data)
    data[at : at + draw.randint(0, 8)] = draw.randbytes(draw.randint(0, 8))


def _number(draw: random.Random, data: bytearray, whole: Sequence[bytes]) -> None:
    """Overwrite a number: bytes in either order, 10 bits of a float, octal digits."""
    at, number = _random_offset(draw, data), draw.choice(NUMBERS)
    kind = draw.choice("BHIQ")
    size = struct.calcsize(kind)
    new = struct.pack(draw.choice("<>") + kind, number % 256**size)
    if draw.random() < 0.2:
        new = b"%o" % number if draw.random() < 0.5 else b"%d" % number
    data[at : at + len(new)] = new


def _cut(draw: random.Random, data: bytearray, whole: Sequence[bytes]) -> None:
    del data[_random_offset(draw, data) :]


def _drop(draw: random.Random, data: bytearray, whole: Sequence[bytes]) -> None:
    at = _random_offset(draw, data)
    del data[at : at + draw.choice((1, 2, 16, 128, 512, 1024))]


def _double(draw: random.Random, data: bytearray, whole: Sequence[bytes]) -> None:
    at, size = _random_offset(draw, data), draw.choice((1, 4, 128, 512, 1024, 2048))
    data[at:at] = data[at : at + size]


def _swap(draw: random.Random, data: bytearray, whole: Sequence[bytes]) -> None:
    size = draw.choice((4, 8, 64, 128, 512))
    one, other = (_random_offset(draw, data) // size * size for _ in range(2))
    if one + size <= len(data) and other + size <= len(data):
        data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]


def _mix(draw: random.Random, data: bytearray, whole: Sequence[bytes]) -> None:
    """Replace the rest by that of another file."""
    other = draw.choice(whole)
    data[_random_offset(draw, data) :] = other[_random_offset(draw, bytearray(other)) :]


_FAULTS = (_flip, _flip, _put, _number, _number, _number, _cut, _drop, _double, _swap, _mix)


def mended_tar(seed: int, data: bytes) -> bytes:
    """Damage fields of a tar's headers and correct the header checksums, so that they are accepted."""
    draw, value = random.Random(seed), bytearray(data)
    for at in range(0, len(value) - 511, 512):
        if value[at + 257 : at + 262] == b"ustar" and draw.random() < 0.5:
            start, size = draw.choice(((0, 100), (100, 8), (124, 12), (124, 12), (156, 1), (157, 100), (345, 155)))
            kinds = (
                b"%o" % draw.randrange(4096),
                b"-1",
                b"-1000",
                b"-7000",
                b"77777777777",
                b"\xff" * 12,
                b"+12",
                b"1_0",
            )
            names = (
                b"../x",
                b"/x",
                b"a\0b",
                b"x" * 99,
                b"\xff\xfe",
                b"L",
                b"x",
                b"g",
                b"K",
                b"S",
                b"1",
                b"2",
                b"3",
                b"6",
            )
            new = draw.choice(kinds if start == 124 else names)[:size].ljust(size, b"\0")
            value[at + start : at + start + size] = new
        if value[at + 257 : at + 262] == b"ustar" and draw.random() < 0.9:
            value[at + 148 : at + 156] = b" " * 8
            value[at + 148 : at + 156] = b"%06o\0 " % sum(value[at : at + 512])
    return bytes(value)


def damaged_json(seed: int, whole: Any) -> Any:
    """Return a JSON value with one to three parts replaced, removed, duplicated or moved."""
    draw, value = random.Random(seed), copy.deepcopy(whole)
    for _ in range(draw.randint(1, 3)):
        locations = [*_locations(value)]
        if not locations:
            return draw.choice(VALUES)
        inside, key = draw.choice(locations)
        act = draw.randrange(8)
        if act == 0:
            del inside[key]
        elif act == 1 and isinstance(inside, list):
            inside.insert(key, copy.deepcopy(inside[key]))
        elif act == 2 and isinstance(inside, dict):
            inside[draw.choice([text for text in TEXTS if text != "\ud800"])] = inside.pop(key)
        elif act == 3:
            other, name = draw.choice(locations)
            with contextlib.suppress(LookupError):
                inside[key] = copy.deepcopy(other[name])
        elif act == 4:
            inside[key] = _deep(draw.choice((50, 500, 3000)))
        else:
            inside[key] = draw.choice(VALUES)
    return draw.choice(VALUES) if draw.random() < 0.03 else value


def _locations(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in [*value] if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        if not isinstance(value[key], _Raw):
            yield from _locations(value[key])


class _Raw(str):
    """Literal JSON text."""


def _deep(depth: int) -> _Raw:
    return _Raw("[" * depth + "]" * depth)


def text_of(value: Any) -> str:
    """Encode a value as JSON; numbers may be infinite, and `_Raw` text may be nested too deeply for an encoder."""
    if isinstance(value, _Raw):
        return value
    if isinstance(value, dict):
        return "{" + ",".join(f"{_quoted(str(key))}:{text_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(text_of, value)) + "]"
    return _quoted(value)


def _quoted(value: Any) -> str:

    return json.dumps(value)


@contextlib.contextmanager
def refused_or_right(name: str = "") -> Iterator[None]:
    """Check that the block raises only one-line InputErrors with `name`, within limits of time and memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGVTALRM, _hangs)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    except InputError as error:
        assert "\n" not in str(error) and name in str(error), str(error)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _hangs(*_: object) -> None:
    raise AssertionError(f"reading took more than {SECONDS} s of computing")


_seen: list[str] | None = None
_EVENTS = ("open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "subprocess.Popen", "os.system")


def _hook(event: str, arguments: tuple) -> None:
    if _seen is not None and event in _EVENTS and isinstance(arguments[0], (str, bytes, os.PathLike)):
        name = os.fsdecode(arguments[0])
        _seen.append(name if event.startswith("o") and event != "os.system" else f"/started: {name}")


sys.addaudithook(_hook)
HOME = Path(__file__).parents[2]
LIBRARIES = (sys.prefix, sys.base_prefix, "/usr/lib", "/proc/", "/dev/null", str(HOME / "pipeline"), str(HOME / "conf"))


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Check that the block accesses and changes only files below a folder (or Python's), and starts no process."""
    global _seen
    import_plugins()  # the first lookup in a registry reads the entry points of installed packages, once a process
    seen = _seen = []
    try:
        yield
    finally:
        _seen = None
    locations = (str(folder.resolve()), *LIBRARIES)
    left = [name for name in seen if "\0" not in name and not os.path.realpath(name).startswith(locations)]
    assert not left, left
