"""Machines that build parts of a dataset agree on its contents, or get an error."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.common.errors import InputError
from pipeline.data.manifest import MANIFEST_NAME as MANIFEST
from pipeline.data.manifest import Manifest
from pipeline.data.storage import LocalStorage
from pipeline.data.verify import verify
from pipeline.preprocessing import runner
from tests.helpers.preprocess_runs import contents, tones
from tests.preprocessing.test_preprocess import make_tones


def test_parts_with_other_file_times_are_refused(tmp_path: Path) -> None:
    """Each would replace the plan of the other, and no manifest would ever be written."""
    ours, theirs = tones(tmp_path / "a" / "in", 12), tmp_path / "b" / "in"
    shutil.copytree(ours, theirs, copy_function=shutil.copyfile)
    for path in theirs.iterdir():
        os.utime(path, (1, 1))
    out = tmp_path / "out"
    assert make_tones(ours, out, "part=1/2") == 0
    before = contents(out)
    with pytest.raises(InputError, match=r"plan\.json lists other files.*modification times \(cp -a and rsync -t"):
        make_tones(theirs, out, "part=2/2")
    assert contents(out) == before
    for path in theirs.iterdir():
        shutil.copystat(ours / path.name, path)
    assert make_tones(theirs, out, "part=2/2") == 0
    assert (out / MANIFEST).exists()


def test_replaced_plan_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = tones(tmp_path / "in", 12), tmp_path / "out"
    real = runner.build_state.merge

    def merge(store: LocalStorage) -> Manifest | list[str]:
        plan = runner.BuildPlan.load(store)
        assert plan is not None
        others = [replace(shard, inputs=shard.inputs[::-1]) for shard in plan.shards]
        replace(plan, shards=others).save(store)
        return real(store)

    monkeypatch.setattr(runner.build_state, "merge", merge)
    with pytest.raises(InputError, match=r"plan\.json lists other files"):
        make_tones(root, out, "part=1/2")


def test_parts_accept_a_changed_file(tmp_path: Path) -> None:
    root, out = tones(tmp_path / "in", 24), tmp_path / "out"
    for _ in range(2):
        assert [make_tones(root, out, f"part={n}/2") for n in (1, 2)] == [0, 0]
        assert [*verify(LocalStorage(out))] == []
        os.utime(root / "tone003.wav", (1, 1))
