"""The settings of training."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import MinLen
from pydantic import ConfigDict, Field, model_validator

from pipeline.audio.codecs import CODECS, CodecSettings
from pipeline.common.errors import InputError
from pipeline.common.setting_types import (
    Count,
    Fraction,
    FractionBelow1,
    NonNegative,
    Positive,
    PositiveInt,
    Seconds,
    Unit,
)
from pipeline.common.settings import Choice, CommandSettings, Settings
from pipeline.models.patterns import PATTERNS
from pipeline.models.patterns.base import PatternSettings
from pipeline.tracking.base import TrackerSettings
from pipeline.tracking.trackers import TRACKERS
from pipeline.training.optimizers import OPTIMIZERS, OptimizerSettings


class ExternalSettings(Settings):
    """Codec and embedder of external shards, which have no manifest."""

    codec: dict[str, object]
    embedder: dict[str, object]


class DataSettings(Settings):
    """What is read from the datasets, and how."""

    train: str
    valid: str
    seconds: Seconds | None
    end_of_audio: bool
    shuffle_shards: PositiveInt
    interleave: PositiveInt
    max_padding: Fraction
    max_lost_fraction: Fraction
    threads: PositiveInt
    cache_dir: str
    cache_gib: Annotated[float, Field(gt=0), Unit("GiB")]
    external: ExternalSettings | None


class ModelSettings(Settings):
    """The size of the model; `name` is that of the size."""

    name: str
    pretrained: str | None
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    positions: PositiveInt | Literal["auto"]
    dropout: FractionBelow1
    prompt_dropout: Fraction


class LoraSettings(Settings):
    """The adapter that is trained instead of all weights, if its rank is not 0."""

    rank: Count
    alpha: Positive | None
    dropout: FractionBelow1
    train_embeddings: bool


class FinetuneSettings(Settings):
    """The trained model from which a run starts."""

    source: str | None = Field(alias="from")
    lora: LoraSettings
    keep: str | None
    keep_weight: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _check_source(self) -> FinetuneSettings:
        for setting, value in (("lora.rank", self.lora.rank), ("keep", self.keep)):
            if value and self.source is None:
                raise InputError(f"finetune.{setting}={value}: there is no base; give finetune.from=RUN too")
        return self


class ZeroSettings(Settings):
    """DeepSpeed's `zero_optimization`, of which only the stage is checked here."""

    model_config = ConfigDict(extra="allow")

    stage: Annotated[int, Field(ge=0, le=3)]

    def offloads(self, part: str) -> bool:
        """Whether a part, `optimizer` or `param`, is in host memory."""
        offload = (self.model_extra or {}).get(f"offload_{part}")
        return isinstance(offload, dict) and offload.get("device", "none") != "none"

    @property
    def bucket_size(self) -> int:
        """Numbers in the buffer through which gradients are reduced; 0 without a buffer."""
        # gradients that are not copied into a bucket are flattened after the backward pass, in memory that is free then
        extra = {"contiguous_gradients": True, "reduce_bucket_size": 500_000_000}  # DeepSpeed's defaults
        extra |= {name: value for name, value in (self.model_extra or {}).items() if value is not None}
        return int(extra["reduce_bucket_size"]) if self.stage > 1 or extra["contiguous_gradients"] else 0

    @model_validator(mode="after")
    def _check_offload(self) -> ZeroSettings:
        if self.offloads("param") and self.stage < 3:
            raise InputError(
                f"deepspeed offloads weights only at stage 3, but stage={self.stage}: use deepspeed=zero3_offload"
            )
        if self.offloads("optimizer") and self.stage < 1:
            raise InputError("deepspeed offloads the optimizer only from stage 1 on: use deepspeed=zero2_offload")
        return self


class DeepSpeedSettings(Settings):
    """The part of DeepSpeed's own configuration that users choose; the engine adds the rest."""

    model_config = ConfigDict(extra="allow")

    zero_optimization: ZeroSettings

    @model_validator(mode="after")
    def _check_precision(self) -> DeepSpeedSettings:
        if {"fp16", "bf16"} & set(self.model_extra or {}):
            raise InputError("deepspeed.fp16 and deepspeed.bf16 are not used: set trainer.precision instead")
        return self


class TrainerSettings(Settings):
    """The training loop; intervals are in steps."""

    steps: PositiveInt
    compute_budget_pflop: Positive | None
    micro_batch: PositiveInt
    gradient_accumulation_steps: PositiveInt
    max_grad_norm: NonNegative
    precision: Literal["auto", "bf16", "fp32"]
    log_every: PositiveInt
    val_every: Count
    save_every: Count
    keep: Count
    keep_best: bool
    keep_every: Count
    async_checkpoint: bool
    preflight: bool | Literal["only"]
    watchdog_seconds: Seconds
    max_skipped_steps: PositiveInt
    ema: FractionBelow1
    label_smoothing: FractionBelow1
    activation_checkpointing: bool
    compile: bool | Literal["auto"]

    @property
    def clips_per_rank(self) -> int:
        """Clips of a rank in one step."""
        return self.micro_batch * self.gradient_accumulation_steps


class AudioSamplesSettings(Settings):
    """The audio that is generated after each validation."""

    clips: Count
    seconds: Seconds
    temperatures: Annotated[list[NonNegative], MinLen(1)]
    top_k: Count
    corpus_root: str | None


class TrainSettings(CommandSettings):
    """The settings of `pipeline.train`."""

    command: ClassVar[str] = "train"

    codec: Annotated[CodecSettings, Choice(CODECS)]
    pattern: Annotated[PatternSettings, Choice(PATTERNS)]
    model: ModelSettings
    optim: Annotated[OptimizerSettings, Choice(OPTIMIZERS)]
    deepspeed: DeepSpeedSettings
    tracking: Annotated[TrackerSettings, Choice(TRACKERS)]
    name: str
    run: str
    shards: str | dict[str, str]
    mixture_weights: dict[str, Positive] | None
    conditions: list[str | dict[str, str]]
    condition_dropout: Fraction | dict[str, Fraction]
    finetune: FinetuneSettings
    resume: str
    seed: Count
    data: DataSettings
    trainer: TrainerSettings
    audio_samples: AudioSamplesSettings

    @model_validator(mode="after")
    def _check_mixture(self) -> TrainSettings:
        if self.mixture_weights is not None and isinstance(self.shards, str):
            raise InputError("mixture_weights= mixes several datasets, but shards= names one: remove mixture_weights=")
        return self
