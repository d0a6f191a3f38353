"""One vector for a whole sound: the mean over time of EnCodecMAE's features.

    embedder = load_embedder("encodecmae_tiny")
    prompts = embedder.embed(wav)                  # [B, S] -> [B, D]

Models (conf/embedder/): `encodecmae_base` (v1, the article's), `encodecmae_mel256_base_st` (v2, its authors' choice),
`encodecmae_tiny` (ships with this package), `encodecmae_package` (any model, through the authors' own package). Their
vectors live in different spaces: `identity` names the checkpoint.

Letters: B clips, S samples at 24 kHz, T frames, D width.
"""

from __future__ import annotations

import hashlib
import socket
import urllib.request
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from pipeline.audio.embedders.encodecmae import CHUNK, HOP, SAMPLE_RATE, EncodecMae
from pipeline.audio.embedders.encodecmae_checkpoint import LAYER, from_state_dict, load_checkpoint
from pipeline.audio.precision import full_precision
from pipeline.audio.weights import refused_if_damaged
from pipeline.common.errors import InputError

TINY = Path(__file__).resolve().parents[1] / "assets" / "encodecmae_tiny.safetensors"
NAMES = ("encodecmae_base", "encodecmae_mel256_base_st", "encodecmae_tiny", "encodecmae_package")
AT_ONCE = 8  # chunks that go through the transformer together on a CPU
AT_ONCE_GPU = 64


class Embedder(Protocol):
    """What every embedder can do."""

    dim: int

    @property
    def identity(self) -> dict[str, Any]:
        """What must agree for two vectors to live in one space: name, weights, sample_rate, dim."""

    @property
    def best_batch(self) -> int:
        """Clips of some seconds to embed together."""

    def embed(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """wav [B, S] -> float32 [B, D]; lengths [B]: samples that are sound in each row (None: all)."""


class EncodecMaeEmbedder:
    """EnCodecMAE in fp32, whatever the caller's autocast and TF32 settings. weights: sha256 of the weights' file."""

    def __init__(self, name: str, model: EncodecMae, weights: str, device: str | torch.device) -> None:
        self.name, self.weights, self.device = name, weights, torch.device(device)
        self.model = model.to(self.device)
        self.dim = model.arch.dim

    @property
    def identity(self) -> dict[str, Any]:
        """Names the vectors' space."""
        return {"name": self.name, "weights": self.weights, "sample_rate": SAMPLE_RATE, "dim": self.dim}

    @property
    def best_batch(self) -> int:
        """Clips of some seconds: so many chunks go through the transformer together."""
        return AT_ONCE_GPU if self.device.type == "cuda" else AT_ONCE

    @torch.inference_mode()
    def embed(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """wav [B, S] -> float32 [B, D] on the embedder's device.

        lengths: [B]. Row b is what its first lengths[b] samples give alone: what follows them changes nothing.
        """
        batch, samples = wav.shape
        own = [samples] * batch if lengths is None else lengths.tolist()
        assert len(own) == batch and min(own) > 0 and max(own) <= samples, own
        wav = wav.to(self.device, torch.float32)
        parts = [(b, *part) for b, length in enumerate(own) for part in self._chunks(wav[b, :length])]
        parts.sort(key=lambda part: len(part[1]), reverse=True)  # those of a length together
        sums, counts = [], []
        with full_precision(self.device):
            for i in range(0, len(parts), self.best_batch):
                _, chunks, attend = zip(*parts[i : i + self.best_batch], strict=True)
                features, frames = self.model(chunks, attend)  # [n, T, D], [n]
                padded = torch.arange(features.shape[1], device=self.device) >= frames[:, None]
                sums.append(features.masked_fill(padded[..., None], 0).sum(1))
                counts.append(frames)
        return _means(torch.cat(sums), torch.cat(counts), [b for b, *_ in parts], batch)

    @torch.inference_mode()
    def features(self, wav: Tensor) -> Tensor:
        """wav [S] -> [T, D], chunk after chunk: what `embed` is the mean of."""
        parts = list(self._chunks(wav.to(self.device, torch.float32)))
        with full_precision(self.device):
            return torch.cat([self.model([chunk], [attend])[0][0] for chunk, attend in parts])

    def _chunks(self, wav: Tensor) -> list[tuple[Tensor, int]]:
        """[S] -> 4 s chunks, each with the frames that attention may see; too short a clip is padded with silence."""
        arch = self.model.arch
        wav = F.pad(wav, (0, max(0, arch.shortest_tail + 1 - len(wav))))
        chunks = [chunk for chunk in wav.split(CHUNK) if len(chunk) > arch.shortest_tail]
        return [(chunk, (min(len(wav), CHUNK) if arch.masks_by_clip else len(chunk)) // HOP) for chunk in chunks]


def _means(sums: Tensor, counts: Tensor, clips: list[int], batch: int) -> Tensor:
    """Chunks' sums [N, D] over counts [N] frames -> the mean of each clip [B, D]. clips: the clip of each chunk.

    A clip's chunks are gathered and added one after another, so that no other clip has any part in its mean, whatever
    it holds: a product with zeros would keep its NaN.
    """
    chunks: list[list[int]] = [[] for _ in range(batch)]
    for i, b in enumerate(clips):
        chunks[b].append(i)
    sums, counts = F.pad(sums, (0, 0, 0, 1)), F.pad(counts, (0, 1))  # chunk N is none
    total, count = sums.new_zeros(batch, sums.shape[1]), counts.new_zeros(batch)
    for turn in range(max(map(len, chunks))):
        at = torch.tensor([own[turn] if turn < len(own) else len(clips) for own in chunks]).to(sums.device)
        total += sums[at]
        count += counts[at]
    return total / count[:, None]


class EncodecMaePackageEmbedder:
    """The authors' own package, a clip at a time. model: a name that its `load_model` knows."""

    best_batch = 1

    def __init__(self, model: str, device: str | torch.device) -> None:
        try:
            from encodecmae import load_model
        except (
            Exception
        ) as error:  # not installed; or its torchaudio was built for another torch: OSError, RuntimeError
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"embedder=encodecmae_package: the package encodecmae cannot be imported ({reason}); install it from "
                f"https://github.com/habla-liaa/encodecmae, with a torchaudio that was built for torch "
                f"{torch.__version__}, or use embedder=encodecmae_base, which needs no package"
            ) from error
        self.name, self.device = f"encodecmae_package/{model}", torch.device(device)
        self.model = load_model(model, mode="eval", device=str(device))
        digest = hashlib.sha256()
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode() + value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        self.weights = digest.hexdigest()
        self.dim = self._mean(torch.zeros(SAMPLE_RATE)).shape[0]

    @property
    def identity(self) -> dict[str, Any]:
        """weights: sha256 over the names and values of the model's tensors."""
        return {"name": self.name, "weights": self.weights, "sample_rate": SAMPLE_RATE, "dim": self.dim}

    def embed(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """wav [B, S] -> float32 [B, D]."""
        own = [wav.shape[1]] * len(wav) if lengths is None else lengths.tolist()
        return torch.stack([self._mean(row[:length]) for row, length in zip(wav, own, strict=True)])

    def _mean(self, wav: Tensor) -> Tensor:
        with full_precision(self.device):
            features = torch.as_tensor(self.model.extract_features_from_array(wav.float().cpu().numpy()))
        return features.float().flatten(0, -2).mean(0)  # v1 gives [T, D], v2 [1, T, D]


def load_embedder(name: str, source: str | None = None, device: str | torch.device = "cpu") -> Embedder:
    """An embedder by name. source: a hub repository, a file in one (`owner/repo/file.pt`), or a local file or folder.

    Raises InputError for an unknown name, and for weights that are neither there nor to be had.
    """
    if name not in NAMES:
        raise InputError(f"embedder.name={name}: the embedders are {', '.join(NAMES)}")
    if name == "encodecmae_package":
        if source is None:
            raise InputError("embedder.source: encodecmae_package needs the name of a model, e.g. base")
        return EncodecMaePackageEmbedder(source, device)
    if name == "encodecmae_tiny":
        file = TINY if source is None else Path(source)
        return EncodecMaeEmbedder(name, _tiny(file), _sha256(file), device)
    if source is None:
        raise InputError(f"embedder.source: {name} needs a hub repository, or a local file or folder")
    file, gin = _find(source)
    return EncodecMaeEmbedder(name, load_checkpoint(file, gin), _sha256(file), device)


def _tiny(file: Path) -> EncodecMae:
    """The layout of v2, with the FFN that all layers share stored once and the number of heads in the metadata."""
    with refused_if_damaged(f"embedder.source={file}", "null takes the one that ships"):
        with safe_open(file, "pt") as content:
            state = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
            facts = content.metadata() or {}
        layers, heads = int(facts["layers"]), int(facts["heads"])
        shared = LAYER.format(0) + "ff_layer."
        for key in [key for key in state if key.startswith(shared)]:
            for i in range(1, layers):
                state[LAYER.format(i) + "ff_layer." + key.removeprefix(shared)] = state[key]
        return from_state_dict(state, gin="", heads=heads)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _find(source: str) -> tuple[Path, str]:
    """The checkpoint that `source` names, and v1's gin text where there is one."""
    path = Path(source).expanduser()
    if path.is_file():
        return path, _text(path.with_name("config.gin"))
    if path.is_dir():
        if not (path / "model.pt").is_file():
            raise InputError(f"embedder.source={source}: there is no model.pt in the folder; name the file itself")
        return path / "model.pt", _text(path / "config.gin")
    parts = source.split("/")
    if source.startswith(("/", ".", "~")) or len(parts) not in (2, 3):
        raise InputError(f"embedder.source={source}: no such file or folder, and no hub repository (owner/name)")
    repo = "/".join(parts[:2])
    if len(parts) == 3:
        return _fetch(repo, parts[2]), ""
    return _fetch(repo, "model.pt"), _text(_fetch(repo, "config.gin"))


def _text(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


def _fetch(repo: str, name: str) -> Path:
    """A file of a hub repository, from the cache or the hub."""
    import huggingface_hub as hub

    try:
        held = hub.try_to_load_from_cache(repo, name)
        if isinstance(held, str):
            return Path(held)
        _check_network(hub.constants.ENDPOINT)
        return Path(hub.hf_hub_download(repo, name))
    except Exception as error:  # each layer below has errors of its own: names, HTTP, TLS, sockets, Xet
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"embedder.source={repo}: {name} is not in the hub's cache and could not be fetched ({reason}). "
            f"Where there is a network: `hf download {repo} {name}`; with the files in a folder: "
            f"embedder.source=PATH; without any: embedder=encodecmae_tiny"
        ) from error


def _check_network(address: str) -> None:
    """Fail at once where the hub's name cannot be resolved: its own client tries for half a minute."""
    if not urllib.request.getproxies():
        socket.getaddrinfo(urlparse(address).hostname, 443)
