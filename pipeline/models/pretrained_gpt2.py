"""A CodecGPT around the pretrained weights of GPT-2."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.common.errors import InputError, one_line
from pipeline.common.import_guards import hide_broken_packages
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.inference_layers import GELU
from pipeline.models.model_config import ModelConfig
from pipeline.models.model_files import CONFIG, WEIGHTS

with hide_broken_packages("torchaudio", "torchvision"):  # transformers imports both where they are installed
    import transformers
    from transformers import GPT2Config, GPT2Model

log = logging.getLogger(__name__)


def build_model(config: ModelConfig, pretrained: str | None = None) -> CodecGPT:
    """A CodecGPT with new weights, or around GPT-2's weights.

    If the sequence is longer than the pretrained position table, new rows are added to the table.

    Args:
        config: the model.
        pretrained: a Hub repository or a local folder with GPT-2's weights.

    Raises:
        InputError: see `load_gpt2`.
    """
    if pretrained is None:
        return CodecGPT(config)
    backbone = load_gpt2(pretrained, config)
    known, positions = backbone.config.n_positions, config.backbone_positions
    if positions > known:
        log.info("position table extended from %d to %d rows; the new ones are untrained", known, positions)
        table = nn.Embedding(positions, config.width)
        nn.init.normal_(table.weight, std=backbone.config.initializer_range)
        table.weight.data[:known] = backbone.wpe.weight.data
        backbone.wpe, backbone.config.n_positions = table, positions
    return CodecGPT(config, backbone)


def load_gpt2(pretrained: str, config: ModelConfig) -> GPT2Model:
    """Load GPT-2 from a Hub repository or a local folder, as the backbone of a model.

    Raises:
        InputError: the weights are not available, damaged, of another size than the model, or incomplete.
    """
    setting, folder = f"model.pretrained={pretrained}", Path(pretrained)
    if folder.is_dir() and not (folder / CONFIG).is_file():
        raise InputError(f"{setting}: the folder has no {CONFIG}; give a folder with GPT-2's {CONFIG} and {WEIGHTS}")
    dropouts: dict[str, Any] = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), config.dropout)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # hides its report on missing weights; ours is one line
    try:
        gpt2_config = GPT2Config.from_pretrained(pretrained, **dropouts, activation_function=GELU)
        _check_gpt2_config(setting, gpt2_config, config)
        loaded: Any = GPT2Model.from_pretrained(pretrained, config=gpt2_config, output_loading_info=True)
        backbone: GPT2Model = loaded[0]
        info = loaded[1]
    except InputError:
        raise
    except Exception as error:  # transformers, safetensors, pickle and the Hub's client have their own exceptions
        if isinstance(error, OSError) and not folder.is_dir():
            raise InputError(
                f"{setting}: not on this machine, and the Hub cannot be reached or does not have it. Run `hf download "
                f"{pretrained}` where there is a network, give a folder by model.pretrained=DIR, or start from scratch "
                "with model=small"
            ) from error
        message = one_line(error)
        raise InputError(
            f"{setting}: its files are damaged or not GPT-2's ({message:.200}); download them again"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    missing = sorted({*info["missing_keys"]} - {"wte.weight"})  # the vocabulary is not used
    if missing:
        raise InputError(f"{setting} has no weights for {missing[0]} ({len(missing)} missing): give all GPT-2 weights")
    if non_finite := [name for name, value in backbone.named_parameters() if not value.isfinite().all()]:
        raise InputError(f"{setting}: {non_finite[0]} has non-finite values; download the files again")
    return backbone


def _check_gpt2_config(setting: str, gpt2_config: GPT2Config, config: ModelConfig) -> None:
    """Raises InputError unless GPT-2 has the size of the model."""
    if hasattr(gpt2_config, "codebooks"):
        raise InputError(
            f"{setting} is an export of this program, but GPT-2's weights are expected: give gpt2 or a folder with its "
            "files; to continue a run give resume=RUN"
        )
    size = (gpt2_config.n_embd, gpt2_config.n_layer, gpt2_config.n_head)
    if size != (config.width, config.layers, config.heads):
        raise InputError(
            f"{setting} has width {size[0]}, {size[1]} layers and {size[2]} heads, but model.width, model.layers and "
            f"model.heads are {config.width}, {config.layers}, {config.heads}"
        )
