"""Weights from DeepSpeed's files equal those of the ranks at every stage, and no code of the files is run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.common.errors import InputError
from pipeline.models import model_stats
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.model_config import ModelConfig
from pipeline.training import checkpoint, memory
from pipeline.training.distributed import World
from pipeline.training.zero_to_fp32 import check_pickles_are_safe, consolidated_state_dict
from tests.helpers.ranks import start_ranks
from tests.helpers.sharded_checkpoints import KINDS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    start_ranks(out, "tests.helpers.sharded_checkpoints", str(out)).wait()
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_weights_equal_those_of_the_ranks(runs: Path, kind: str) -> None:
    folder = runs / kind / "checkpoints" / "step-2"
    weights, expected = consolidated_state_dict(folder, use_ema=False), load_file(runs / kind / "truth.safetensors")
    assert weights.keys() == expected.keys() and {"prompt_mean", "prompt_std"} < weights.keys()
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name
    assert {value.dtype for value in weights.values()} == {torch.float32}
    config = checkpoint.read_metadata(folder)["model"]
    CodecGPT(ModelConfig(**config)).load_state_dict(weights)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_size_matches_the_estimate(runs: Path, kind: str) -> None:
    folder = runs / kind / "checkpoints" / "step-2"
    state = checkpoint.read_metadata(folder)
    parameters = model_stats.num_parameters(ModelConfig(**state["model"]))
    sharding = memory.ShardingConfig(state["stage"], kind.endswith("bf16"), 2, 2)
    size = sum(file.stat().st_size for file in folder.rglob("*"))
    assert size == pytest.approx(memory.checkpoint_bytes(parameters, sharding, ema=kind.startswith("1-")), rel=0.06)


def test_moving_average_is_used_if_there_is_one(runs: Path) -> None:
    folder = runs / "1-bf16" / "checkpoints" / "step-2"
    mean, last = consolidated_state_dict(folder), consolidated_state_dict(folder, use_ema=False)
    assert mean.keys() == last.keys()
    assert torch.equal(mean["head.weight"], last["head.weight"].bfloat16().float())  # as it was just initialized
    assert not torch.equal(mean["head.weight"], last["head.weight"])
    assert torch.equal(mean["prompt_mean"], last["prompt_mean"])


def test_missing_rank_is_refused(runs: Path, tmp_path: Path) -> None:
    folder = copy(runs / "2-bf16", tmp_path)
    (folder / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(InputError, match="files of 1 ranks, but was saved by 2 ranks"):
        consolidated_state_dict(folder)


def test_truncated_file_is_refused(runs: Path, tmp_path: Path) -> None:
    folder = copy(runs / "2-bf16", tmp_path)
    file = folder / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"rank_1.*is damaged"):
        consolidated_state_dict(folder)


class Trap:
    """Code that a forged checkpoint would run."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


def test_code_in_a_forged_file_is_not_run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy(runs / "1-fp32", tmp_path)
    monkeypatch.chdir(tmp_path)
    torch.save({"module": Trap()}, folder / "mp_rank_00_model_states.pt")
    for read in (consolidated_state_dict, check_pickles_are_safe):
        with pytest.raises(
            InputError, match=r"mp_rank_00_model_states\.pt contains more than the data of a checkpoint"
        ):
            read(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_deepspeeds_own_files_are_accepted(runs: Path, kind: str) -> None:
    check_pickles_are_safe(runs / kind / "checkpoints" / "step-2")


def test_other_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a checkpoint of this trainer"):
        consolidated_state_dict(tmp_path)
    torch.save({"module": {}, "something": 1}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(InputError, match="does not have DeepSpeed's file layout"):
        consolidated_state_dict(tmp_path)


def copy(run: Path, to: Path) -> Path:
    """A copy of the checkpoint of a run, to be damaged."""
    return Path(shutil.copytree(run / "checkpoints" / "step-2", to / "step-2"))


@pytest.mark.parametrize("kind", ["1-bf16", "2-bf16", "3-fp32"])
def test_deepspeeds_own_tool_reads_the_latest_checkpoint(runs: Path, kind: str) -> None:
    """As zero_to_fp32.py does: without a tag."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    weights = get_fp32_state_dict_from_zero_checkpoint(str(runs / kind / "checkpoints"))
    for name, value in load_file(runs / kind / "truth.safetensors").items():
        assert torch.equal(weights[name].float(), value), name


def test_conversion_is_written_to_the_run_that_resumes(runs: Path, tmp_path: Path) -> None:
    """The source run is only read; the remains of an interrupted conversion are replaced."""
    source = checkpoint.Checkpoint.read(runs / "1-fp32" / "checkpoints" / "step-2")
    before = {file: file.stat().st_mtime_ns for file in (runs / "1-fp32").rglob("*")}
    remains = tmp_path / "new" / "checkpoints" / "universal-2" / "zero" / "remains.pt"
    remains.parent.mkdir(parents=True)
    remains.touch()
    universal = checkpoint.to_universal(source, World(0, 1, torch.device("cpu")), tmp_path / "new")
    assert universal == tmp_path / "new" / "checkpoints" / "universal-2" and not remains.exists()
    assert next(universal.rglob("exp_avg.pt")) and not checkpoint.list_checkpoints(tmp_path / "new")
    assert {file: file.stat().st_mtime_ns for file in (runs / "1-fp32").rglob("*")} == before
