"""Low-rank adapters of a CodecGPT (LoRA; Hu et al. 2021, arXiv:2106.09685), and their files.

A layer of the backbone computes x W + scale (x A^T) B^T. W is frozen; A [rank, in] and B [out, rank] are trained. PEFT
adds the layers for training. Afterwards W + scale (B A)^T replaces W, so that a merged model is a plain model.

    adapter_model.safetensors   A and B of every layer, and the embeddings and heads if they were trained
    adapter_config.json         written last: PEFT's settings, and ours with the sha256 of the base

PEFT loads these files too, as the adapter of the base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from pipeline.common.errors import InputError, first_line, one_line
from pipeline.common.files import is_intact, sha256_file, with_checksum, write_atomic
from pipeline.models.change_conditions import change_conditions
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.weights import save_tensors

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
ADAPTER = "adapter"  # the folder of the adapter in an export
_TARGETS = ["c_attn", "c_proj", "c_fc"]  # of the attention and of the MLP of a GPT-2 layer
_NAME = "default"  # of the adapter, in PEFT
_PREFIX = "base_model.model."  # of names in PEFT's files
_EMBEDDINGS = ("codes", "head", "prompt", "null_prompt", "conditions")
_OURS = "codec_audio_lm"  # the key of our settings in adapter_config.json


class Adapter(BaseModel):
    """The settings of an adapter, and the model to which it belongs.

    Attributes:
        rank: Of the matrices A and B.
        alpha: The scale is alpha / rank.
        dropout: Of the input of A, during training.
        train_embeddings: Whether embeddings and heads are trained too.
        base: The folder or the Hub repository of the base.
        base_sha256: Of the base's weights.
        conditions: Those of the model, as in its config; None: those of the base.
        new_conditions: The names of those that the base does not have: all their weights are trained.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0, allow_inf_nan=False)
    dropout: float = Field(ge=0, lt=1)
    train_embeddings: bool
    base: str
    base_sha256: str
    conditions: list[dict[str, Any]] | None = None
    new_conditions: list[str] = []


def add_adapter(model: CodecGPT, adapter: Adapter) -> None:
    """Add an untrained adapter to a model, in place, and freeze all other weights; the outputs do not change.

    Raises:
        InputError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError(
            f"finetune.lora.rank={adapter.rank} needs PEFT ({first_line(error)}): "
            "run `pip install 'codec-audio-lm[lora]'`, or set finetune.lora.rank=0"
        ) from error

    config = LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # a float works
        lora_dropout=adapter.dropout, target_modules=_TARGETS,
        fan_in_fan_out=True,
    )  # fmt: skip
    inject_adapter_in_model(config, model.backbone, _NAME)
    new = {f"conditions.{i}" for i, each in enumerate(model.condition_list) if each.name in adapter.new_conditions}
    for name, parameter in model.named_parameters():
        is_embedding = name.partition(".")[0] in _EMBEDDINGS and adapter.train_embeddings
        is_new = ".".join(name.split(".")[:2]) in new
        parameter.requires_grad_(".lora_" in name or is_embedding or is_new)
    model.adapter = adapter


def merge_adapter(base: Mapping[str, Tensor], trained: Mapping[str, Tensor], adapter: Adapter) -> dict[str, Tensor]:
    """The state dict of the model without layers of PEFT.

    Args:
        base: the state dict of the base.
        trained: the weights that were trained, by their names in a model with an adapter.
        adapter: the adapter.

    Raises:
        KeyError: a weight belongs to no layer of the base, or has no partner.
        ValueError: a weight is not trained by such an adapter.
    """
    merged, a, b = dict(base), f".lora_A.{_NAME}.weight", f".lora_B.{_NAME}.weight"
    for name, value in trained.items():
        if name.endswith(a):
            layer = name.removesuffix(a)
            delta = trained[layer + b].float() @ value.float()  # [out, in]
            weight = base[f"{layer}.weight"]  # [in, out]
            if delta.T.shape != weight.shape or len(value) != adapter.rank:
                raise ValueError(f"{name} has the shape of another layer or rank")
            merged[f"{layer}.weight"] = weight + adapter.alpha / adapter.rank * delta.T
        elif not name.endswith(b):
            if name.partition(".")[0] not in _EMBEDDINGS or value.shape != base[name].shape:
                raise ValueError(f"{name} does not belong to an adapter")
            merged[name] = value
    return merged


def write_adapter(folder: Path, trained: Mapping[str, Tensor], adapter: Adapter) -> None:
    """Write the weights that were trained, by their names in the model, and the settings, last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ADAPTER_CONFIG).unlink(missing_ok=True)
    save_tensors(
        {_PREFIX + name.replace(f".{_NAME}.", "."): t for name, t in trained.items()}, folder / ADAPTER_WEIGHTS
    )
    content = {
        "peft_type": "LORA", "r": adapter.rank, "lora_alpha": adapter.alpha, "lora_dropout": adapter.dropout,
        "target_modules": _TARGETS, "fan_in_fan_out": True, "bias": "none", "base_model_name_or_path": adapter.base,
        _OURS: adapter.model_dump(), "files": {ADAPTER_WEIGHTS: sha256_file(folder / ADAPTER_WEIGHTS)},
    }  # fmt: skip
    write_atomic(folder / ADAPTER_CONFIG, json.dumps(with_checksum(content), indent=2) + "\n")


def load_merged(folder: Path) -> CodecGPT:
    """Load the base of an adapter, and merge the adapter into it.

    Raises:
        InputError: the files are damaged, or the base is missing or another one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        content = json.loads((folder / ADAPTER_CONFIG).read_text())
        adapter = Adapter.model_validate(content[_OURS])
        sha256 = sha256_file(folder / ADAPTER_WEIGHTS)
        if not is_intact(content) or content["files"][ADAPTER_WEIGHTS] != sha256:
            raise ValueError("a file has changed since it was written: its sha256 differs")
        trained = {_name_in_model(name): value for name, value in load_file(folder / ADAPTER_WEIGHTS).items()}
        model = load_base(adapter, f"the adapter {folder}")
        model.load_state_dict(merge_adapter(model.state_dict(), trained, adapter))
    except InputError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, RecursionError, SafetensorError) as error:
        message = first_line(error) if isinstance(error, ValidationError) else one_line(error)
        raise InputError(
            f"{folder} is not the adapter of a CodecGPT ({message:.300}); give the merged export"
        ) from error
    model.weights_sha256 = sha256
    return model


def _name_in_model(name: str) -> str:
    stem, _, end = name.removeprefix(_PREFIX).rpartition(".")
    return f"{stem}.{_NAME}.{end}" if stem.endswith((".lora_A", ".lora_B")) else name.removeprefix(_PREFIX)


def load_base(adapter: Adapter, owner: str) -> CodecGPT:
    """Load the model to which an adapter belongs, with the adapter's conditions, of which new ones are untrained.

    Args:
        adapter: the adapter.
        owner: what it is called in messages.

    Raises:
        InputError: it is missing, has other weights, or is an adapter itself.
    """
    if is_adapter(adapter.base):
        raise InputError(f"{owner} belongs to {adapter.base}, which is an adapter too: adapters are not stacked")
    try:
        model = CodecGPT.from_pretrained(adapter.base, local_only=True)  # a file must not decide what is fetched
    except InputError as error:
        raise InputError(f"{owner} needs its base {adapter.base}: {error}") from error
    if model.weights_sha256 != adapter.base_sha256:
        raise InputError(
            f"{owner} belongs to other weights than those of {adapter.base} (sha256 {adapter.base_sha256[:12]}, not "
            f"{model.weights_sha256[:12]}): put its base back, or use the merged export"
        )
    if adapter.conditions is None:
        return model
    changed = CodecGPT(replace(model.config, conditions=adapter.conditions))
    changed.load_state_dict(change_conditions(model, changed))
    return changed.eval()


def is_adapter(source: str | Path) -> bool:
    """Whether a source is a folder with an adapter."""
    return (Path(source) / ADAPTER_CONFIG).is_file()
