"""Every file of conf/ belongs to a command, composes, and has the settings of its model; every experiment builds."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from omegaconf import OmegaConf

from pipeline.common.paths import CONF
from pipeline.common.settings import CommandSettings, Settings, settings_class
from pipeline.config.cli import compose, load_settings
from pipeline.config.conf_files import list_choices, list_commands, list_groups
from pipeline.models import model_stats
from pipeline.models.codec_gpt import CodecGPT
from pipeline.training import data, engine
from pipeline.training.settings import TrainSettings
from tests.helpers.training_caches import write_cache

PIPELINE = Path(__file__).parents[2] / "pipeline"
COMMANDS = list_commands()
GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "hydra")
CHOICES = [(group, choice) for group in GROUPS for choice in list_choices(group)]
EXPERIMENTS = list_choices("exp")
SIZES = list_choices("model")
VOCABULARY = 50_257  # tokens of GPT-2, whose embeddings are dropped
PUBLISHED = {  # parameters of the GPT-2 models, with their vocabulary
    "gpt2": 124_439_808, "small": 124_439_808, "medium": 354_823_168, "large": 774_030_080, "xl": 1_557_611_200,
}  # fmt: skip


def settings_in(file: Path) -> dict[str, Any]:
    """The settings of a file of conf/."""
    content = yaml.safe_load(file.read_text()) or {}
    return {name: value for name, value in content.items() if name != "defaults"}


def composed(command: str, *overrides: str) -> Any:
    """A config with every interpolation resolved, and a value for each setting that has no default."""
    missing = [name for name, value in settings_in(CONF / f"{command}.yaml").items() if value == "???"]
    cfg = compose(command, [*(f"{name}=given" for name in missing), *overrides])
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return cfg


@pytest.mark.parametrize("command", COMMANDS)
def test_a_root_config_composes_for_its_command(command: str) -> None:
    assert "@hydra_command(" in (PIPELINE / f"{command}.py").read_text()
    assert set(list_groups(command)) < set(composed(command)) | {"exp"}
    assert "hydra_quiet" in yaml.safe_load((CONF / f"{command}.yaml").read_text())["defaults"]


def test_every_command_has_a_config() -> None:
    files = [file.stem for file in PIPELINE.glob("*.py") if "@hydra_command(" in file.read_text()]
    assert sorted(files) == COMMANDS


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_for_its_commands(group: str, choice: str) -> None:
    commands = ["train"] if group == "exp" else [command for command in COMMANDS if group in list_groups(command)]
    assert commands
    for command in commands:
        cfg = composed(command, f"{'+' if group == 'exp' else ''}{group}={choice}")
        if "name" in settings_in(CONF / group / f"{choice}.yaml") and group != "exp":
            assert cfg[group].name == choice


def settings_of(command: str) -> type[CommandSettings]:
    """The class of a command's settings."""
    model: type[CommandSettings] = importlib.import_module(f"pipeline.{command}").main.settings
    return model


def required_fields(model: type[Settings]) -> Iterator[tuple[str, bool]]:
    """Dotted names of the fields of settings, and whether each is required."""
    for name, field in model.model_fields.items():
        yield f"{model.__name__}.{name}", field.is_required()
        nested = settings_class(field.annotation, (), None, name)
        if nested is not None:
            yield from required_fields(nested)


@pytest.mark.parametrize("command", COMMANDS)
def test_models_and_conf_have_the_same_settings(command: str) -> None:
    """A model refuses settings that it does not have, and needs each that it has: conf/ is the one home of defaults."""
    model = settings_of(command)
    names = [name for name, value in settings_in(CONF / f"{command}.yaml").items() if value == "???"]
    types = {name: model.model_fields[name].annotation for name in names}
    missing = [f"{name}={get_args(kind)[0] if get_origin(kind) is Literal else 'text'}" for name, kind in types.items()]
    load_settings(model, missing)
    for group in list_groups(command):
        for choice in list_choices(group):
            settings = load_settings(model, [*missing, f"{group}={choice}"])
            nested = getattr(settings, group, None)
            if isinstance(nested, Settings):
                assert all(required for _, required in required_fields(type(nested)))
    assert all(required for _, required in required_fields(model))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dataset of each codec."""
    folder = tmp_path_factory.mktemp("caches")
    labels = ("pitch", "velocity", "instrument_family")
    return {
        codec: write_cache(folder / codec, codec=codec, labels=labels)
        for codec in ("encodec_24khz", "encodec_embedded")
    }


@pytest.mark.parametrize("exp", EXPERIMENTS)
def test_every_experiment_builds_its_model(exp: str, shards: dict[str, Path]) -> None:
    overrides = [f"+exp={exp}", "codec.codebooks=4"]
    path = shards[compose("train", overrides).codec.name]
    small = ["model.pretrained=null", "model.width=48", "model.heads=4", "model.layers=1"]
    settings = load_settings(TrainSettings, [*overrides, f"shards='{path}'", *small])
    dataset = data.open_datasets(settings)
    model = engine.build_model(settings, engine.model_config(settings, dataset), dataset, from_pretrained=True)
    assert model.config.pattern == settings.pattern.name and dataset.sampler.epoch_size == 45
    assert sum(p.numel() for p in model.parameters()) == model_stats.num_parameters(model.config)


@pytest.mark.parametrize("size", SIZES)
def test_a_model_size_has_its_published_parameters(size: str, shards: dict[str, Path]) -> None:
    path = shards["encodec_24khz"]
    settings = load_settings(TrainSettings, [f"model={size}", "codec.codebooks=4", f"shards='{path}'"])
    config = engine.model_config(settings, data.open_datasets(settings))
    if size == "tiny":
        model = CodecGPT(config)
        assert sum(p.numel() for p in model.parameters()) == model_stats.num_parameters(config) < 6_000_000
    else:
        assert model_stats.parameter_counts(config)["backbone"] == PUBLISHED[size] - VOCABULARY * config.width


def test_the_article_s_experiments_differ_in_pattern_only() -> None:
    configs = {exp: compose("train", [f"+exp={exp}"]) for exp in EXPERIMENTS if exp.endswith("_gpt2")}
    assert sorted(cfg.pattern.name for cfg in configs.values()) == list_choices("pattern")
    for exp, cfg in configs.items():
        assert cfg.name == exp and cfg.run == f"runs/{exp}" and cfg.model.pretrained == "gpt2"
        cfg.pattern = cfg.name = cfg.tracking = cfg.run = None
    assert len({OmegaConf.to_yaml(cfg, resolve=True) for cfg in configs.values()}) == 1
