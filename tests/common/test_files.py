"""Files are written completely or not at all, also by several processes."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest

from pipeline.common.errors import InputError
from pipeline.common.files import (
    atomic_path,
    check_output_file,
    check_output_folder,
    hash_file,
    is_intact,
    open_atomic,
    sha256_file,
    with_checksum,
    write_atomic,
)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sync", [False, True])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, shared: bool, sync: bool) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old", shared=shared, sync=sync)
    with pytest.raises(KeyError), open_atomic(path, "w", shared=shared, sync=sync) as file:
        file.write("new")
        raise KeyError
    assert path.read_text() == "old"
    write_atomic(path, b"new", shared=shared, sync=sync)
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_writers_of_a_shared_file_use_different_paths(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with atomic_path(path, shared=True) as first, atomic_path(path, shared=True) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first", "the block that ends last wins"


def test_a_partial_file_of_a_killed_writer_is_replaced(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a") as partial:
        partial.write_text("x")
    partial.write_text("left by a killed process")
    write_atomic(tmp_path / "a", "y")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["y"]


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_atomic(tmp_path / "atomic", b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")}
    assert len(modes) == 1


def test_hashes_of_a_file_larger_than_one_block(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert hash_file(tmp_path / "a", "md5") == hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_a_changed_value_breaks_the_checksum_of_json() -> None:
    content = with_checksum({"a": (1, 2), "b": {"c": "d"}})
    assert is_intact(content) and is_intact({"a": 1})
    assert not is_intact({**content, "b": {"c": "e"}})
    checksum = content.pop("sha256")
    assert not is_intact({**content, "rha256": checksum}) and is_intact({**content, "other": "0" * 64})


def test_a_folder_is_checked_and_not_created(tmp_path: Path) -> None:
    check_output_folder("out", tmp_path / "a" / "b")
    check_output_file("out", tmp_path / "a" / "c.wav")
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="out=.*/file/b: cannot be written to"):
        check_output_folder("out", tmp_path / "file" / "b")
    with pytest.raises(InputError, match="that is a folder"):
        check_output_file("out", tmp_path)
