"""Which part of a plan this process makes, where several machines share one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.common.errors import InputError


@dataclass(frozen=True)
class Partition:
    """Part `number` (from 1) of `count`; said: what told so, for messages."""

    number: int = 1
    count: int = 1
    source: str = "part"

    def contains(self, shard: int) -> bool:
        """Whether the shard of this place in the plan is ours: every `count`-th is."""
        return shard % self.count == self.number - 1


def parse_partition(part: str, env: Mapping[str, str] = os.environ) -> Partition:
    """The share that `part` names: "3/16", or "auto" for what Slurm says of its array and of the step's tasks.

    Raises InputError for a part that is none.
    """
    if part != "auto":
        found = re.fullmatch(r"(\d+)/(\d+)", str(part))
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"part={part}: expected n/m with n from 1 to m, as 3/16, or auto")
        return Partition(int(found[1]), int(found[2]))
    index, count, said = 0, 1, []
    if "SLURM_ARRAY_TASK_ID" in env:
        first, step = int(env.get("SLURM_ARRAY_TASK_MIN", 0)), int(env.get("SLURM_ARRAY_TASK_STEP", 1))
        # the count and not the greatest id: an array may be cut short, --array=0-15%4 or 3-9:2
        index, count = (int(env["SLURM_ARRAY_TASK_ID"]) - first) // step, int(env["SLURM_ARRAY_TASK_COUNT"])
        said.append("SLURM_ARRAY_TASK_ID")
        if not 0 <= index < count:
            raise InputError(
                f"SLURM_ARRAY_TASK_ID={env['SLURM_ARRAY_TASK_ID']} is no part of an even array: give part="
            )
    # a batch script outside srun is told of its tasks too, but is alone: only a step has these
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", 1)) if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env else 1
    if tasks > 1:
        index, count = index * tasks + int(env["SLURM_PROCID"]), count * tasks
        said.append("SLURM_PROCID")
    return Partition(index + 1, count, " and ".join(said) or "part")
