"""Fine-tuning: a new run, at step 0 with a schedule of its own, from the weights of a trained model.

Whatever the weights depend on comes from the base: codec, codebooks, embedder, pattern, size and the normalization of
prompts. All weights are trained, or an adapter of low rank (`pipeline.models.lora`).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.audio.codecs import codec_of
from pipeline.common.errors import InputError
from pipeline.common.settings import flatten_settings, format_value
from pipeline.data.labels import Vocabularies
from pipeline.data.manifest import Manifest
from pipeline.generation.loaded_run import find_export
from pipeline.models.change_conditions import change_conditions, new_conditions
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.conditions import PROMPT
from pipeline.models.lora import ADAPTER, Adapter, add_adapter, is_adapter
from pipeline.models.model_config import ModelConfig
from pipeline.training.conditions import condition_settings, unknown_values
from pipeline.training.settings import FinetuneSettings, TrainSettings

# settings that come from the base, and the settings that select them together
_INHERITED = {
    "pattern.name": "pattern", "codec.name": "codec", "codec.codebooks": "", "codec.channels": "",
    "model.width": "model", "model.layers": "model", "model.heads": "model", "model.positions": "",
    "model.pretrained": "", "data.end_of_audio": "",
}  # fmt: skip
_NOT_IDENTITY = ("codebooks", "dtype", "version", "dim")


@dataclass(frozen=True)
class Base:
    """The model from which a fine-tuning starts.

    Attributes:
        source: its folder or Hub repository.
        config: its config.
        sha256: of its weights.
        settings: those of the fine-tuning.
    """

    source: str
    config: ModelConfig
    sha256: str
    settings: FinetuneSettings

    def adapter(self, config: ModelConfig) -> Adapter | None:
        """The adapter of a model that is trained; None: all weights are."""
        lora, new = self.settings.lora, new_conditions(self.config, config)
        if not lora.rank:
            return None
        return Adapter(
            rank=lora.rank, alpha=float(lora.alpha or 2 * lora.rank), dropout=float(lora.dropout),
            train_embeddings=lora.train_embeddings, base=self.source, base_sha256=self.sha256, new_conditions=new,
            conditions=None if config.conditions == self.config.conditions else config.conditions,
        )  # fmt: skip

    def notes(self, config: ModelConfig, vocabularies: Vocabularies) -> list[str]:
        """Lines to log about what is trained.

        Args:
            config: the model that is trained.
            vocabularies: the values of each label in the datasets.
        """
        trained = f"adapters of rank {self.settings.lora.rank}" if self.settings.lora.rank else "all weights"
        notes = [f"fine-tuning {self.source} (sha256 {self.sha256[:12]}): {trained}"]
        if self.settings.lora.rank and is_adapter(Path(self.source) / ADAPTER):
            notes.append("the base is an export with an adapter merged into it; it has to stay, without its own base")
        before, now = ([each.name for each in model.condition_settings] for model in (self.config, config))
        if lost := [name for name in before if name not in now]:
            notes.append(f"conditions of the base that are not used any more: {', '.join(lost)}")
        if new := new_conditions(self.config, config):
            notes.append(f"conditions that the base does not have start untrained: {', '.join(new)}")
        return notes + unknown_values(config, vocabularies)

    def check_dataset(self, manifest: Manifest) -> None:
        """Raise InputError unless the model can be trained on a dataset, naming what differs and what to do."""
        differences = [
            f"{part}.{name} is {actual.get(name)!r}, expected {value!r}"
            for part, trained, actual in (
                ("codec", {"channels": 1, **self.config.codec}, {"channels": 1, **manifest.codec}),
                ("embedder", {"frames": 1, **self.config.embedder}, {"frames": 1, **manifest.embedder}),
            )
            for name, value in trained.items()
            if name not in _NOT_IDENTITY and actual.get(name) != value
        ]
        if manifest.codebooks < self.config.codebooks:
            differences.append(f"it has {manifest.codebooks} codebooks, expected {self.config.codebooks} or more")
        if manifest.prompt_dim != self.config.prompt_dim:
            differences.append(f"its prompts are {manifest.prompt_dim} wide, expected {self.config.prompt_dim}")
        if differences:
            codec, embedder = self.config.codec.get("name"), str(self.config.embedder.get("name"))
            is_stereo, streams = self.config.codec.get("channels") == 2, self.config.codebooks
            codebooks = f"codec.channels=2 and {streams} streams" if is_stereo else f"codec.codebooks={streams}"
            raise InputError(
                f"the dataset {manifest.path} does not fit finetune.from={self.settings.source} "
                f"({'; '.join(differences)}): preprocess the sounds again with codec={codec} "
                f"{codebooks} embedder={embedder.partition('/')[0]} and the same weights, "
                "or give a base of this codec and embedder"
            )

    def model_config(self, settings: TrainSettings, frames: int, vocabularies: Vocabularies) -> ModelConfig:
        """The config of the base for clips of at most `frames` frames, with the conditions of the settings.

        Args:
            settings: the settings.
            frames: of the longest clip.
            vocabularies: the values of each label in the datasets.

        Raises:
            InputError: the clips are longer than the base can read, or do not have a label that is a new condition.
        """
        config = self.config
        steps = config.build_pattern().num_steps(frames + config.end_of_audio)
        if steps > config.positions:
            raise InputError(
                f"clips of {frames} frames are {steps} steps under pattern={config.pattern}, but "
                f"finetune.from={self.settings.source} has {config.positions} positions: crop with data.seconds"
            )
        model = settings.model
        conditions = condition_settings(settings, vocabularies, config.condition_settings)
        new = replace(
            config, frames=frames, dropout=model.dropout, prompt_dropout=model.prompt_dropout, conditions=conditions
        )
        if self.settings.lora.rank and new.has_prompt and not config.has_prompt:
            raise InputError(
                f"finetune.lora.rank={self.settings.lora.rank}: the base was trained without prompts, and an adapter "
                "cannot add them: train all weights with finetune.lora.rank=0"
            )
        return new

    def build_model(self, config: ModelConfig) -> CodecGPT:
        """The model with the weights and the normalization of prompts of the base, and an untrained adapter if any."""
        model, trained = CodecGPT(config), CodecGPT.from_pretrained(self.source)
        if trained.weights_sha256 != self.sha256:
            raise InputError(f"finetune.from={self.settings.source} has changed during the start: start again")
        model.load_state_dict(change_conditions(trained, model))
        if adapter := self.adapter(config):
            add_adapter(model, adapter)
        return model


def open_base(settings: FinetuneSettings) -> Base | None:
    """The base of `finetune.from`; None without one.

    Raises:
        InputError: it is missing, damaged, or an adapter on which another would be stacked.
    """
    source = settings.source
    if source is None:
        return None
    is_repository = re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not Path(source).exists()
    folder = source if is_repository else str(find_export(source, "finetune.from").absolute())
    if settings.lora.rank and is_adapter(folder):
        raise InputError(
            f"finetune.from={source} is an adapter, and adapters are not stacked: give the merged export (the folder "
            "above it), or train all weights with finetune.lora.rank=0"
        )
    try:
        model = CodecGPT.from_pretrained(folder)
    except InputError as error:
        raise InputError(f"finetune.from={source}: {error}") from error
    return Base(folder, model.config, model.weights_sha256, settings)


def inherit_settings(settings: TrainSettings, base: Base | None, typed: Collection[str]) -> TrainSettings:
    """The settings with those of the base.

    Args:
        settings: the settings.
        base: the base; None: nothing changes.
        typed: the names of the settings on the command line.

    Raises:
        InputError: one of them contradicts the base.
    """
    if base is None:
        return settings
    config, old = base.config, settings
    update: dict[str, Any] = {name: getattr(config, name) for name in ("width", "layers", "heads", "positions")}
    for name in ("dropout", "prompt_dropout"):
        if f"model.{name}" not in typed:
            update[name] = getattr(config, name)
    update |= {"name": "base", "pretrained": None}
    codec = codec_of(config.codec, config.codebooks)
    if codec.name == old.codec.name:
        codec = old.codec.model_copy(update={"codebooks": codec.codebooks, "channels": codec.channels})
    pattern = config.build_pattern().settings
    data = old.data.model_copy(update={"end_of_audio": config.end_of_audio})
    conditions: list[str | dict[str, str]] = [*old.conditions]
    if conditions == [PROMPT] and "conditions" not in typed:
        conditions = [each.name for each in config.condition_settings]
    new = old.model_copy(
        update={
            "codec": codec, "pattern": pattern, "data": data, "conditions": conditions,
            "model": old.model.model_copy(update=update),
            "finetune": old.finetune.model_copy(update={"source": base.source}),  # config.yaml has the absolute path
        }
    )  # fmt: skip
    before, after = flatten_settings(old.to_dict()), flatten_settings(new.to_dict())
    options = {name: "pattern" for name in before if name.startswith("pattern.")}
    for setting, choice in (_INHERITED | options).items():
        cause = next((name for name in (setting, choice) if name in typed), None)
        if cause and before[setting] != after.get(setting):
            raise InputError(
                f"{setting}={format_value(before[setting])}: finetune.from={base.settings.source} has "
                f"{format_value(after.get(setting))}, and fine-tuning keeps it: remove {cause}=, or give another base"
            )
    return new
