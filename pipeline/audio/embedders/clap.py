"""`clap`: CLAP (Wu et al. 2023) through transformers, whose vectors of sounds and of words are comparable.

A clip of at most 10 s is repeated until it fills 10 s, as in training. A longer one is cut into pieces of 10 s from its
start, the last of which may be shorter; its vector is the mean of theirs, weighted by their durations, with norm 1.

Letters: B clips or texts, S samples, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.audio.embedders import EMBEDDERS, EmbedderSettings, offline_embedders
from pipeline.audio.embedders.base import Embedder, valid_samples
from pipeline.audio.hub_files import hub_file
from pipeline.common.errors import InputError
from pipeline.common.files import sha256_file
from pipeline.common.import_guards import hide_broken_packages

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONFIG, FEATURES, TOKENIZER = "config.json", "preprocessor_config.json", "tokenizer.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of which a folder has one; the hub's repository has the second
BEST_BATCH_CPU, BEST_BATCH_GPU = 8, 64  # pieces of 10 s


@EMBEDDERS.register("clap")
class ClapSettings(EmbedderSettings):
    """Settings of a CLAP. source: a repository of the hub, or a folder with its files."""

    title: ClassVar[str] = "the CLAP weights of LAION"
    citation: ClassVar[str] = "Wu et al. 2023, arXiv:2211.06687"
    licence: ClassVar[str] = "LAION published them under the Apache-2.0 licence."
    default_source: ClassVar[str | None] = "laion/larger_clap_music"

    def load(self, device: str | torch.device) -> ClapEmbedder:
        """See `EmbedderSettings.load`."""
        source = self.source or str(self.default_source)
        folder, weights = _find_files(source)
        model, extractor, tokenizer = _read_models(folder, weights, source)
        return ClapEmbedder(self.name, model, extractor, tokenizer, sha256_file(weights), device, self.frames)


class ClapEmbedder(Embedder):
    """The audio tower and the text tower of a CLAP, each with its projection; vectors have norm 1."""

    reads_text = True

    def __init__(
        self,
        name: str,
        model: Any,
        extractor: Any,
        tokenizer: Any,
        weights: str,
        device: str | torch.device,
        frames: int = 1,
    ) -> None:
        """Wrap a model. weights: the sha256 of the weights file; frames: vectors of a clip."""
        import torch

        self.name, self.weights, self.frames, self.device = name, weights, frames, torch.device(device)
        self.model, self.extractor, self.tokenizer = model.to(self.device), extractor, tokenizer
        self.sample_rate, self.dim = int(extractor.sampling_rate), int(model.config.projection_dim)

    @property
    def best_batch(self) -> int:
        """See `Embedder.best_batch`."""
        return BEST_BATCH_GPU if self.device.type == "cuda" else BEST_BATCH_CPU

    def embed(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """See `Embedder.embed`."""
        import torch
        from torch.nn.functional import normalize

        clips = [list(clip.float().cpu().split(self.extractor.nb_max_samples)) for clip in valid_samples(wav, lengths)]
        pieces = [piece for clip in clips for piece in clip]
        step = self.best_batch
        vectors = torch.cat([self._embed_pieces(pieces[i : i + step]) for i in range(0, len(pieces), step)])
        weighted = vectors * torch.tensor([len(piece) for piece in pieces], device=self.device)[:, None]
        sums = [part.sum(0) for part in weighted.split([len(clip) for clip in clips])]
        return normalize(torch.stack(sums), dim=-1)

    def _embed_pieces(self, pieces: Sequence[Tensor]) -> Tensor:
        """Sounds [S] of at most 10 s each -> [B, D]."""
        import torch

        from pipeline.audio.precision import full_precision

        features = self.extractor([piece.numpy() for piece in pieces], sampling_rate=self.sample_rate)
        spectrograms = torch.stack([torch.from_numpy(each) for each in features["input_features"]]).float()
        with torch.inference_mode(), full_precision(self.device):
            vectors: Tensor = self.model.get_audio_features(spectrograms.to(self.device)).pooler_output
        return vectors

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """See `Embedder.embed_text`; each text alone, so that it does not depend on the others."""
        import torch

        from pipeline.audio.precision import full_precision

        tokens = [torch.tensor([self.tokenizer.encode(text).ids], device=self.device) for text in texts]
        with torch.inference_mode(), full_precision(self.device):
            return torch.cat([self.model.get_text_features(ids).pooler_output for ids in tokens])


def _find_files(source: str) -> tuple[Path, Path]:
    """The folder with all files, downloaded first if the hub's cache lacks them, and the weights file in it."""
    folder = Path(source).expanduser()
    if not folder.is_dir() and (source.startswith(("/", ".", "~")) or source.count("/") != 1):
        raise InputError(f"embedder.source={source}: no such folder, and no hub repository (owner/name)")
    if not folder.is_dir():
        remedy = f"with the files in a folder: embedder.source=FOLDER; without either: {offline_embedders()}"
        names = (CONFIG, FEATURES, TOKENIZER, WEIGHTS[1])
        files = [hub_file(source, name, f"embedder.source={source}", remedy) for name in names]
        return files[0].parent, files[-1]
    weights = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    missing = [name for name in (CONFIG, FEATURES, TOKENIZER) if not (folder / name).is_file()]
    missing += [] if weights else [" or ".join(WEIGHTS)]
    if missing:
        raise InputError(
            f"embedder.source={source}: there is no {', '.join(missing)} in the folder; `hf download "
            f"{ClapSettings.default_source} --local-dir {source}` writes all files"
        )
    return folder, weights[0]


def _read_models(folder: Path, weights: Path, source: str) -> tuple[Any, Any, Any]:
    """The model in eval mode, its feature extractor, and its tokenizer."""
    import torch
    from safetensors.torch import load_file

    from pipeline.audio.weights import check_finite, report_damage

    with hide_broken_packages("torchaudio", "torchvision"):  # transformers imports both where they are installed
        from transformers import ClapConfig, ClapFeatureExtractor, ClapModel
    from tokenizers import Tokenizer

    with report_damage(f"embedder.source={source}", "the files of a ClapModel are expected"):
        is_safetensors = weights.name == WEIGHTS[0]
        tensors = load_file(weights) if is_safetensors else torch.load(weights, map_location="cpu", weights_only=True)
        check_finite(tensors)
        model = ClapModel(ClapConfig.from_pretrained(folder))
        left = model.load_state_dict(tensors, strict=False).missing_keys
        if missing := sorted({name for name, _ in model.named_parameters()} & {*left}):
            raise KeyError(missing[0])
        audio: Any = model.config.audio_config
        if audio.enable_fusion:
            raise ValueError("it fuses random crops of long clips, so its vectors cannot be reproduced")
        extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
        extractor.truncation = "rand_trunc"  # the features of a checkpoint without fusion; no piece is truncated
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        tokenizer.no_padding()
        text: Any = model.config.text_config
        tokenizer.enable_truncation(text.max_position_embeddings - text.pad_token_id - 1)
    return model.float().eval().requires_grad_(False), extractor, tokenizer
