"""Loads EnCodecMAE checkpoints in the layouts that their authors released.

v1 (2023) is `model.pt` with `config.gin` in the same folder; v2 (2024) is one `.pt` file that contains the text of its
config.gin. Only a few numbers are read from the gin text, by regular expressions; none of it is executed.
"""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.audio.encodec.package import SEANetEncoder
from pipeline.audio.encodecmae.model import Architecture, EncodecFrames, EncodecMae, KaldiMel, MelConfig
from pipeline.audio.weights import check_finite, report_damage

LAYER = "visible_encoder.encoder_layers.{}."
HEADS = 12  # of every released model, if the gin text does not contain it
V1_NAMES = {  # names of v1: names of v2, which we use
    "feat_projector.": "wav_encoder.post_net.",
    "wav_encoder.model.": "wav_encoder.encoder.model.",
    "positional_encoder.": "masker.positional_encoder.",
}
SEANET = "wav_encoder.encoder.model."
SHORTEST_TAIL = 2048  # v2 drops a last chunk that is not longer; v1 drops none


def load_checkpoint(file: Path, gin: str = "") -> EncodecMae:
    """Load a checkpoint, v1 or v2. gin: the text of v1's config.gin. Raise InputError if it is not one."""
    with report_damage(str(file), "an EnCodecMAE checkpoint that holds tensors only is expected"):
        content = torch.load(file, map_location="cpu", weights_only=True)
        return from_state_dict(content["state_dict"], content.get("config", gin))


def from_state_dict(state: dict[str, Tensor], gin: str, heads: int | None = None) -> EncodecMae:
    """Build a model from a released state dict.

    Args:
        state: The tensors.
        gin: The text of its config.gin.
        heads: The number of attention heads; by default as in the gin text.

    Raises:
        KeyError: A tensor is missing.
        ValueError: The tensors are those of another model, or not finite.
    """
    check_finite(state)
    is_v1 = "feat_projector.weight" in state
    if is_v1:
        state = {_v2_name(key): value for key, value in state.items()}
    heads = heads or int(
        _read_number(gin, "NUM_ENCODER_HEADS", _read_number(gin, r"MultiHeadAttention\.num_heads", HEADS))
    )
    inner, dim = state[LAYER.format(0) + "att_layer.wq.weight"].shape
    if inner % heads:
        raise ValueError(f"{inner} channels of attention do not split into {heads} heads")
    layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith(LAYER.split("{")[0]))
    width = state["wav_encoder.post_net.weight"].shape[1]
    from_codes = any(key.startswith(SEANET) for key in state)
    if re.search(r"(?<!Mel)(?<!mel)SpectrogramProcessor", gin):
        raise ValueError("models over linear spectrograms (spec-*) are not supported; use mel256-* or ec-*")
    ffns = [LAYER.format(i) + "ff_layer.0.weight" for i in range(layers)]
    if not all(torch.equal(state[key], state[ffns[0]]) for key in ffns):
        raise ValueError("its layers do not share one feed-forward network, as every released model's do")
    arch = Architecture(
        dim=dim,
        layers=layers,
        heads=heads,
        head_dim=inner // heads,
        ffn=state[ffns[0]].shape[0],
        mel=None if from_codes else _mel_config(gin, width),
        shortest_tail=0 if is_v1 else SHORTEST_TAIL,
    )
    frontend = KaldiMel(arch.mel) if arch.mel else EncodecFrames(_build_seanet(state))
    model = EncodecMae(arch, frontend, width)
    left = model.load_state_dict(_convert_tensors(state, arch), strict=False)
    assert not left.unexpected_keys and all(key.startswith("frontend.") for key in left.missing_keys), left
    return model.eval().requires_grad_(False)


def _convert_tensors(state: dict[str, Tensor], arch: Architecture) -> dict[str, Tensor]:
    """Return the transformer's tensors under our names."""
    new = {
        "proj.weight": state["wav_encoder.post_net.weight"],
        "proj.bias": state["wav_encoder.post_net.bias"],
        "scale": state["masker.positional_encoder.scale"].reshape(()),
        "final_norm.weight": state["visible_encoder.final_norm.weight"],
        "final_norm.bias": state["visible_encoder.final_norm.bias"],
    }
    # Checkpoints interleave heads: channel d * heads + h. In our model they are contiguous: h * head_dim + d.
    order = torch.arange(arch.heads * arch.head_dim).view(arch.head_dim, arch.heads).T.flatten()
    for i in range(arch.layers):
        theirs, ours = LAYER.format(i), f"blocks.{i}."
        qkv = [state[f"{theirs}att_layer.{name}.weight"][order] for name in ("wq", "wk", "wv")]
        new[ours + "qkv.weight"] = torch.cat(qkv)
        new[ours + "out.weight"] = state[theirs + "att_layer.wo.weight"][:, order]
        for name in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                new[f"{ours}{name}.{part}"] = state[f"{theirs}{name}.{part}"]
        for number in (0, 2):
            for part in ("weight", "bias"):
                new[f"{ours}ffn.{number}.{part}"] = state[f"{theirs}ff_layer.{number}.{part}"]
    return {key: value.float() for key, value in new.items()}


def _build_seanet(state: dict[str, Tensor]) -> SEANetEncoder:
    with warnings.catch_warnings():  # the package uses a weight norm that PyTorch has deprecated
        warnings.simplefilter("ignore", FutureWarning)
        encoder = SEANetEncoder(causal=True)
    own = {key.removeprefix(SEANET): value.float() for key, value in state.items() if key.startswith(SEANET)}
    missing = encoder.load_state_dict(own, strict=False).missing_keys
    if missing:
        raise KeyError(SEANET + missing[0])
    return encoder


def _mel_config(gin: str, bins: int) -> MelConfig:
    settings: dict[str, Any] = {"bins": bins}
    for name, ours in (("frame_length", "frame_ms"), ("frame_shift", "shift_ms")):
        value = _read_number(gin, name, None)
        if value is not None:
            settings[ours] = float(value)
    stats = _read_number(gin, "norm_stats", None)
    if stats is not None:
        settings["mean"], settings["scale"] = (float(value) for value in stats)
    return MelConfig(**settings)


def _v2_name(key: str) -> str:
    for old, new in V1_NAMES.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _read_number(gin: str, name: str, default: Any) -> Any:
    """Return the last number, or list of numbers, bound to `name` (`a.b.name = 12`); macros (%X) are skipped."""
    values = re.findall(rf"(?m)^\s*(?:[\w./]*\.)?{name}\s*=\s*\\?\s*([\[(]?[-\d.][^%\n#]*)", gin)
    return ast.literal_eval(values[-1].strip()) if values else default
