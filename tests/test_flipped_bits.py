"""One flipped bit, at 200 random positions in the files of a dataset and a run: detected on reading, or harmless."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.common.errors import InputError
from pipeline.data.build_state import PLAN, BuildPlan, plan_digest
from pipeline.data.dataloader import iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.data.manifest import MANIFEST_NAME, Manifest
from pipeline.data.storage import LocalStorage
from pipeline.data.verify import verify
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.model_files import CONFIG, WEIGHTS
from pipeline.train import main
from pipeline.training import checkpoint
from pipeline.training.zero_to_fp32 import consolidated_state_dict
from tests.helpers.training_caches import write_cache
from tests.training.test_train import SMALL

FLIPS = 200
KINDS = {
    "checkpoint": "run/checkpoints/step-2/*",
    "export": f"run/export/{WEIGHTS}",
    "export's config": f"run/export/{CONFIG}",
    "shard": "cache/train-*.tar",
    "index": "cache/train-*.npy",
    "manifest": f"cache/{MANIFEST_NAME}",
    "plan": f"cache/{PLAN}",
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with its plan, and a run of two steps with its checkpoint and export."""
    handlers, workspace = logging.getLogger().handlers[:], tmp_path_factory.mktemp("flips")
    cache = write_cache(workspace / "cache", per_shard=24)
    manifest, store = Manifest.load(cache), LocalStorage(cache)
    BuildPlan({"seed": 0}, {"codec": manifest.codec, "embedder": manifest.embedder}, "00", []).save(store)
    manifest.plan = plan_digest(store)
    manifest.save(cache)
    overrides = [
        "+exp=delay_gpt2",
        f"shards={cache}",
        f"run={workspace / 'run'}",
        *SMALL,
        "trainer.steps=2",
        "trainer.ema=0.9",
    ]
    assert main.task(overrides) == 0
    logging.getLogger().handlers[:] = handlers
    return workspace


def read_checkpoint(workspace: Path) -> dict[str, Any]:
    """Everything that a resume reads."""
    folder = workspace / "run" / "checkpoints" / "step-2"
    for fault in checkpoint.damage(folder):
        raise InputError(fault)
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != checkpoint.COMPLETE}
    return {"state": checkpoint.read_metadata(folder), "files": files}


def read_export(workspace: Path) -> dict[str, Any]:
    """The model, as generation loads it."""
    model = CodecGPT.from_pretrained(workspace / "run" / "export")
    return {"config": model.config, **{name: value.numpy().tobytes() for name, value in model.state_dict().items()}}


def read_cache(workspace: Path) -> dict[str, Any]:
    """Everything that training reads."""
    split = ShardedDataset(workspace / "cache", "train")
    batches = [
        (b.codes.tolist(), b.frames.tolist(), b.prompts_fp16.view(torch.int16).tolist()) for b in iter_once(split, 8)
    ]
    return {"lengths": split.lengths().tolist(), "batches": batches, "manifest": split.manifest}


def read_plan(workspace: Path) -> dict[str, Any]:
    """The plan, which `shards verify` compares with the manifest."""
    store = LocalStorage(workspace / "cache")
    faults = [line for line in verify(store) if PLAN in line]
    if faults:
        raise InputError(faults[0])
    return {"plan": BuildPlan.load(store)}


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "checkpoint": read_checkpoint, "export": read_export, "export's config": read_export, "shard": read_cache,
    "index": read_cache, "manifest": read_cache, "plan": read_plan,
}  # fmt: skip


def test_flipped_bits_are_detected_or_harmless(workspace: Path) -> None:
    """A flipped bit leads to the same contents or to an error in one line, never to another exception."""
    draw, counts = random.Random(0), Counter[str]()
    files = {kind: sorted(workspace.glob(pattern)) for kind, pattern in KINDS.items()}
    assert all(files.values()), files
    whole = {kind: read(workspace) for kind, read in READERS.items()}
    for number in range(FLIPS):
        kind = [*KINDS][number % len(KINDS)]
        file = draw.choice(files[kind])
        before = file.read_bytes()
        at, bit = draw.randrange(len(before)), draw.randrange(8)
        file.write_bytes(before[:at] + bytes([before[at] ^ 1 << bit]) + before[at + 1 :])
        try:
            assert READERS[kind](workspace) == whole[kind], (
                f"{file}: bit {bit} of byte {at} changed what is read, unnoticed"
            )
            counts[f"{kind}: harmless"] += 1
        except InputError as error:
            assert "\n" not in str(error)
            counts[f"{kind}: detected"] += 1
        finally:
            file.write_bytes(before)
    print(f"\n{FLIPS} flipped bits: " + ", ".join(f"{name} {n}" for name, n in sorted(counts.items())))
    assert sum(counts.values()) == FLIPS and not {"checkpoint: harmless", "shard: harmless"} & counts.keys()
    assert all(read(workspace) == whole[kind] for kind, read in READERS.items())


def test_checked_weights_match_the_export(workspace: Path) -> None:
    """The weights of a checkpoint with correct checksums are those of the export."""
    weights = consolidated_state_dict(workspace / "run" / "checkpoints" / "step-2")
    theirs = load_file(workspace / "run" / "export" / WEIGHTS)
    assert all(torch.equal(weights[name], theirs[name]) for name in theirs)
    assert json.loads((workspace / "run" / "export" / CONFIG).read_text())["files"].keys() == {WEIGHTS}
