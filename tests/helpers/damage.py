"""Valid bytes and valid JSON, damaged; and what must hold of whoever reads them."""

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

TRIES = int(os.environ.get("FUZZ", "0"))
QUICK = 150  # tries that a property has which takes milliseconds
SECONDS = 10  # of computing that one input may take
MEMORY = 3 << 30  # bytes of addresses that reading may add
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
    """How a property is tried: `count` times, the same ones each time, or as often as FUZZ says (slow ones less)."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=TRIES * min(count, QUICK) // QUICK or count,
        deadline=None,
        derandomize=not TRIES,
        database=None,
        suppress_health_check=checks,
    )


seeds = st.integers(0, 2**63)  # of a damage: hypothesis finds the smallest that fails


def damaged(seed: int, whole: Sequence[bytes]) -> bytes:
    """One of some valid files, with one to six faults."""
    draw = random.Random(seed)
    data = bytearray(draw.choice(whole))
    for _ in range(draw.randint(1, 6)):
        draw.choice(_FAULTS)(draw, data, whole)
    return bytes(data)


def _place(draw: random.Random, data: bytearray) -> int:
    """Anywhere, but often near the beginning, where headers are."""
    return draw.randrange(1 + (min(len(data), 256) if draw.random() < 0.5 else len(data)))


def _flip(draw: random.Random, data: bytearray, whole: Sequence[bytes]) -> None:
    if data:
        data[min(_place(draw, data), len(data) - 1)] ^= 1 << draw.randrange(8)


def _put(draw: random.Random, data: bytearray, whole: Sequence[bytes]) -> None:
    at = _place(draw, data)
    data[at : at + draw.randint(0, 8)] = draw.randbytes(draw.randint(0, 8))


def _number(draw: random.Random, data: bytearray, whole: Sequence[bytes]) -> None:
    """A number where there may be another: bytes in either order, 10 bits of a float, octal digits."""
    at, number = _place(draw, data), draw.choice(NUMBERS)
    kind = draw.choice("BHIQ")
    size = struct.calcsize(kind)
    new = struct.pack(draw.choice("<>") + kind, number % 256**size)
    if draw.random() < 0.2:
        new = b"%o" % number if draw.random() < 0.5 else b"%d" % number
    data[at : at + len(new)] = new


def _cut(draw: random.Random, data: bytearray, whole: Sequence[bytes]) -> None:
    del data[_place(draw, data) :]


def _drop(draw: random.Random, data: bytearray, whole: Sequence[bytes]) -> None:
    at = _place(draw, data)
    del data[at : at + draw.choice((1, 2, 16, 128, 512, 1024))]


def _double(draw: random.Random, data: bytearray, whole: Sequence[bytes]) -> None:
    at, size = _place(draw, data), draw.choice((1, 4, 128, 512, 1024, 2048))
    data[at:at] = data[at : at + size]


def _swap(draw: random.Random, data: bytearray, whole: Sequence[bytes]) -> None:
    size = draw.choice((4, 8, 64, 128, 512))
    one, other = (_place(draw, data) // size * size for _ in range(2))
    if one + size <= len(data) and other + size <= len(data):
        data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]


def _mix(draw: random.Random, data: bytearray, whole: Sequence[bytes]) -> None:
    """The rest from another file."""
    other = draw.choice(whole)
    data[_place(draw, data) :] = other[_place(draw, bytearray(other)) :]


_FAULTS = (_flip, _flip, _put, _number, _number, _number, _cut, _drop, _double, _swap, _mix)


def mended_tar(seed: int, data: bytes) -> bytes:
    """Damaged fields of a tar's headers, and the sums of the headers set right again, so that they are believed."""
    draw, found = random.Random(seed), bytearray(data)
    for at in range(0, len(found) - 511, 512):
        if found[at + 257 : at + 262] == b"ustar" and draw.random() < 0.5:
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
            found[at + start : at + start + size] = new
        if found[at + 257 : at + 262] == b"ustar" and draw.random() < 0.9:
            found[at + 148 : at + 156] = b" " * 8
            found[at + 148 : at + 156] = b"%06o\0 " % sum(found[at : at + 512])
    return bytes(found)


def damaged_json(seed: int, whole: Any) -> Any:
    """A JSON value with one to three of its parts replaced, removed, doubled, or put elsewhere."""
    draw, found = random.Random(seed), copy.deepcopy(whole)
    for _ in range(draw.randint(1, 3)):
        places = [*_places(found)]
        if not places:
            return draw.choice(VALUES)
        inside, key = draw.choice(places)
        act = draw.randrange(8)
        if act == 0:
            del inside[key]
        elif act == 1 and isinstance(inside, list):
            inside.insert(key, copy.deepcopy(inside[key]))
        elif act == 2 and isinstance(inside, dict):
            inside[draw.choice([text for text in TEXTS if text != "\ud800"])] = inside.pop(key)
        elif act == 3:
            other, name = draw.choice(places)
            with contextlib.suppress(LookupError):
                inside[key] = copy.deepcopy(other[name])
        elif act == 4:
            inside[key] = _deep(draw.choice((50, 500, 3000)))
        else:
            inside[key] = draw.choice(VALUES)
    return draw.choice(VALUES) if draw.random() < 0.03 else found


def _places(found: Any) -> Iterator[tuple[Any, Any]]:
    for key in [*found] if isinstance(found, dict) else range(len(found)) if isinstance(found, list) else ():
        yield found, key
        if not isinstance(found[key], _Raw):
            yield from _places(found[key])


class _Raw(str):
    """Text of JSON as it stands."""


def _deep(depth: int) -> _Raw:
    return _Raw("[" * depth + "]" * depth)


def text_of(found: Any) -> str:
    """JSON, in which numbers need not be finite, and what no encoder would nest so deep is nested."""
    if isinstance(found, _Raw):
        return found
    if isinstance(found, dict):
        return "{" + ",".join(f"{_quoted(str(key))}:{text_of(value)}" for key, value in found.items()) + "}"
    if isinstance(found, list):
        return "[" + ",".join(map(text_of, found)) + "]"
    return _quoted(found)


def _quoted(found: Any) -> str:

    return json.dumps(found)


@contextlib.contextmanager
def refused_or_right(name: str = "") -> Iterator[None]:
    """Whatever the block reads, it raises nothing but InputError, of one line that holds `name`; in time and memory."""
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
    """The block opens, makes and removes nothing but what is below a folder (and Python's own); it starts nothing."""
    global _seen
    seen = _seen = []
    try:
        yield
    finally:
        _seen = None
    places = (str(folder.resolve()), *LIBRARIES)
    left = [name for name in seen if "\0" not in name and not os.path.realpath(name).startswith(places)]
    assert not left, left
