"""An adapter without its merged model generates, is evaluated and is shown like any run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import soundfile
import torch

import pipeline
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.lora import Adapter, add_adapter, write_adapter
from tests.helpers.trained_run import Workspace, generate, run_command, sidecar


@pytest.fixture(scope="module")
def runs(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder with an adapter alone, and one with the same model merged."""
    folder, base = tmp_path_factory.mktemp("adapters"), workspace.run()
    model = CodecGPT.from_pretrained(base / "export")
    adapter = Adapter(
        rank=4, alpha=8.0, dropout=0.0, train_embeddings=False, base=str(base / "export"),
        base_sha256=model.weights_sha256,
    )  # fmt: skip
    add_adapter(model, adapter)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, std=0.1) if ".lora_B." in name else None
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    runs = {"alone": folder / "alone", "merged": folder / "merged"}
    write_adapter(runs["alone"] / "export" / "adapter", trained, adapter)
    CodecGPT.from_pretrained(runs["alone"] / "export" / "adapter").save_pretrained(runs["merged"] / "export")
    for run in runs.values():
        shutil.copy(base / "config.yaml", run)
    return runs


def test_adapter_generates_the_sound_of_the_merged_model(
    workspace: Workspace, runs: dict[str, Path], tmp_path: Path
) -> None:
    sounds = {}
    for name, run in {**runs, "base": workspace.run(), "folder": runs["alone"] / "export" / "adapter"}.items():
        out = tmp_path / f"{name}.wav"
        assert generate(f"run={run}", f"prompt={workspace.tones[0]}", f"out={out}", "seconds=0.2") == 0
        sounds[name] = soundfile.read(out)[0].tolist()
    assert sounds["alone"] == sounds["folder"] == sounds["merged"] != sounds["base"]
    assert sidecar(tmp_path / "alone.wav")["export"]["folder"].endswith("export/adapter")


def test_adapter_is_evaluated_reported_and_shown(workspace: Workspace, runs: dict[str, Path]) -> None:
    small = ("n=4", "resamples=10", "temperatures=[1.0]")
    for run in runs.values():
        assert run_command("evaluate", f"run={run}", f"shards={workspace.dataset}", *small) in (0, None)
    results = [pipeline.load_run(run, device="cpu").sha256 for run in runs.values()]
    assert results[0] != results[1]
    assert run_command(
        "report", f"run={runs['alone']}", f"shards={workspace.dataset}", "n=2", "temperatures=[1.0]", "steps=3",
        "num_interpolations=1",
    ) in (0, None)  # fmt: skip
    assert list(runs["alone"].rglob("*.html"))
