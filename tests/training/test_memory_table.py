"""The table of memory by model size and ZeRO stage."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from pipeline.common.paths import CONF
from pipeline.tools.memory_table import SIZES, markdown, rows
from tests.helpers.ranks import ROOT


def gibibytes(cell: str) -> tuple[float, float]:
    """The two numbers of a cell: without and with activation checkpointing."""
    stored, checkpointed = re.fullmatch(r"([\d.]+) \(([\d.]+)\)", cell).groups()  # type: ignore[union-attr]
    return float(stored), float(checkpointed)


def test_more_sharding_takes_less_memory() -> None:
    """The table has every size under every choice of conf/deepspeed."""
    header, *table = rows(ranks=8, batch=16, frames=300, pattern="delay")
    assert header[2:] == ["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]
    assert set(header[2:]) == {file.stem for file in (CONF / "deepspeed").glob("*.yaml")}
    assert [row[0] for row in table] == list(SIZES) and table[-1][1] == "1,505 M"
    for row in table:
        stored, checkpointed = zip(*map(gibibytes, row[2:]), strict=True)
        assert list(stored[:4]) == sorted(stored[:4], reverse=True) and all(
            c < s for c, s in zip(checkpointed, stored, strict=True)
        )
    # 20 bytes a parameter without sharding (weights, gradients and their fp32 copies 8, optimizer 12), and the batch
    assert gibibytes(table[-1][2])[0] == pytest.approx(20 * 1.505e9 / 2**30 + 11.9, abs=0.3)


def test_table_is_markdown() -> None:
    assert markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"


@pytest.mark.slow
def test_estimates_match_the_allocator() -> None:
    """The memory of real DeepSpeed engines is between the least and the total of the estimate."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_memory", "--deepspeed", "zero0", "zero1", "zero3"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert process.returncode == 0, process.stderr
    table = [line.split("|")[2:6] for line in process.stdout.splitlines() if line.startswith("| tiny")]
    assert [choice.strip() for choice, *_ in table] == ["zero0", "zero1", "zero3"]
    for choice, *figures in table:
        measured, least, total = map(float, figures)
        assert 0.98 * least < measured < 1.02 * total, choice
        assert measured == pytest.approx(least, rel=0.15)
