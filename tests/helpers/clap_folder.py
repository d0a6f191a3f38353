"""A folder with a small CLAP of random weights, in the layout of the hub, and a tokenizer of a few words."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

WORDS = ("a", "muted", "trumpet", "bell", "low", "tone")
DIM, PIECE_SECONDS = 12, 2  # of a piece: 10 in LAION's models


def write_clap(folder: Path, fusion: bool = False, seed: int = 0) -> Path:
    """Write the folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    special = ("<s>", "<pad>", "</s>", "<unk>")
    vocabulary = {text: i for i, text in enumerate((*special, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.save(str(folder / "tokenizer.json"))
    text = {
        "vocab_size": len(vocabulary), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 12, "pad_token_id": 1,
    }  # fmt: skip
    audio = {
        "spec_size": 64, "num_mel_bins": 16, "hidden_size": 16, "patch_embeds_hidden_size": 8, "depths": [1, 1],
        "num_attention_heads": [1, 2], "window_size": 4, "enable_fusion": fusion, "num_hidden_layers": 2,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=DIM))
        for tower in (model.audio_projection, model.text_projection):
            for weight in tower.parameters():
                torch.nn.init.normal_(weight, std=0.5)  # so that vectors of different inputs differ clearly
    model.eval().save_pretrained(folder)
    extractor = ClapFeatureExtractor(
        feature_size=16, truncation="rand_trunc", max_length_s=PIECE_SECONDS, frequency_min=50
    )
    extractor.save_pretrained(folder)
    return folder
