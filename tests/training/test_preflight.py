"""The preflight: a table of estimates, and a refusal with its arithmetic if the run does not fit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config.cli import load_settings
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.model_config import ModelConfig
from pipeline.training import checkpoint, preflight
from pipeline.training.context import RunContext
from pipeline.training.data import TrainData, open_datasets
from pipeline.training.distributed import World
from pipeline.training.engine import model_config
from pipeline.training.run_estimate import Hardware, RunEstimate
from pipeline.training.settings import TrainSettings
from tests.helpers.training_caches import write_cache
from tests.training.test_train import train_ranks

GIB = 2**30
H100 = Hardware("H100", cuda=True, ranks=8, ranks_per_node=8, memory=79 * GIB, host=1000 * GIB, disk=1000 * GIB)
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("caches") / "cache", lengths=(300,))


def settings(cache: Path, *overrides: str) -> tuple[TrainSettings, ModelConfig, TrainData]:
    """Settings, model and data, as `pipeline.train` passes them to the preflight."""
    small = ["codec=encodec_embedded", "codec.codebooks=4", f"shards='{cache}'", "model=tiny"]
    settings = load_settings(TrainSettings, [*small, *overrides])
    data = open_datasets(settings)
    return settings, model_config(settings, data), data


def estimate(cache: Path, *overrides: str, hardware: Hardware = H100, bf16: bool = True) -> RunEstimate:
    return RunEstimate(*settings(cache, *overrides), hardware, bf16)


def check(cache: Path, run: Path, *overrides: str) -> bool:
    train_settings, model, data = settings(cache, f"run='{run}'", *overrides)
    return preflight.run_preflight(RunContext(train_settings, run, ALONE), model, data)


def test_table_counts_a_transformer_over_codebooks(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its parameters, and its layers; it stores more for the backward pass than linear heads."""
    overrides = ("pattern=depth", "pattern.layers=2", "pattern.width=32")
    assert check(cache, tmp_path / "run", *overrides) is False
    output = " ".join(capsys.readouterr().out.split())
    head = sum(p.numel() for p in CodecGPT(settings(cache, *overrides)[1]).head.parameters())
    assert f"head {head:,}" in output and "2 layers of width 32 over the codes of a frame" in output
    with_depth, without = (estimate(cache, *each) for each in (overrides, ("pattern=parallel",)))
    assert with_depth.memory(with_depth.sharding).activations > 1.05 * without.memory(without.sharding).activations


def test_table_has_the_estimates(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = (
        "trainer.steps=90",
        "trainer.micro_batch=4",
        "trainer.gradient_accumulation_steps=2",
        "trainer.save_every=10",
    )
    assert check(cache, tmp_path / "run", *overrides) is False
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("[")]  # by DeepSpeed
    output = " ".join(" ".join(lines).split())
    parameters = sum(p.numel() for p in CodecGPT(settings(cache, *overrides)[1]).parameters())
    assert f"model {parameters:,} parameters" in output
    assert "300 frames (4.00 s, the longest clip) of 4 codebooks are 303 steps under pattern delay, of 1024" in output
    assert "8 clips = 4 micro_batch x 2 gradient_accumulation_steps x 1 ranks" in output
    assert "45 clips, 5.6 steps; 0.05 h of training audio, 0.0167 h of validation audio" in output
    assert "90 steps are 16.0 epochs" in output
    assert f"{cache}/: encodec_embedded at 75 Hz, 4 of 4 codebooks" in output.replace(f"{cache}:", f"{cache}/:")
    assert re.search(r"zero0 .*zero1 <- .*zero2 .*zero3 .*zero2_offload .*zero3_offload ", output)
    assert "5 checkpoints of" in output and not (tmp_path / "run").exists()
    assert max(map(len, lines)) <= 80, lines


def test_preflight_only_prints_one_table_on_two_ranks(cache: Path, tmp_path: Path) -> None:
    out = train_ranks(cache, tmp_path / "run", "trainer.preflight=only")
    assert out.count("preflight: delay_gpt2") == 1 and "memory of a rank of 2 in fp32" in out
    assert re.search(r"time: a step takes \S+ s here, so 200,000 steps take \S+", out)
    assert not (tmp_path / "run").exists()


def test_preflight_can_be_skipped(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(cache, tmp_path, "trainer.preflight=false", "trainer.micro_batch=100000000") is False
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("deepspeed", ["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"])
def test_table_has_every_choice_of_deepspeed(cache: Path, deepspeed: str) -> None:
    run = estimate(cache, f"deepspeed={deepspeed}")
    assert run.sharding_choices()[deepspeed] == run.sharding and len(run.sharding_choices()) == 6
    zero = "++deepspeed.zero_optimization"
    changed = estimate(
        cache, f"deepspeed={deepspeed}", f"{zero}.reduce_bucket_size=7", f"{zero}.contiguous_gradients=true"
    )
    assert changed.sharding_choices()["yours"] == changed.sharding


def test_too_little_memory_is_refused_with_sum_and_fix(cache: Path) -> None:
    overrides = ("model=xl", "trainer.micro_batch=256", "trainer.compile=false", "deepspeed=zero1")
    (message,) = preflight.find_blockers(estimate(cache, *overrides))
    match = re.match(r"a rank needs at least ([\d.]+) GiB \((.*?)\) but has ([\d.]+) GiB of H100", message)
    assert match
    needed, parts, has = match.groups()
    summed = sum(float(n) * {"GiB": 1, "MiB": 1 / 1024}[u] for n, u in re.findall(r"([\d.]+) ([GM]iB)", parts))
    assert float(needed) == pytest.approx(summed, abs=0.2) and float(needed) > float(has) == 79.0
    (fitting,) = re.findall(r"trainer\.micro_batch=(\d+)", message)
    assert not preflight.find_blockers(estimate(cache, *overrides, f"trainer.micro_batch={fitting}"))
    assert preflight.find_blockers(estimate(cache, *overrides, f"trainer.micro_batch={int(fitting) + 1}"))
    assert "trainer.activation_checkpointing=true" in message and message.endswith("preflight=false to try it anyway")
    assert not preflight.find_blockers(estimate(cache, *overrides, "trainer.activation_checkpointing=true"))


def test_more_sharding_is_suggested(cache: Path) -> None:
    small = replace(H100, memory=16 * GIB)
    overrides = ("model=xl", "trainer.micro_batch=1")
    (message,) = preflight.find_blockers(estimate(cache, *overrides, "deepspeed=zero0", hardware=small))
    assert re.search(r"optimizer 16\.\d GiB", message) and "deepspeed=zero1," in message
    assert not preflight.find_blockers(estimate(cache, *overrides, "deepspeed=zero1", hardware=small))
    (message,) = preflight.find_blockers(estimate(cache, *overrides, hardware=replace(small, memory=GIB // 8)))
    assert "no setting fits: use more ranks, shorter clips" in message


def test_too_little_disk_is_refused(cache: Path, tmp_path: Path) -> None:
    overrides = ("model=small", "trainer.keep=3", "trainer.keep_best=true", "trainer.keep_every=0", f"run='{tmp_path}'")
    run = estimate(cache, *overrides)
    (size, count), needed = run.checkpoints, run.disk_bytes
    assert count == 5 and needed > 5 * size  # the three newest, the best, and the one being written
    (message,) = preflight.find_blockers(estimate(cache, *overrides, hardware=replace(H100, disk=2 * GIB)))
    assert re.match(r"5 checkpoints of 1\.\d GiB and the export need \d\.\d GiB more at .*2\.0 GiB are free", message)
    (tmp_path / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-1" / "shard").write_bytes(bytes(10**7))
    assert estimate(cache, *overrides).disk_bytes == needed - 10**7  # existing checkpoints are not counted twice


def test_too_little_host_memory_for_offload_is_refused(cache: Path) -> None:
    (message,) = preflight.find_blockers(
        estimate(cache, "model=xl", "deepspeed=zero3_offload", hardware=replace(H100, host=20 * GIB))
    )
    assert re.match(r"8 ranks per node need at least \d+\.\d GiB of host memory, but 20\.0 GiB are free", message)


def test_warnings(cache: Path) -> None:
    def warnings(*overrides: str, **changes: int) -> str:
        changed = estimate(
            cache, *overrides, hardware=replace(H100, **{k: v for k, v in changes.items() if k != "done"})
        )
        return " ".join(preflight.find_warnings(replace(changed, resumed_step=changes.get("done", 0))))

    few = ("trainer.micro_batch=1", "trainer.steps=100", "optim.schedule.warmup=10", "trainer.val_every=50")
    assert "an epoch has 45 clips but a step takes 128: clips repeat within a step" in warnings()
    assert warnings(*few, "trainer.save_every=50") == ""
    assert "data.valid=test: no validation loss" in warnings("data.valid=test")
    assert "at step 7 of 5" in warnings("trainer.steps=5", done=7)
    assert "no gradients in its first step: zero1 does" in warnings("deepspeed=zero0")
    need = estimate(cache, "model=small").memory(estimate(cache, "model=small").sharding, "compiled", 16)
    assert "memory is tight" in warnings("model=small", memory=(need.least + need.total) // 2)
    assert not preflight.find_blockers(estimate(cache, "model=small", hardware=replace(H100, memory=need.least)))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(200_000, "4,444 epochs of 3 min of sound"), (300, "300 steps are few for the intervals")],
)
def test_length_that_fits_the_dataset_is_suggested(cache: Path, steps: int, expected: str) -> None:
    """45 clips of 4 s are 3 minutes; with the suggested settings there is nothing to suggest."""
    overrides = ["trainer.micro_batch=1", f"trainer.steps={steps}"]
    one = replace(H100, ranks=1, ranks_per_node=1)
    (line,) = preflight.suggest_length(estimate(cache, *overrides, hardware=one))
    assert line.startswith(expected) and "optim.schedule.warmup=" in line
    suggested = line.partition("would fit: ")[2].split()
    assert preflight.suggest_length(estimate(cache, *overrides, *suggested, hardware=one)) == []


def test_resumed_run_shows_its_step(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "checkpoints" / "step-30"
    path.mkdir(parents=True)
    (path / checkpoint.COMPLETE).write_text('{"step": 30, "ranks": 1, "stage": 1, "model": {}}')
    train_settings, model, data = settings(cache, f"run='{tmp_path}'", "trainer.steps=90")
    preflight.run_preflight(RunContext(train_settings, tmp_path, ALONE), model, data, checkpoint.Checkpoint.read(path))
    assert "30 are done" in capsys.readouterr().out
