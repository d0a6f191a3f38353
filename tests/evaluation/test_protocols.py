"""Protocols select datasets, clips and labels; the table of a paper is valid Markdown and LaTeX."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from pipeline.common.errors import InputError
from pipeline.config.cli import load_settings
from pipeline.config.conf_files import list_choices
from pipeline.data.dataset import ShardedDataset
from pipeline.data.manifest import Manifest
from pipeline.data.random_clips import sample_clips
from pipeline.evaluation.evaluator import evaluate
from pipeline.evaluation.paper_table import escape_latex
from pipeline.evaluation.protocols import ProtocolSettings, matching
from pipeline.evaluation.reference_clips import ReferenceClip
from pipeline.evaluation.settings import EvaluateSettings
from pipeline.generation.loaded_run import load_run
from tests.helpers.trained_run import Workspace, run_command


def protocol(name: str) -> ProtocolSettings:
    """A protocol of conf/."""
    return load_settings(EvaluateSettings, ["run=RUN", "shards=DIR", f"protocol={name}"]).protocol


@pytest.fixture(scope="module")
def clips(workspace: Workspace) -> list[ReferenceClip]:
    """The clips of the validation split."""
    split = ShardedDataset(workspace.dataset, "valid")
    samples = sample_clips(split.store, split.manifest, 100, 0, "valid")
    return [ReferenceClip(sample, torch.zeros(2, 1)) for sample in samples]


def named(clips: list[ReferenceClip], *keys: str) -> list[ReferenceClip]:
    """Clips with other keys."""
    return [
        dataclasses.replace(clip, sample=dataclasses.replace(clip.sample, key=key))
        for clip, key in zip(clips, keys, strict=False)
    ]


def test_a_protocol_sets_split_and_number_of_clips() -> None:
    for name in list_choices("protocol"):
        own = load_settings(EvaluateSettings, ["run=RUN", "shards=DIR", f"protocol={name}"])
        assert (own.split, own.n) == (own.protocol.split, own.protocol.n)
        assert own.protocol.select.__doc__ and own.protocol.name == name
    assert load_settings(EvaluateSettings, ["run=RUN", "shards=DIR", "protocol=gansynth", "n=9"]).n == 9


def test_a_dataset_of_other_settings_is_refused(workspace: Workspace) -> None:
    manifest = Manifest.load(workspace.dataset)
    protocol("none").check(manifest)
    protocol("nsynth_official").check(manifest)
    with pytest.raises(
        InputError, match=r"protocol=gansynth: .* has data.splits=null, expected nsynth-gansynth_splits"
    ):
        protocol("gansynth").check(manifest)
    with pytest.raises(InputError, match=r"data.name=nsynth, expected jamendo; .* with data=jamendo data.seed=0"):
        protocol("jamendo").check(manifest)


def test_bad_notes_are_left_out_and_counted(clips: list[ReferenceClip]) -> None:
    keys = ("brass_acoustic_046-084-025", "brass_acoustic_046-083-025", "bass_synthetic_009-010-025")
    own = named(clips, *keys)
    kept, record = protocol("nsynth_official").select(own)
    assert [clip.sample.key for clip in kept] == [*keys[1:]]
    assert [*record.left_out.values()] == [*record.bad_labels.values()] == [1]
    patterns = protocol("nsynth_official").bad_labels
    bad = {pitch for pitch in range(128) if matching(named(clips, f"a_b_001-{pitch:03d}-127"), patterns)}
    assert bad == {*range(21), *range(109, 128)}
    with pytest.raises(InputError, match="all 1 clips are left out"):
        protocol("nsynth_official").select(own[:1])


def test_the_table_has_all_rows(workspace: Workspace, nsynth_folder: Path, tmp_path: Path) -> None:
    """Originals, ceiling, the run and the floor, as Markdown and as LaTeX, with a caption."""
    own = ("protocol=nsynth_official", "split=valid", "n=3", f"corpus_root={nsynth_folder}", "metrics=[pitch,fidelity]")
    small = ("resamples=10", "benchmark_batch=1", f"out={tmp_path}", f"shards={workspace.dataset}")
    run_command("compare", f"runs=[{workspace.run()}]", *own, *small)
    markdown, latex = ((tmp_path / f"table.{ending}").read_text() for ending in ("md", "tex"))
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {4} and len(lines) == 6 and "pitch (%) ↑" in lines[0]
    titles = [line.split("|")[1].strip() for line in lines[2:]]
    assert titles == [
        *("originals", "ceiling (encodec_embedded, 2 codebooks)"),
        *(f"{workspace.run()}, temperature 0.7", "floor"),
    ]
    for fact in ("3 clips of the split valid", "nsynth_official", "encodecmae_tiny", "SwiftF0", "95 % intervals"):
        assert fact in markdown and escape_latex(fact) in latex
    results = json.loads((tmp_path / "compare.json").read_text())["evaluations"][str(workspace.run())]
    assert results["protocol"]["name"] == "nsynth_official" and results["originals"]["fidelity"]["mean"] > 0.99
    assert latex.count("&") == 10 and latex.count("\\\\\n") == 5 and "\\begin{tabular}{lrr}" in latex


def test_labels_that_are_known_to_be_wrong_are_not_used(workspace: Workspace, clips: list[ReferenceClip]) -> None:
    overrides = [f"run={workspace.run()}", f"shards={workspace.dataset}", "n=3", "temperatures=[1]", "resamples=10"]
    settings = load_settings(EvaluateSettings, overrides)
    patterns = {"bad_labels": {"wrong": clips[0].sample.key}, "left_out": {"noise": clips[1].sample.key}}
    study = settings.protocol.model_copy(update={"title": "a study", **patterns})
    result = evaluate(settings.model_copy(update={"protocol": study}), load_run(workspace.run(), "cpu"), print).result
    assert result.protocol is not None
    assert result.ceiling["fidelity"].n == result.settings.n == 2 and result.ceiling["pitch"].n == 1
    assert str(result.protocol) == "a study; left out: 1 (noise); pitch labels not used: 1 (wrong)"


@pytest.mark.parametrize("text", ["50 % & more_{}", "a\\b", "x^2 ~ y", "#1 $5 <|>", "n → ∞ ↑"])
def test_latex_prints_every_character(text: str) -> None:
    """No special character of LaTeX is left that is not part of a command."""
    escaped = escape_latex(text)
    bare = re.sub(r"\\[a-z]+\{\}|\\[&%$#_{}]|\$\\[a-z]+\$", "", escaped)
    assert not set(bare) & set("\\&%$#_{}~^<>|↑→∞")
