"""What a run folder holds, damaged: settings, checkpoints' notes, sidecars of sounds, evaluations, exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given

from pipeline.listen import run_folder, sidecar
from pipeline.lm import checkpoint
from pipeline.lm.model import CONFIG, WEIGHTS, CodecGPT, ModelConfig
from tests.fuzz.damage import damaged, damaged_json, inside, refused_or_right, seeds, some, text_of

SETTINGS: dict[str, Any] = {"shards": "shards/x", "data": {"seconds": 1.0, "train": "train"}, "codec": {"name": "x"}}
STATE = {"step": 3, "place": 12, "seed": 0, "ranks": 1, "stage": 1, "model": {"width": 16}, "val_loss": 6.5}
EVALUATION = {"loss": {"model": {"nats": 1.0}}, "temperatures": {"1.0": {}}, "ceiling": {}, "settings": {"n": 3}}


def put(path: Path, seed: int, told: Any) -> Path:
    """A damaged value as JSON (which is YAML), or its damaged bytes."""
    as_bytes = seed % 3 == 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        damaged(seed, [json.dumps(told, indent=1).encode(), yaml.safe_dump(told).encode()])
        if as_bytes
        else text_of(damaged_json(seed, told)).encode()
    )
    return path


@some(25)
@given(seed=seeds)
def test_damaged_settings(tmp_path: Path, seed: int) -> None:
    put(tmp_path / "config.yaml", seed, SETTINGS)
    with refused_or_right(str(tmp_path)):
        assert isinstance(run_folder.shards(tmp_path), str)


@some(100)
@given(seed=seeds)
def test_a_damaged_log_gives_the_rows_that_are_whole(tmp_path: Path, seed: int) -> None:
    rows = [{"step": step, "train/loss": 6.0} for step in range(3)]
    (tmp_path / "metrics.jsonl").write_bytes(
        b"".join(text_of(damaged_json(seed, row)).encode() + b"\n" for row in rows[:1])
        + damaged(seed, [b"\n".join(json.dumps(row).encode() for row in rows)])
    )
    with refused_or_right(str(tmp_path)):
        assert all(isinstance(row, dict) for row in run_folder.metrics(tmp_path))


@some(100)
@given(seed=seeds)
def test_a_damaged_evaluation(tmp_path: Path, seed: int) -> None:
    path = put(tmp_path / "evaluate.json", seed, EVALUATION)
    with refused_or_right(str(tmp_path)):
        assert run_folder.evaluation(path)


@some(100)
@given(seed=seeds)
def test_a_damaged_note_of_a_checkpoint(tmp_path: Path, seed: int) -> None:
    put(tmp_path / "checkpoints" / "step-3" / checkpoint.COMPLETE, seed, STATE)
    config = ModelConfig(2, "delay", 4, 16, 1, 2, 16, 0.0, 0.0, False)
    with inside(tmp_path), refused_or_right(str(tmp_path)):
        found = checkpoint.saved(tmp_path)
        checkpoint.best_of(found)
        checkpoint.check_model(found[0], config)


@some(150)
@given(seed=seeds)
def test_a_damaged_sidecar(tmp_path: Path, seed: int) -> None:
    """A source that it names is opened only to take its hash."""
    source = tmp_path / "a.wav"
    source.write_bytes(b"sound")
    told = {
        "format": 1,
        "sound": "b.wav",
        "codes_sha256": "00",
        "settings": {"mode": "prompt", "seed": 0, "prompt": str(source)},
        "sources": [{"path": str(source), "sha256": sidecar.sha256_of(source)}],
        "batch": {"rows": 1, "row": 0},
        "export": {"folder": "runs/x/export", "sha256": "00"},
        "versions": {"torch": "2"},
        "device": "cpu",
    }
    path = put(tmp_path / "b.json", seed, told)
    with refused_or_right("b.json"):
        found = sidecar.read(path)
        assert found["batch"]["row"] < found["batch"]["rows"]
        sidecar.check(path, found, _Instrument())  # type: ignore[arg-type]


class _Instrument:
    folder = Path("runs/x/export")
    identity = {"export": {"sha256": "00"}, "versions": {"torch": "2"}, "device": "cpu"}  # noqa: RUF012


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(2, "delay", 4, 16, 1, 2, 16, 0.0, 0.0, False, 32, codec={"name": "x"}, embedder={"name": "y"})
    folder = tmp_path_factory.mktemp("fuzz") / "export"
    CodecGPT(config).save_pretrained(folder)
    CodecGPT.from_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@some(60)
@given(seed=seeds)
def test_a_damaged_export(export: Path, name: str, seed: int) -> None:
    whole = (export / name).read_bytes()
    if name == CONFIG and seed % 3:
        (export / name).write_text(text_of(damaged_json(seed, json.loads(whole))))
    else:
        (export / name).write_bytes(damaged(seed, [whole]))
    try:
        with inside(export), refused_or_right(str(export)):
            assert CodecGPT.from_pretrained(export).config.width == 16
    finally:
        (export / name).write_bytes(whole)
