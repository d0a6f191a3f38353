"""The shards of a plan are divided among parts."""

import pytest

from pipeline.common.errors import InputError
from pipeline.preprocessing.partition import Partition, parse_partition


def test_every_shard_is_in_exactly_one_part() -> None:
    for count in (1, 2, 3, 16):
        shares = [Partition(number, count) for number in range(1, count + 1)]
        for shard in range(50):
            assert sum(share.contains(shard) for share in shares) == 1


@pytest.mark.parametrize(
    ("env", "number", "count"),
    [
        ({}, 1, 1),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "7"}, 3, 7),
        (
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_MIN": "3",
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_ARRAY_TASK_COUNT": "4",
            },
            3,
            4,
        ),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}, 3, 4),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, 1, 1),  # a batch script without srun is alone
        (
            {
                "SLURM_ARRAY_TASK_ID": "1",
                "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_ARRAY_TASK_COUNT": "2",
                "SLURM_STEP_ID": "0",
                "SLURM_PROCID": "1",
                "SLURM_STEP_NUM_TASKS": "3",
            },
            5,
            6,
        ),
    ],
)
def test_part_comes_from_slurm(env: dict[str, str], number: int, count: int) -> None:
    share = parse_partition("auto", env)
    assert (share.number, share.count) == (number, count)


def test_part_setting_overrides_slurm() -> None:
    share = parse_partition("3/16", {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "7"})
    assert (share.number, share.count) == (3, 16)


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2", ""])
def test_invalid_part_is_refused(part: str) -> None:
    with pytest.raises(InputError, match="n/m"):
        parse_partition(part, {})
