"""`python -m pipeline.learning_curve`: nested parts of a dataset, power laws, and the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import InputError
from pipeline.data.manifest import Manifest
from pipeline.data.shard import read_shard
from pipeline.data.subset import write_subset
from pipeline.evaluation.learning_curve import CurvePoint, LearningCurve
from pipeline.evaluation.power_law import fit_power_law
from pipeline.evaluation.results import MetricValue
from tests.helpers.trained_run import Workspace, run_command
from tests.helpers.training_caches import write_cache

SMALL = (
    "{model.width: 32, model.heads: 2, model.layers: 1, trainer.steps: 3, trainer.micro_batch: 2, codec.codebooks: 2}"
)


def keys(folder: Path, split: str) -> list[str]:
    """The keys of a split, in the order of its shards."""
    return [sample.key for shard in Manifest.load(folder).splits[split] for sample in read_shard(folder / shard.name)]


def test_parts_are_nested_and_copy_the_validation(tmp_path: Path) -> None:
    """A part has each smaller part of the same seed, about its share of the clips, and all validation clips."""
    source = write_cache(tmp_path / "all", clips=120)
    parts = {share: tmp_path / f"{share}" for share in (0.25, 0.5, 0.75)}
    for share, folder in parts.items():
        manifest = write_subset(source, folder, share, 0, "train", "valid")
        assert manifest.num_samples("train") == len(keys(folder, "train")) == pytest.approx(90 * share, abs=14)
        assert keys(folder, "valid") == keys(source, "valid")
    small, middle, large = (set(keys(folder, "train")) for folder in parts.values())
    assert small < middle < large < set(keys(source, "train"))
    write_subset(source, tmp_path / "other", 0.5, 1, "train", "valid")
    assert set(keys(tmp_path / "other", "train")) != middle


def test_a_part_is_written_once(tmp_path: Path) -> None:
    """The same part is not written again; a part of another seed is refused."""
    source, out = write_cache(tmp_path / "all"), tmp_path / "part"
    write_subset(source, out, 0.5, 0, "train", "valid")
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert write_subset(source, out, 0.5, 0, "train", "valid") == Manifest.load(out)
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before
    with pytest.raises(InputError, match="of another dataset, or of another seed"):
        write_subset(source, out, 0.5, 1, "train", "valid")
    with pytest.raises(InputError, match="give larger shares"):
        write_subset(source, tmp_path / "none", 1e-9, 0, "train", "valid")


def test_fit_finds_an_exact_power_law() -> None:
    law = fit_power_law([1, 2, 4, 8], [3 * x**-0.5 for x in (1, 2, 4, 8)])
    assert law is not None and law.predict(16) == pytest.approx((0.75, 0.75, 0.75))
    assert fit_power_law([1, 2, 4], [0.1, 0.0, -0.1]) is None


def test_prediction_intervals_have_their_coverage() -> None:
    """About 95 of 100 new measurements are inside the interval that was predicted from four."""
    random, xs = np.random.default_rng(0), np.array([1.0, 2, 4, 8])
    inside = 0
    for _ in range(400):
        ys, new = np.exp(random.normal(-0.3 * np.log(xs), 0.1)), np.exp(random.normal(-0.3 * np.log(16), 0.1))
        law = fit_power_law(list(xs), list(ys))
        assert law is not None
        _, low, high = law.predict(16)
        inside += low <= new <= high
    assert 0.92 <= inside / 400 <= 0.98


def test_a_metric_at_its_ceiling_has_no_forecast() -> None:
    points = [
        CurvePoint(
            share, share, 1, None, 2 - share / 2, {"pitch": MetricValue(mean=pitch, interval=[0, 1], n=4)}, CEILING
        )
        for share, pitch in ((0.25, 0.5), (0.5, 0.7), (1.0, 0.8))
    ]
    curve = LearningCurve(points)
    assert [quantity.name for quantity in curve.quantities] == ["loss", "pitch"] and curve.target_hours == 2
    assert curve.quantities[1].forecast is None and "at its ceiling" in curve.conclusion[-1]
    assert curve.to_dict()["forecast"]["loss"]["value"] < 1.5


CEILING = {"pitch": MetricValue(mean=0.8, interval=[0, 1], n=4)}


def test_command_trains_on_parts_and_resumes(here: None, workspace: Workspace, tmp_path: Path) -> None:
    """The same command again trains nothing and writes the same; a lost evaluation is measured again."""
    settings = (
        f"shards={workspace.dataset}", f"out={tmp_path}", "n=2", "shares=[0.4,0.7,1]", f"train={SMALL}"
    )  # fmt: skip
    assert run_command("learning_curve", *settings) == 0
    content = (tmp_path / "learning_curve.json").read_text()
    points = json.loads(content)["points"]
    assert [point["share"] for point in points] == [0.4, 0.7, 1]
    assert sorted(point["hours"] for point in points) == [point["hours"] for point in points]
    assert len({point["petaflop"] for point in points}) == 1, "the models differ in compute"
    page = (tmp_path / "learning_curve.html").read_text()
    assert page.count("<svg") == 1 + len(json.loads(content)["ceiling"]) and "hours of sound" in page
    exports = {file: file.stat().st_mtime_ns for file in tmp_path.glob("share-*/run/checkpoints/*/*")}
    shutil.rmtree(tmp_path / "share-0.7" / "run" / "evaluation")
    assert run_command("learning_curve", *settings) == 0
    assert (tmp_path / "learning_curve.json").read_text() == content
    assert exports == {file: file.stat().st_mtime_ns for file in tmp_path.glob("share-*/run/checkpoints/*/*")}
