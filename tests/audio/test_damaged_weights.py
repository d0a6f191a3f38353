"""Damaged or incomplete weights of codecs and embedders are one-line errors that name the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.audio.codecs import load_codec
from pipeline.audio.codecs.encodec_embedded import EMBEDDED_FILE
from pipeline.audio.embedders import load_embedder
from pipeline.audio.embedders.encodecmae_tiny import TINY
from pipeline.common.errors import InputError
from pipeline.common.paths import ASSETS

Tensors = dict[str, torch.Tensor]


def lacking(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def not_finite(name: str) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        tensors[name].view(-1)[0] = float("nan")
        return tensors

    return change


def of_one_number(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: tensors[name].flatten()[:1].clone()}


def changed(source: Path, out: Path, change: Callable[[Tensors], Tensors]) -> None:
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(source)), out, metadata)


WK = "visible_encoder.encoder_layers.0.att_layer.wk.weight"
CODEC = {
    "mean is gone": (lacking("mean"), "there is no 'mean'"),
    "NaN": (not_finite("codebooks"), "codebooks contains NaN or infinite values"),
    "another shape": (of_one_number("codebooks"), "damaged or of another model"),
}
EMBEDDER = {
    "a weight is gone": (lacking(WK), f"there is no '{WK}'"),
    "NaN": (not_finite(WK), f"{WK} contains NaN or infinite values"),
    "another shape": (of_one_number(WK), "damaged or of another model"),
}
BYTES = {"empty": b"", "text": b"x" * 500, "cut": TINY.read_bytes()[:-50]}


@pytest.mark.parametrize("name", [*CODEC, *BYTES])
def test_damaged_codec_is_an_error(tmp_path: Path, name: str) -> None:
    file, message = tmp_path / EMBEDDED_FILE, "damaged or of another model"
    if name in BYTES:
        file.write_bytes(BYTES[name])
    else:
        changed(ASSETS / EMBEDDED_FILE, file, CODEC[name][0])
        message = CODEC[name][1]
    with pytest.raises(InputError) as caught:
        load_codec("encodec_embedded", 4, tmp_path)
    said = str(caught.value)
    assert said.startswith(f"codec.weights_dir={tmp_path}") and message in said and "\n" not in said


@pytest.mark.parametrize("name", [*EMBEDDER, *BYTES])
def test_damaged_embedder_is_an_error(tmp_path: Path, name: str) -> None:
    file, message = tmp_path / "tiny.safetensors", "damaged or of another model"
    if name in BYTES:
        file.write_bytes(BYTES[name])
    else:
        changed(TINY, file, EMBEDDER[name][0])
        message = EMBEDDER[name][1]
    with pytest.raises(InputError) as caught:
        load_embedder("encodecmae_tiny", str(file))
    said = str(caught.value)
    assert said.startswith(f"embedder.source={file}") and message in said and "\n" not in said
