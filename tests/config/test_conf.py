"""Every file of conf/ is read by something, composes, and says nothing that nobody reads; every experiment builds."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from pipeline.common.paths import CONF
from pipeline.config.cli import compose
from pipeline.models import model_stats
from pipeline.models.codec_gpt import CodecGPT
from pipeline.training import data, engine
from tests.helpers.training_caches import write_cache

PIPELINE = Path(__file__).parents[2] / "pipeline"
ROOTS = sorted(file.stem for file in CONF.glob("*.yaml") if file.stem != "hydra_quiet")
GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "hydra")
CHOICES = [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]
EXPERIMENTS = [choice for group, choice in CHOICES if group == "exp"]
SIZES = [choice for group, choice in CHOICES if group == "model"]
VOCABULARY = 50_257  # words of GPT-2, whose embeddings are dropped
PUBLISHED = {  # parameters of the GPT-2 models, with their vocabulary
    "gpt2": 124_439_808, "small": 124_439_808, "medium": 354_823_168, "large": 774_030_080, "xl": 1_557_611_200,
}  # fmt: skip


def defaults(root: str) -> dict[str, str]:
    """The groups that a root config takes, and which choice of each."""
    found = yaml.safe_load((CONF / f"{root}.yaml").read_text())["defaults"]
    return {group: choice for row in found if isinstance(row, dict) for group, choice in row.items()}


def composed(root: str, *words: str) -> Any:
    """A config with every interpolation resolved, and something for each setting that has no default."""
    missing = [name for name, value in yaml.safe_load((CONF / f"{root}.yaml").read_text()).items() if value == "???"]
    cfg = compose(root, [*(f"{name}=given" for name in missing), *words])
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return cfg


@cache
def source() -> str:
    """All code of the package."""
    return "\n".join(file.read_text() for file in sorted(PIPELINE.rglob("*.py")))


def leaves(settings: Any, prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    if not isinstance(settings, dict):
        return [prefix]
    return [leaf for name, value in settings.items() for leaf in leaves(value, f"{prefix}.{name}" if prefix else name)]


@pytest.mark.parametrize("root", ROOTS)
def test_every_root_config_belongs_to_an_entry_point_and_composes(root: str) -> None:
    files = [file for file in PIPELINE.glob("*.py") if f'@hydra_command("{root}")' in file.read_text()]
    assert len(files) == 1
    assert set(defaults(root)) < set(composed(root)) | {"exp"}
    assert "hydra_quiet" in yaml.safe_load((CONF / f"{root}.yaml").read_text())["defaults"]


def test_every_entry_point_has_a_config() -> None:
    named = re.findall(r'^@entry\("(\w+)"\)', source(), re.MULTILINE)
    assert sorted(named) == ROOTS


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_is_taken_by_a_command_and_composes_there(group: str, choice: str) -> None:
    takers = ["train"] if group == "exp" else [root for root in ROOTS if group in defaults(root)]
    assert takers
    for root in takers:
        cfg = composed(root, f"{'+' if group == 'exp' else ''}{group}={choice}")
        if "name" in yaml.safe_load((CONF / group / f"{choice}.yaml").read_text()) and group != "exp":
            assert cfg[group].name == choice  # the file's name and what it says of itself


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONF)))
def test_every_setting_is_read(file: Path) -> None:
    """The name of every setting stands in the code that reads it."""
    if file.parent.name == "deepspeed" or file.is_relative_to(CONF / "hydra") or file.stem == "hydra_quiet":
        return  # read by DeepSpeed and by Hydra
    settings = yaml.safe_load(file.read_text())
    settings.pop("defaults", None)
    unread = []
    for name in leaves(settings):
        last = name.rsplit(".", 1)[-1]
        if not re.search(rf"""\.{last}\b|["']{last}["']""", source()):
            unread.append(name)
    assert not unread


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A cache of each codec."""
    place = tmp_path_factory.mktemp("caches")
    return {codec: write_cache(place / codec, codec=codec) for codec in ("encodec_24khz", "encodec_embedded")}


@pytest.mark.parametrize("exp", EXPERIMENTS)
def test_every_experiment_builds_its_model(exp: str, shards: dict[str, Path]) -> None:
    words = [f"+exp={exp}", "codec.codebooks=4"]
    cache = shards[compose("train", words).codec.name]
    small = ["model.pretrained=null", "model.width=48", "model.heads=4", "model.layers=1"]
    cfg = compose("train", [*words, f"shards='{cache}'", *small])
    dataset = data.open_datasets(cfg)
    model = engine.build_model(cfg, engine.model_config(cfg, dataset), dataset, from_pretrained=True)
    assert model.config.pattern == cfg.pattern.name and dataset.sampler.epoch_size == 45
    assert sum(p.numel() for p in model.parameters()) == model_stats.num_parameters(model.config)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_the_size_it_says(size: str, shards: dict[str, Path]) -> None:
    cache = shards["encodec_24khz"]
    cfg = compose("train", [f"model={size}", "codec.codebooks=4", f"shards='{cache}'"])
    config = engine.model_config(cfg, data.open_datasets(cfg))
    if size == "tiny":
        model = CodecGPT(config)
        assert sum(p.numel() for p in model.parameters()) == model_stats.num_parameters(config) < 6_000_000
    else:
        assert model_stats.parameter_counts(config)["backbone"] == PUBLISHED[size] - VOCABULARY * config.width


def test_the_experiments_of_the_article_differ_in_their_pattern_alone() -> None:
    found = {exp: compose("train", [f"+exp={exp}"]) for exp in EXPERIMENTS if exp.endswith("_gpt2")}
    assert sorted(cfg.pattern.name for cfg in found.values()) == sorted(
        file.stem for file in (CONF / "pattern").glob("*")
    )
    for exp, cfg in found.items():
        assert cfg.name == exp and cfg.run == f"runs/{exp}" and cfg.model.pretrained == "gpt2"
        cfg.pattern = cfg.name = cfg.tracking = cfg.run = None
    assert len({OmegaConf.to_yaml(cfg, resolve=True) for cfg in found.values()}) == 1
