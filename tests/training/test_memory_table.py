"""The README's table of memory by size and ZeRO stage."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from pipeline.common.paths import CONF
from pipeline.tools.memory_table import SIZES, markdown, rows
from tests.training.test_train import ROOT


def gibibytes(cell: str) -> tuple[float, float]:
    whole, spared = re.fullmatch(r"([\d.]+) \(([\d.]+)\)", cell).groups()  # type: ignore[union-attr]
    return float(whole), float(spared)


def test_it_has_every_size_under_every_choice_and_more_sharing_takes_less() -> None:
    head, *found = rows(ranks=8, batch=16, seconds=4.0, pattern="delay")
    assert head[2:] == ["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]
    assert set(head[2:]) == {file.stem for file in (CONF / "deepspeed").glob("*.yaml")}
    assert [row[0] for row in found] == list(SIZES) and found[-1][1] == "1,505 M"
    for row in found:
        whole, spared = zip(*map(gibibytes, row[2:]), strict=True)
        assert list(whole[:4]) == sorted(whole[:4], reverse=True) and all(
            s < w for s, w in zip(spared, whole, strict=True)
        )
    # 20 bytes a parameter without sharing (weights, gradients and their fp32 copies 8, optimizer 12), and the batch
    assert gibibytes(found[-1][2])[0] == pytest.approx(20 * 1.505e9 / 2**30 + 11.9, abs=0.3)


def test_it_is_markdown() -> None:
    assert markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"


@pytest.mark.slow
def test_what_is_foretold_is_what_the_allocator_holds() -> None:
    """Real DeepSpeed engines: what they take lies between what must be there at one time and all that may be."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_memory", "--deepspeed", "zero0", "zero1", "zero3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = [line.split("|")[2:6] for line in done.stdout.splitlines() if line.startswith("| tiny")]
    assert [choice.strip() for choice, *_ in found] == ["zero0", "zero1", "zero3"]
    for choice, *figures in found:
        measured, least, total = map(float, figures)
        assert 0.98 * least < measured < 1.02 * total, choice
        assert measured == pytest.approx(least, rel=0.15)
