"""Files of this machine: atomic writes, checksums, and checks that an output can be written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pipeline.common.errors import InputError
from pipeline.common.machine import sync_folder

PARTIAL = ".partial"  # the suffix of a file that is being written, or whose writer was killed
SHA256 = "sha256"  # the key of a JSON object's own checksum
_CHUNK = 1 << 20  # bytes


@contextlib.contextmanager
def atomic_path(path: str | Path, *, shared: bool = False) -> Iterator[Path]:
    """A temporary path in the same folder, renamed to `path` when the block ends without an exception.

    After an exception the temporary file is deleted and `path` is unchanged.

    Args:
        path: The file to create or replace. Its folder exists.
        shared: Whether several processes may write this file at the same time. Each then has a temporary path of its
            own; otherwise the path is always the same, so that what a killed process left is overwritten.
    """
    path = Path(path)
    unique = f".{os.getpid()}-{secrets.token_hex(4)}" if shared else ""
    temporary = path.with_name(f".{path.name}{unique}{PARTIAL}")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:  # also GeneratorExit, where a generator that writes is not read to its end
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def open_atomic(path: str | Path, mode: str = "wb", *, shared: bool = False, sync: bool = False) -> Iterator[IO[Any]]:
    """A file open for writing, which appears at `path` when the block ends without an exception.

    Args:
        path: The file to create or replace. Its folder exists.
        mode: "wb" for bytes or "w" for text.
        shared: Whether several processes may write this file at the same time.
        sync: Whether the file must survive a power cut: it is flushed to disk before and after the rename.
    """
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")  # the same bytes on every system
    with (
        atomic_path(path, shared=shared) as temporary,
        temporary.open(mode, encoding=encoding, newline=newline) as file,
    ):
        yield file
        file.flush()
        if sync:
            os.fsync(file.fileno())
    if sync:
        _sync_folder(Path(path).parent)


def write_atomic(path: str | Path, content: str | bytes, *, shared: bool = False, sync: bool = False) -> None:
    """Write a file completely or not at all; the arguments are those of `open_atomic`."""
    with open_atomic(path, "w" if isinstance(content, str) else "wb", shared=shared, sync=sync) as file:
        file.write(content)


def _sync_folder(folder: Path) -> None:
    try:
        sync_folder(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync a folder
            raise


def sha256_file(path: str | Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    return hash_file(path, "sha256")


def hash_file(path: str | Path, algorithm: str) -> str:
    """The hash of a file's bytes, in hex. algorithm: a name that `hashlib.new` knows, such as "md5"."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the sha256 of its other keys and values added as its last key."""
    rest = {key: value for key, value in content.items() if key != SHA256}
    return {**rest, SHA256: _sha256_json(rest)}


def is_intact(content: Mapping[str, Any]) -> bool:
    """Whether a JSON object matches its own checksum; true where it has none, as in files of older versions.

    A checksum under another key is that of an object whose key was damaged.
    """
    if SHA256 in content:
        return bool(with_checksum(content)[SHA256] == content[SHA256])
    strings = {key: value for key, value in content.items() if isinstance(value, str) and len(value) == 64}
    return not any(
        value == _sha256_json({k: v for k, v in content.items() if k != key}) for key, value in strings.items()
    )


def _sha256_json(content: Mapping[str, Any]) -> str:
    normalized = json.loads(json.dumps(content))  # as a reader has it: tuples are lists, keys are strings
    return hashlib.sha256(json.dumps(normalized, sort_keys=True).encode()).hexdigest()


def expand_globs(setting: str, patterns: Iterable[str]) -> list[str]:
    """The paths of which some are globs. A path that exists is taken as it is; others need not exist.

    Hidden files (as macOS has: `._a.wav`) match only a glob that starts with a dot.

    Raises:
        InputError: A glob matches nothing. The message names `setting`.
    """
    paths: list[str] = []
    for pattern in patterns:
        is_glob = set("*?[") & set(pattern) and not Path(pattern).exists()
        matches = _glob(pattern) if is_glob else [pattern]
        if not matches:
            raise InputError(f"{setting}={pattern}: no file matches")
        paths += matches
    return paths


def _glob(pattern: str) -> list[str]:
    parts = Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if set("*?[") & set(part))
    matches = Path(*parts[:first]).glob(str(Path(*parts[first:])))
    return sorted(str(path) for path in matches if parts[-1].startswith(".") or not path.name.startswith("."))


def check_output_folder(setting: str, folder: str | Path) -> None:
    """Raises InputError unless files can be written to a folder. A folder that does not exist yet is not created."""
    folder, created = Path(folder), []
    try:
        created = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{setting}={folder}: cannot be written to ({reason}); give another folder") from None
    finally:
        for path in created:
            with contextlib.suppress(OSError, ValueError):
                path.rmdir()


def check_output_file(setting: str, file: str | Path) -> None:
    """Raises InputError unless a file can be written."""
    if Path(file).is_dir():
        raise InputError(f"{setting}={file}: that is a folder; give a file in it")
    check_output_folder(setting, Path(file).parent)
