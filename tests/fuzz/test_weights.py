"""Damaged weights of GPT-2, the codec and the embedder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from transformers import GPT2Config, GPT2Model

from pipeline.audio.codecs import load_codec
from pipeline.audio.codecs.encodec_embedded import EMBEDDED_FILE
from pipeline.audio.embedders import load_embedder
from pipeline.audio.embedders.encodecmae_tiny import TINY
from pipeline.common.paths import ASSETS
from pipeline.models.model_files import CONFIG, WEIGHTS
from pipeline.models.pretrained_gpt2 import build_model
from tests.helpers.damage import damaged, damaged_json, refused_or_right, seeds, some, text_of
from tests.helpers.models import TINY as SIZES


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a small GPT-2."""
    folder = tmp_path_factory.mktemp("fuzz") / "gpt2"
    config = GPT2Config(vocab_size=5, n_positions=128, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    GPT2Model(config).save_pretrained(folder)
    build_model(SIZES, str(folder))
    return folder


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@some(25)
@given(seed=seeds)
def test_damaged_pretrained_weights(gpt2: Path, name: str, seed: int) -> None:
    whole = (gpt2 / name).read_bytes()
    if name == CONFIG and seed % 3:
        (gpt2 / name).write_text(text_of(damaged_json(seed, json.loads(whole))))
    else:
        (gpt2 / name).write_bytes(damaged(seed, [whole]))
    try:
        with refused_or_right(f"model.pretrained={gpt2}"):
            assert build_model(SIZES, str(gpt2)).config == SIZES
    finally:
        (gpt2 / name).write_bytes(whole)


@some(8)
@given(seed=seeds)
def test_damaged_codec(tmp_path: Path, seed: int) -> None:
    (tmp_path / EMBEDDED_FILE).write_bytes(damaged(seed, [(ASSETS / EMBEDDED_FILE).read_bytes()]))
    with refused_or_right(f"codec.weights_dir={tmp_path}"):
        assert load_codec("encodec_embedded", 4, tmp_path).codebook_size == 1024


@some(8)
@given(seed=seeds)
def test_damaged_embedder(tmp_path: Path, seed: int) -> None:
    (tmp_path / "a.safetensors").write_bytes(damaged(seed, [TINY.read_bytes()]))
    with refused_or_right(f"embedder.source={tmp_path}"):
        assert load_embedder("encodecmae_tiny", str(tmp_path / "a.safetensors")).dim
