"""Damaged files of a run folder: settings, checkpoint metadata, sidecars, evaluations, exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from omegaconf import OmegaConf

from pipeline.common.files import with_checksum
from pipeline.common.metrics_file import METRICS, MetricsWriter, read_metrics
from pipeline.config.cli import compose
from pipeline.data.storage import is_remote
from pipeline.evaluation import comparison, run_folder
from pipeline.evaluation.html_templates import SectionContent, render_report
from pipeline.evaluation.results import read_evaluation
from pipeline.evaluation.sections.results import render_results
from pipeline.generation import sidecar
from pipeline.hub import model_card
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter, add_adapter, write_adapter
from pipeline.models.model_config import ModelConfig
from pipeline.models.model_files import CONFIG, WEIGHTS
from pipeline.training import checkpoint, resume_check
from tests.helpers.damage import damaged, damaged_json, inside, refused_or_right, seeds, some, text_of

STATE = {"step": 3, "place": 12, "seed": 0, "ranks": 1, "stage": 1, "model": {"width": 16}, "val_loss": 6.5}
FIGURE = {"mean": 0.5, "interval": [0.4, 0.6]}
LOSS = {"nats": 1.0, "nats_codebook": [1.0, 2.0], "bits_second": 99.0}
EVALUATION = {
    "loss": {"clips": 3, "model": LOSS, "unigram": LOSS, "uniform": LOSS},
    "temperatures": {
        "1": {"fidelity": FIGURE, "pitch": FIGURE},
        "0.7": {"fidelity": FIGURE, "distance": {"mean": 3.0}},
    },
    "ceiling": {"fidelity": FIGURE, "pitch": FIGURE, "distance": {"mean": 2.0}},
    "floor": {"fidelity": FIGURE},
    "settings": {"n": 3, "split": "valid", "sampling": {"guidance": 1.0}},
    "distance": {"embedding": {"name": "x"}, "n": 3},
    "export": {"sha256": "00"},
}
ROWS = [{"step": step, "train/loss": 6.0, "val/loss": 6.5, "train/clips": 4, "speed/codes_per_second": 9.0}
        for step in range(3)]  # fmt: skip


def write_damaged(path: Path, seed: int, value: Any) -> Path:
    """Write a damaged value as JSON (which is YAML), or damaged bytes of it."""
    as_bytes = seed % 3 == 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        damaged(seed, [json.dumps(value, indent=1).encode(), yaml.safe_dump(value).encode()])
        if as_bytes
        else text_of(damaged_json(seed, value)).encode()
    )
    return path


@some(25)
@given(seed=seeds)
def test_damaged_settings(tmp_path: Path, seed: int) -> None:
    """Only a local dataset that they name is opened."""
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / "manifest.json").touch()
    settings = {"shards": f"{tmp_path}/cache", "data": {"seconds": 1.0, "train": "train"}, "codec": {"name": "x"}}
    write_damaged(tmp_path / "config.yaml", seed, settings)
    with refused_or_right(str(tmp_path)):
        assert not is_remote(run_folder.training_shards(tmp_path))


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """All settings of training."""
    settings: Any = OmegaConf.to_container(compose("train", ["+exp=delay_gpt2", "shards=gone"]), resolve=True)
    return settings


@some(12)
@given(seed=seeds)
def test_model_card_of_damaged_settings(tmp_path: Path, settings: dict[str, Any], export: Path, seed: int) -> None:
    path = tmp_path / "checkpoints" / "step-3"
    path.mkdir(parents=True, exist_ok=True)
    state = {**STATE, "model": json.loads((export / CONFIG).read_text())}
    state["model"]["embedder"] = state["model"]["codec"] = IDENTITY
    (path / checkpoint.COMPLETE).write_text(json.dumps(state))
    write_damaged(tmp_path / "config.yaml", seed, settings)
    write_damaged(tmp_path / "evaluation" / "evaluate.json", seed, EVALUATION)
    write_damaged(tmp_path / "metrics.jsonl", seed, ROWS[0])
    with refused_or_right(str(tmp_path)):
        text = model_card.render_model_card(path, checkpoint.read_metadata(path), export)
        assert "<" not in text and text.startswith("---\n")


@some(80)
@given(seed=seeds)
def test_damaged_log_yields_its_intact_rows(tmp_path: Path, seed: int) -> None:
    """It can be plotted, compared, and resumed without losing a row before the step."""
    log = tmp_path / METRICS
    log.write_bytes(
        b"".join(text_of(damaged_json(seed + i, ROWS[0])).encode() + b"\n" for i in range(2))
        + damaged(seed, [b"\n".join(json.dumps(row).encode() for row in ROWS)])
    )
    with inside(tmp_path), refused_or_right(str(tmp_path)):
        rows = read_metrics(tmp_path)
        assert all(type(row["step"]) is int and all(abs(x) < 1e101 for x in row.values()) for row in rows)
        render_results(rows, None, "a hint")
        comparison.training_stats(tmp_path, INSTRUMENT, 30.0)
        writer = MetricsWriter(tmp_path, 1)
        writer.write(2, {"train/loss": 5.0})
        writer.close()
        before = [row for row in rows if row["step"] <= 1]
        assert read_metrics(tmp_path) == [*before, {"step": 2, "train/loss": 5.0}]


@some(150)
@given(seed=seeds)
def test_damaged_evaluation(tmp_path: Path, seed: int) -> None:
    """It is refused, or the report of it has no script but ours."""
    path = write_damaged(tmp_path / "evaluate.json", seed, EVALUATION)
    with refused_or_right(str(tmp_path)):
        evaluation = read_evaluation(path)
        results = SectionContent(html=render_results(ROWS, evaluation, "a hint"))
        text = render_report("a run", {}, {"Results": results}, 24_000)
        assert text.count("<script") == 1 and "nan" not in text.partition("<script")[0].partition("</style>")[2]


@some(100)
@given(seed=seeds)
def test_damaged_checkpoint_metadata(tmp_path: Path, seed: int) -> None:
    write_damaged(tmp_path / "checkpoints" / "step-3" / checkpoint.COMPLETE, seed, STATE)
    config = ModelConfig(2, "delay", 4, 16, 1, 2, 16, 0.0, 0.0, False)
    with inside(tmp_path), refused_or_right(str(tmp_path)):
        checkpoints = checkpoint.list_checkpoints(tmp_path)
        checkpoint.best_of(checkpoints)
        resume_check.check_model(checkpoint.Checkpoint.read(checkpoints[0]), config)


@some(150)
@given(seed=seeds)
def test_damaged_sidecar(tmp_path: Path, seed: int) -> None:
    """A source that it names is opened only to compute its hash."""
    source = tmp_path / "a.wav"
    source.write_bytes(b"sound")
    content = {
        "format": sidecar.FORMAT,
        "sound": "b.wav",
        "codes_sha256": "00",
        "settings": {"mode": "prompt", "seed": 0, "prompt": str(source)},
        "sources": [{"path": str(source), "sha256": sidecar.sha256_file(source)}],
        "batch": {"rows": 1, "row": 0},
        "export": {"folder": "runs/x/export", "sha256": "00"},
        "versions": {"torch": "2"},
        "device": "cpu",
    }
    path = write_damaged(tmp_path / "b.json", seed, content)
    with refused_or_right("b.json"):
        record = sidecar.read(path)
        assert record.batch.row < record.batch.rows
        record.check_run(INSTRUMENT)


class _Instrument:
    model = type("Model", (), {"config": ModelConfig(2, "delay", 4, 16, 1, 2, 16, 0.0, 0.0, False)})
    folder, sha256 = Path("runs/x/export"), "00"
    identity = {"export": {"sha256": "00"}, "versions": {"torch": "2"}, "device": "cpu"}  # noqa: RUF012


INSTRUMENT: Any = _Instrument()
IDENTITY = {"name": "x", "weights": "0" * 64, "sample_rate": 24000, "frame_rate": 75, "codebook_size": 1024}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(2, "delay", 4, 16, 1, 2, 16, 0.0, 0.0, False, 32, codec={"name": "x"}, embedder={"name": "y"})
    folder = tmp_path_factory.mktemp("fuzz") / "export"
    CodecGPT(config).save_pretrained(folder)
    CodecGPT.from_pretrained(folder)
    config_json = json.loads((folder / CONFIG).read_text())
    del config_json["sha256"], config_json["files"]  # as in older versions: with checksums, all damage is found early
    (folder / CONFIG).write_text(json.dumps(config_json))
    return folder


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@some(60)
@given(seed=seeds)
def test_damaged_export(export: Path, name: str, seed: int) -> None:
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


@pytest.mark.parametrize("name", [ADAPTER_CONFIG, ADAPTER_WEIGHTS])
@some(40)
@given(seed=seeds)
def test_damaged_adapter(export: Path, name: str, seed: int) -> None:
    folder, base = export.parent / "adapter", CodecGPT.from_pretrained(export)
    if not folder.exists():
        adapter = Adapter(
            rank=2, alpha=1.0, dropout=0.0, train_embeddings=True, base=str(export), base_sha256=base.weights_sha256
        )
        add_adapter(base, adapter)
        write_adapter(folder, {n: p for n, p in base.named_parameters() if p.requires_grad}, adapter)
    whole = (folder / name).read_bytes()
    broken = damaged(seed, [whole])
    if name == ADAPTER_CONFIG and seed % 3:
        content = damaged_json(seed, json.loads(whole))
        content = with_checksum(content) if isinstance(content, dict) else content  # so that no checksum finds it
        broken = text_of(content).encode()
    (folder / name).write_bytes(broken)
    try:
        with inside(export.parent), refused_or_right(str(folder)):
            assert CodecGPT.from_pretrained(folder).config.width == 16
    finally:
        (folder / name).write_bytes(whole)
