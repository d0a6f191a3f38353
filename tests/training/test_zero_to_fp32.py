"""Weights out of DeepSpeed's files: exactly those that the ranks had at any stage, and nothing run on the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.common.errors import InputError
from pipeline.models import model_stats
from pipeline.models.codec_gpt import CodecGPT, ModelConfig
from pipeline.training import checkpoint, memory_model
from pipeline.training.distributed import World
from pipeline.training.zero_to_fp32 import check_pickles_are_safe, consolidated_state_dict
from tests.helpers.sharded_checkpoints import KINDS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    command = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "-m", "tests.helpers.sharded_checkpoints", out], env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_those_that_the_ranks_had(runs: Path, kind: str) -> None:
    folder = runs / kind / "checkpoints" / "step-2"
    found, truth = consolidated_state_dict(folder, mean=False), load_file(runs / kind / "truth.safetensors")
    assert found.keys() == truth.keys() and {"prompt_mean", "prompt_std"} < found.keys()
    for name, value in truth.items():
        assert torch.equal(found[name], value), name
    assert {value.dtype for value in found.values()} == {torch.float32}
    config = checkpoint.read_metadata(folder)["model"]
    CodecGPT(ModelConfig(**config)).load_state_dict(found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_takes_the_disk_that_was_foretold(runs: Path, kind: str) -> None:
    folder = runs / kind / "checkpoints" / "step-2"
    state = checkpoint.read_metadata(folder)
    total = model_stats.num_parameters(ModelConfig(**state["model"]))
    setup = memory_model.ShardingConfig(state["stage"], kind.endswith("bf16"), 2, 2)
    taken = sum(file.stat().st_size for file in folder.rglob("*"))
    assert taken == pytest.approx(memory_model.checkpoint_bytes(total, setup, ema=kind.startswith("1-")), rel=0.06)


def test_the_running_mean_is_taken_where_there_is_one(runs: Path) -> None:
    folder = runs / "1-bf16" / "checkpoints" / "step-2"
    mean, last = consolidated_state_dict(folder), consolidated_state_dict(folder, mean=False)
    assert mean.keys() == last.keys()
    assert torch.equal(mean["head.weight"], last["head.weight"].bfloat16().float())  # taken just now
    assert not torch.equal(mean["head.weight"], last["head.weight"])
    assert torch.equal(mean["prompt_mean"], last["prompt_mean"])


def test_a_rank_that_is_missing_is_told(runs: Path, tmp_path: Path) -> None:
    folder = copy(runs / "2-bf16", tmp_path)
    (folder / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(InputError, match="shares of 1 ranks, and 2 ranks saved it"):
        consolidated_state_dict(folder)


def test_a_torn_file_is_told(runs: Path, tmp_path: Path) -> None:
    folder = copy(runs / "2-bf16", tmp_path)
    file = folder / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"rank_1.*is damaged"):
        consolidated_state_dict(folder)


class Trap:
    """What a forged checkpoint would have run."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch sprung",)


def test_nothing_that_a_forged_file_says_is_run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy(runs / "1-fp32", tmp_path)
    monkeypatch.chdir(tmp_path)
    torch.save({"module": Trap()}, folder / "mp_rank_00_model_states.pt")
    for read in (consolidated_state_dict, check_pickles_are_safe):
        with pytest.raises(InputError, match=r"mp_rank_00_model_states\.pt holds more than a checkpoint does"):
            read(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_what_deepspeed_writes_holds_no_code(runs: Path, kind: str) -> None:
    """So each file can be looked through before DeepSpeed's own reader runs whatever it says."""
    check_pickles_are_safe(runs / kind / "checkpoints" / "step-2")


def test_another_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint of this trainer"):
        consolidated_state_dict(tmp_path)
    torch.save({"module": {}, "something": 1}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(InputError, match="not laid out as DeepSpeed does"):
        consolidated_state_dict(tmp_path)


def copy(run: Path, to: Path) -> Path:
    """A copy of a run's checkpoint, to be damaged."""
    return Path(shutil.copytree(run / "checkpoints" / "step-2", to / "step-2"))


@pytest.mark.parametrize("kind", ["1-bf16", "2-bf16", "3-fp32"])
def test_deepspeeds_own_tool_reads_the_latest_checkpoint(runs: Path, kind: str) -> None:
    """What zero_to_fp32.py does: no tag is given."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    found = get_fp32_state_dict_from_zero_checkpoint(str(runs / kind / "checkpoints"))
    for name, value in load_file(runs / kind / "truth.safetensors").items():
        assert torch.equal(found[name].float(), value), name


def test_a_checkpoint_is_converted_into_the_run_that_resumes(runs: Path, tmp_path: Path) -> None:
    """The run that it is from is only read; the result serves again, unless it is damaged or of another checkpoint."""
    source, alone = runs / "1-fp32" / "checkpoints" / "step-2", World(0, 1, torch.device("cpu"))
    before = {file: file.stat().st_mtime_ns for file in (runs / "1-fp32").rglob("*")}
    made = checkpoint.to_universal(source, alone, tmp_path / "new")
    assert made == tmp_path / "new" / "checkpoints" / "universal-2" and not checkpoint.damage(made)
    assert {file: file.stat().st_mtime_ns for file in (runs / "1-fp32").rglob("*")} == before
    again = {file: file.stat().st_mtime_ns for file in made.rglob("*")}
    assert checkpoint.to_universal(source, alone, tmp_path / "new") == made
    assert {file: file.stat().st_mtime_ns for file in made.rglob("*")} == again
    assert not checkpoint.is_conversion_of(runs / "1-bf16" / "checkpoints" / "step-2", made)
    next(made.rglob("exp_avg.pt")).unlink()
    assert not checkpoint.is_conversion_of(source, made)
