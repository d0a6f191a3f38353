"""The part of a plan that this process builds, where several machines share the work."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.common.errors import InputError


@dataclass(frozen=True)
class Partition:
    """Part `number` (from 1) of `count`. source: where this is set, for messages."""

    number: int = 1
    count: int = 1
    source: str = "part"

    def contains(self, shard: int) -> bool:
        """Whether the shard at this index of the plan belongs to this part: every `count`-th does."""
        return shard % self.count == self.number - 1


def parse_partition(part: str, env: Mapping[str, str] = os.environ) -> Partition:
    """The part that a setting names.

    Args:
        part: As "3/16"; or "auto" for the index in a Slurm array and among the tasks of a Slurm step.
        env: The environment with Slurm's variables.

    Raises:
        InputError: `part` is not a valid part.
    """
    if part != "auto":
        match = re.fullmatch(r"(\d+)/(\d+)", str(part))
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"part={part}: expected n/m with n from 1 to m, as 3/16, or auto")
        return Partition(int(match[1]), int(match[2]))
    index, count, sources = 0, 1, []
    if "SLURM_ARRAY_TASK_ID" in env:
        first, step = int(env.get("SLURM_ARRAY_TASK_MIN", 0)), int(env.get("SLURM_ARRAY_TASK_STEP", 1))
        # not the largest id: an array need not start at 0 or have steps of 1, as in --array=3-9:2
        index, count = (int(env["SLURM_ARRAY_TASK_ID"]) - first) // step, int(env["SLURM_ARRAY_TASK_COUNT"])
        sources.append("SLURM_ARRAY_TASK_ID")
        if not 0 <= index < count:
            raise InputError(
                f"SLURM_ARRAY_TASK_ID={env['SLURM_ARRAY_TASK_ID']} is outside the array of tasks; give part="
            )
    # a batch script outside srun also has SLURM_NTASKS, but is one process: only a step has these variables
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", 1)) if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env else 1
    if tasks > 1:
        index, count = index * tasks + int(env["SLURM_PROCID"]), count * tasks
        sources.append("SLURM_PROCID")
    return Partition(index + 1, count, " and ".join(sources) or "part")
