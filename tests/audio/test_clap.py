"""CLAP gives the vectors of transformers' own processor and model, for sounds and for words."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizerFast

from pipeline.audio.embedders import load_embedder
from pipeline.common.errors import InputError
from tests.helpers.clap_folder import DIM, PIECE_SECONDS, write_clap

RATE = 48_000
PIECE = PIECE_SECONDS * RATE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clap(tmp_path_factory.mktemp("clap"))


def noise(samples: int) -> Tensor:
    return 0.3 * torch.randn(samples, generator=torch.Generator().manual_seed(samples)) * torch.linspace(0, 1, samples)


@torch.inference_mode()
def test_vectors_equal_transformers(folder: Path) -> None:
    """Sounds of at most a piece, in a padded batch, and texts."""
    model, embedder = ClapModel.from_pretrained(folder).eval(), load_embedder("clap", str(folder))
    tokenizer = RobertaTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    processor = ClapProcessor(ClapFeatureExtractor.from_pretrained(folder), tokenizer)
    clips = [noise(samples) for samples in (PIECE, PIECE // 3 + 5, 700)]
    vectors = embedder.embed(torch.nn.utils.rnn.pad_sequence(clips, True, 9.0), torch.tensor([*map(len, clips)]))
    for clip, vector in zip(clips, vectors, strict=True):
        inputs = processor(audio=clip.numpy(), sampling_rate=RATE, return_tensors="pt")
        expected = model.get_audio_features(inputs["input_features"].float()).pooler_output[0]
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=1e-4)
    texts = ["a muted trumpet", "bell"]
    inputs = processor(text=texts, padding=True, return_tensors="pt")
    expected = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
    torch.testing.assert_close(embedder.embed_text(texts), expected, atol=1e-5, rtol=1e-4)
    assert (vectors[0] - vectors[1]).abs().max() > 1e-2 and (expected[0] - expected[1]).abs().max() > 1e-2
    assert embedder.embed_text(["tone " * 100]).shape == (1, DIM)  # cut to the positions of the text tower
    assert embedder.identity.keys() == {"name", "weights", "sample_rate", "dim"} and embedder.sample_rate == RATE


def test_long_clips_are_means_of_their_pieces(folder: Path) -> None:
    """Weighted by their durations, with norm 1; the same each time."""
    embedder, wav = load_embedder("clap", str(folder)), noise(2 * PIECE + PIECE // 2)
    first, second, rest = (embedder.embed(piece[None])[0] for piece in wav.split(PIECE))
    expected = normalize(first + second + rest / 2, dim=0)
    for _ in range(2):
        torch.testing.assert_close(embedder.embed(wav[None])[0], expected, atol=1e-5, rtol=1e-4)


def test_weights_of_either_format_are_read(folder: Path, tmp_path: Path) -> None:
    embedder = load_embedder("clap", str(folder))
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    torch.save(embedder.model.state_dict(), tmp_path / "pytorch_model.bin")  # type: ignore[attr-defined]
    other = load_embedder("clap", str(tmp_path))
    assert torch.equal(other.embed(noise(9000)[None]), embedder.embed(noise(9000)[None]))


def test_unusable_files_are_one_line_errors(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://nowhere.invalid")
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "damaged").mkdir()
    for file in folder.iterdir():
        content = file.read_bytes()
        (tmp_path / "damaged" / file.name).write_bytes(content[:500] if file.suffix == ".safetensors" else content)
    for source, message in {
        "owner/none": r"config\.json is not in the hub.s cache.*with the files in a folder: embedder\.source=FOLDER",
        str(tmp_path): "there is no config.json, preprocessor_config.json, tokenizer.json, model.safetensors or",
        str(tmp_path / "gone"): "no such folder",
        str(write_clap(tmp_path / "fused", fusion=True)): "it fuses random crops",
        str(tmp_path / "damaged"): "is damaged or of another model",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            load_embedder("clap", source)
        assert "\n" not in str(caught.value)


def test_embedder_without_a_text_tower_refuses_words(folder: Path) -> None:
    assert load_embedder("clap", str(folder)).reads_text and not load_embedder("encodecmae_tiny").reads_text
    with pytest.raises(InputError, match=r"prompt_text=a bell: the embedder encodecmae_tiny reads no text"):
        load_embedder("encodecmae_tiny").embed_text(["a bell"])
