"""EnCodec: 24 kHz sound to K x 75 codes a second and back, through one class over `encodec.EncodecModel`.

    codec = load_codec("encodec_24khz", codebooks=8)
    codes = codec.encode(wav)              # [B, 1, S] -> [B, K, T], 0..1023
    wav = codec.decode(codes)              # [B, K, T] -> [B, 1, 320 T]

`encodec_24khz` is Meta's model (Défossez et al. 2022); `encodec_embedded` ships with this package: see
pipeline/assets/README.md for what it is worth.

Letters: B clips, K codebooks, T frames, S samples.
"""

from __future__ import annotations

import hashlib
import math
import urllib.error
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from pipeline.audio.codecs.encodec_package import ROOT_URL, EncodecModel, ResidualVectorQuantizer
from pipeline.audio.codecs.seanet import Seanet
from pipeline.audio.codecs.spectral import PhaseDecoder, SpectralEncoder
from pipeline.audio.precision import full_precision
from pipeline.audio.weights import check_finite, refused_if_damaged
from pipeline.common.errors import InputError

ASSETS = Path(__file__).resolve().parents[1] / "assets"
META_FILE = "encodec_24khz-d7cc33bc.th"  # named by the first digits of its sha256
EMBEDDED_FILE = "encodec_embedded.safetensors"
NAMES = ("encodec_24khz", "encodec_embedded")
VERSION = 2  # of the codes of a sound: a cache of another is not resumed. 1: silence filled the last frame


class StreamingDecoderModule(Protocol):
    """What the decoder module of a codec can do beside decoding the whole."""

    def start(self, batch: int) -> Any:
        """The state before the first frame of `batch` sounds."""

    def step(self, frames: Tensor, state: Any) -> Tensor:
        """Frames [B, D, t] -> the samples [B, 1, s] that are now complete; the state moves on."""

    def finish(self, state: Any) -> Tensor:
        """The samples [B, 1, s] after the last complete one."""


class Codec:
    """Sound to codes and back, in fp32 whatever the caller's autocast and TF32 settings.

    model: its encoder takes [B, 1, S] and the rows' lengths and gives [B, D, T]; its decoder is a `Decoder`.
    weights: sha256 of the weights' file.
    """

    hop = 320

    def __init__(
        self, name: str, model: EncodecModel, codebooks: int, weights: str, device: str | torch.device
    ) -> None:
        most = model.quantizer.n_q
        if not 1 <= codebooks <= most:
            raise InputError(f"codec.codebooks={codebooks}: {name} has 1 to {most} codebooks")
        self.name, self.codebooks, self.weights = name, codebooks, weights
        self.sample_rate, self.frame_rate = model.sample_rate, model.frame_rate
        self.codebook_size = model.quantizer.bins
        assert self.sample_rate == self.frame_rate * self.hop
        self.device = torch.device(device)
        # The package lists 2, 4, 8, 16 and 32 codebooks; its quantizer takes any number from the bandwidth.
        model.bandwidth = codebooks * self.bandwidth / 1000
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.keeps_phases = isinstance(model.encoder, Seanet)  # so that waveforms can be compared

    @property
    def bandwidth(self) -> float:
        """Bits a second of one codebook."""
        return self.frame_rate * math.log2(self.codebook_size)

    @property
    def identity(self) -> dict[str, Any]:
        """What must agree between two caches, or a cache and a model, for their codes to mean the same."""
        return {
            "name": self.name,
            "weights": self.weights,
            "sample_rate": self.sample_rate,
            "frame_rate": self.frame_rate,
            "codebooks": self.codebooks,
            "codebook_size": self.codebook_size,
            "dtype": "float32",
            "version": VERSION,
        }

    @property
    def best_batch(self) -> int:
        """Clips of some seconds to encode together, by measurement.

        On a CPU convolutions run clip by clip whatever the batch; what gains by it is the LSTM, up to 8. On an H100
        64 clips are within 10 % of the fastest, and take 4 GiB at 4 s.
        """
        return 64 if self.device.type == "cuda" else 8

    def frames(self, samples: int) -> int:
        """Frames that a sound of so many samples takes: the last may reach past its end."""
        return math.ceil(samples / self.hop)

    @torch.inference_mode()
    def encode(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Each row from a cold state: wav [B, 1, S] -> codes int64 [B, K, ceil(S / 320)].

        lengths: [B] samples that are sound in each row (None: all of them). What follows them changes nothing: row b's
        first ceil(lengths[b] / 320) frames are those of the row encoded alone; the others are no sound's.
        """
        batch, channels, samples = wav.shape
        own = [samples] * batch if lengths is None else lengths.tolist()
        assert channels == 1 and len(own) == batch and min(own) > 0 and max(own) <= samples, (wav.shape, own)
        wav = wav.to(self.device, torch.float32)
        if min(own) < samples:
            ends = torch.tensor(own)[:, None, None].to(self.device)
            wav = wav.where(torch.arange(samples, device=self.device) < ends, 0)  # a product would keep a NaN
        with full_precision(self.device):
            latents = self.model.encoder(wav, own)  # [B, D, T]
            codes = self.model.quantizer.encode(latents, self.model.frame_rate, self.model.bandwidth).transpose(0, 1)
        codes = F.pad(codes, (0, self.frames(samples) - codes.shape[-1]))
        assert codes.shape == (batch, self.codebooks, self.frames(samples)), codes.shape
        return codes

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, k, T] of the first k <= K codebooks -> wav [B, 1, 320 T]. Raises InputError outside 0..1023."""
        codes = self.validate_codes(codes)
        with full_precision(self.device):
            return self.model.decode([(codes, None)])

    def streaming_decoder(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode a sound as it comes: chunks of codes [B, k, t] -> of wav [B, 1, s]; joined, what `decode` gives."""
        decoding = StreamingDecoder(self)
        for chunk in chunks:
            if (wav := decoding.push(chunk)).shape[-1]:
                yield wav
        if (wav := decoding.flush()).shape[-1]:
            yield wav

    def validate_codes(self, codes: Tensor) -> Tensor:
        """Codes [B, K, T] on the codec's device. Raises InputError for what it cannot decode."""
        assert codes.ndim == 3 and codes.shape[-1] > 0, codes.shape
        if codes.shape[1] > self.model.quantizer.n_q:
            raise InputError(f"{codes.shape[1]} codebooks to decode, but {self.name} has {self.model.quantizer.n_q}")
        low, high = (int(edge) for edge in codes.aminmax())
        if low < 0 or high >= self.codebook_size:
            raise InputError(f"codes from {low} to {high}: {self.name} decodes 0..{self.codebook_size - 1} only")
        return codes.to(self.device, torch.int64)


class StreamingDecoder:
    """A sound decoded as its codes come: what `put` and `end` give, joined, is what `Codec.decode` gives.

    The sound lags behind the codes: Meta's decoder by nothing (but for its first 7 frames, which come together), the
    embedded one by 864 samples.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._state: Any = None
        self._decoder: StreamingDecoderModule = codec.model.decoder  # type: ignore[assignment]

    @torch.inference_mode()
    def push(self, chunk: Tensor) -> Tensor:
        """Codes [B, k, t] -> the samples [B, 1, s] that are now complete."""
        codes = self._codec.validate_codes(chunk)
        with full_precision(self._codec.device):
            self._state = self._decoder.start(len(codes)) if self._state is None else self._state
            return self._decoder.step(self._codec.model.quantizer.decode(codes.transpose(0, 1)), self._state)

    @torch.inference_mode()
    def flush(self) -> Tensor:
        """The samples [B, 1, s] after them."""
        if self._state is None:
            return torch.zeros(1, 1, 0)
        with full_precision(self._codec.device):
            return self._decoder.finish(self._state)


def load_codec(
    name: str, codebooks: int, repository: str | Path | None = None, device: str | torch.device = "cpu"
) -> Codec:
    """A codec by name, with its weights. repository: a folder that holds its file.

    Without one Meta's file is looked for in torch hub's cache, and the embedded codec's lies in this package.

    Raises InputError for an unknown name, too many codebooks, and weights that are neither there nor to be had.
    """
    folder = None if repository is None else Path(repository)
    if name == "encodec_embedded":
        model, weights = _embedded(folder or ASSETS)
    elif name == "encodec_24khz":
        model, weights = _meta(folder)
    else:
        raise InputError(f"codec.name={name}: the codecs are {', '.join(NAMES)}")
    return Codec(name, model, codebooks, weights, device)


def untrained_codec(codebooks: int, device: str | torch.device = "cpu", seed: int = 0) -> Codec:
    """Meta's architecture with random weights, for measurements and tests where Meta's are not at hand."""
    model = untrained_encodec(seed)
    return Codec("untrained", _rewritten(model), codebooks, f"random, seed {seed}", device)


def untrained_encodec(seed: int = 0) -> EncodecModel:
    """The package's 24 kHz model, its weights and codebooks drawn so that sounds take many different codes."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        model = _package_model()
        for name, weight in model.named_parameters():
            if name.endswith("weight_g"):
                weight.mul_(1.5)  # at 1 the output hardly depends on the input
        noise = model.encoder(torch.randn(8, 1, 24_000) * torch.rand(8, 1, 1))  # [8, 128, 75]
        mean, spread = noise.mean((0, 2)), noise.std((0, 2))
        for i, layer in enumerate(model.quantizer.vq.layers):
            book = layer.get_buffer("_codebook.embed")
            book.normal_().mul_(spread / 2 if i == 0 else spread / 4).add_(mean if i == 0 else 0)
    return model


def _package_model() -> EncodecModel:
    with warnings.catch_warnings():  # the package's way to weight norm is deprecated in PyTorch
        warnings.simplefilter("ignore", FutureWarning)
        return EncodecModel.encodec_model_24khz(pretrained=False)


def _rewritten(model: EncodecModel) -> EncodecModel:
    model.encoder, model.decoder = Seanet(model.encoder), Seanet(model.decoder)  # type: ignore[assignment]
    return model


def _meta(repository: Path | None) -> tuple[EncodecModel, str]:
    file = _meta_file(repository)
    weights = hashlib.sha256(file.read_bytes()).hexdigest()
    expected = file.stem.split("-")[1]
    if not weights.startswith(expected):
        raise InputError(f"{file}: its sha256 is {weights[:8]}..., not {expected}...; delete it and fetch it anew")
    model = _package_model()
    with refused_if_damaged(str(file), "delete it and fetch it again"):
        state = torch.load(file, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
        check_finite(state)
    return _rewritten(model), weights


def _meta_file(repository: Path | None) -> Path:
    """Meta's weights on disk: in `repository`, or in torch hub's cache, fetched if need be."""
    url = ROOT_URL + META_FILE
    if repository is not None:
        if not (repository / META_FILE).is_file():
            raise InputError(f"codec.repository={repository}: there is no {META_FILE} in it; fetch it from {url}")
        return repository / META_FILE
    file = Path(torch.hub.get_dir()) / "checkpoints" / META_FILE
    if not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.split("-")[1])
        except (OSError, RuntimeError, urllib.error.URLError) as error:
            raise InputError(
                f"codec=encodec_24khz: Meta's weights are not on this machine and could not be fetched ({error}). "
                f"Fetch {url} elsewhere and put it at {file}, or into a folder of yours with codec.repository=FOLDER; "
                f"codec=encodec_embedded needs no download"
            ) from error
    return file


def _embedded(folder: Path) -> tuple[EncodecModel, str]:
    file = folder / EMBEDDED_FILE
    if not file.is_file():
        raise InputError(f"codec.repository={folder}: there is no {EMBEDDED_FILE} in it; null takes the one that ships")
    with refused_if_damaged(f"codec.repository={folder}: {EMBEDDED_FILE}", "null takes the one that ships"):
        return _embedded_model(load_file(file)), hashlib.sha256(file.read_bytes()).hexdigest()


def _embedded_model(tensors: dict[str, Tensor]) -> EncodecModel:
    check_finite(tensors)
    books, mean = tensors["codebooks"].float(), tensors["mean"].float()  # [8, 1024, D], [D]
    model = EncodecModel(
        encoder=SpectralEncoder(mean),  # type: ignore[arg-type]
        decoder=PhaseDecoder(mean),  # type: ignore[arg-type]
        quantizer=ResidualVectorQuantizer(dimension=books.shape[2], n_q=len(books), bins=books.shape[1]),
        target_bandwidths=[0.75, 1.5, 3.0, 6.0],
        sample_rate=24_000,
        channels=1,
        name="encodec_embedded",
    )
    for layer, book in zip(model.quantizer.vq.layers, books, strict=True):
        layer.get_buffer("_codebook.embed").copy_(book)
        layer.get_buffer("_codebook.inited").fill_(1)
    return model
