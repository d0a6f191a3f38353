"""Every file of conf/ belongs to a command, composes, and has no unread setting; every experiment builds."""

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
from pipeline.config.conf_files import list_choices, list_commands, list_groups
from pipeline.models import model_stats
from pipeline.models.codec_gpt import CodecGPT
from pipeline.training import data, engine
from tests.helpers.settings_reads import SettingsReads, reachable_files, setting_names
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
    assert f'@hydra_command("{command}")' in (PIPELINE / f"{command}.py").read_text()
    assert set(list_groups(command)) < set(composed(command)) | {"exp"}
    assert "hydra_quiet" in yaml.safe_load((CONF / f"{command}.yaml").read_text())["defaults"]


def test_every_command_has_a_config() -> None:
    source = "\n".join(file.read_text() for file in PIPELINE.rglob("*.py"))
    assert sorted(re.findall(r'^@hydra_command\("(\w+)"\)', source, re.MULTILINE)) == COMMANDS


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_for_its_commands(group: str, choice: str) -> None:
    commands = ["train"] if group == "exp" else [command for command in COMMANDS if group in list_groups(command)]
    assert commands
    for command in commands:
        cfg = composed(command, f"{'+' if group == 'exp' else ''}{group}={choice}")
        if "name" in settings_in(CONF / group / f"{choice}.yaml") and group != "exp":
            assert cfg[group].name == choice


@cache
def group_settings(group: str) -> set[str]:
    """Dotted names of the settings of all choices of a group."""
    files = [CONF / group / f"{choice}.yaml" for choice in list_choices(group)]
    return {name for file in files for name in setting_names(settings_in(file), group)}


@cache
def reads_of(command: str) -> SettingsReads:
    """What the code of a command reads of its settings."""
    own = set(setting_names(settings_in(CONF / f"{command}.yaml")))
    groups = {name for group in list_groups(command) for name in group_settings(group)}
    return SettingsReads(reachable_files(PIPELINE, PIPELINE / f"{command}.py"), own | groups)


def references(*files: Path) -> set[str]:
    """The settings to which other settings refer by ${...}."""
    return set(re.findall(r"\$\{([\w.]+)\}", "".join(file.read_text() for file in files)))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_reads_each_of_its_settings(command: str) -> None:
    file = CONF / f"{command}.yaml"
    names = set(setting_names(settings_in(file))) - references(file)
    assert not [name for name in sorted(names) if not reads_of(command).is_read(name)]


@pytest.mark.parametrize("group", sorted({*GROUPS} - {"deepspeed", "exp"}))  # DeepSpeed reads its own
def test_a_command_reads_each_setting_of_a_group(group: str) -> None:
    commands = [command for command in COMMANDS if group in list_groups(command)]
    names = group_settings(group) - references(*CONF.rglob("*.yaml"))
    assert not [name for name in sorted(names) if not any(reads_of(command).is_read(name) for command in commands)]


def test_a_setting_that_nothing_reads_is_noticed(tmp_path: Path) -> None:
    """Common names do not hide it: `path.parent` is not `cfg.parent`, and copying a config reads nothing of it."""
    (tmp_path / "package").mkdir()
    command, library = tmp_path / "package" / "command.py", tmp_path / "package" / "library.py"
    command.write_text(
        "from package.library import run, Options\n"
        "def main(cfg):\n    print(cfg.a.first, path.parent, 'copied')\n    save(OmegaConf.to_container(cfg))\n"
        "    run(cfg['b'], Options(**cfg.c))\n"
    )
    library.write_text(
        "class Options:\n    third: int\n"
        "def run(settings, options):\n    s = settings\n    return s['second'], s.get('other'), options.third\n"
    )
    names = ["a.first", "a.copied", "parent", "b.second", "b.other", "b.third", "c.third", "c.fourth"]
    reads = SettingsReads(reachable_files(tmp_path / "package", command), names)
    assert [name for name in names if reads.is_read(name)] == ["a.first", "b.second", "b.other", "c.third"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dataset of each codec."""
    folder = tmp_path_factory.mktemp("caches")
    return {codec: write_cache(folder / codec, codec=codec) for codec in ("encodec_24khz", "encodec_embedded")}


@pytest.mark.parametrize("exp", EXPERIMENTS)
def test_every_experiment_builds_its_model(exp: str, shards: dict[str, Path]) -> None:
    overrides = [f"+exp={exp}", "codec.codebooks=4"]
    path = shards[compose("train", overrides).codec.name]
    small = ["model.pretrained=null", "model.width=48", "model.heads=4", "model.layers=1"]
    cfg = compose("train", [*overrides, f"shards='{path}'", *small])
    dataset = data.open_datasets(cfg)
    model = engine.build_model(cfg, engine.model_config(cfg, dataset), dataset, from_pretrained=True)
    assert model.config.pattern == cfg.pattern.name and dataset.sampler.epoch_size == 45
    assert sum(p.numel() for p in model.parameters()) == model_stats.num_parameters(model.config)


@pytest.mark.parametrize("size", SIZES)
def test_a_model_size_has_its_published_parameters(size: str, shards: dict[str, Path]) -> None:
    path = shards["encodec_24khz"]
    cfg = compose("train", [f"model={size}", "codec.codebooks=4", f"shards='{path}'"])
    config = engine.model_config(cfg, data.open_datasets(cfg))
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
