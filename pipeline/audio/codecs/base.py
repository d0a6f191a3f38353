"""The interface of codecs: `Codec` encodes and decodes complete clips, `StreamingDecoder` decodes chunk by chunk.

Letters: B clips, K codebooks, D latent width, T frames, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.audio.precision import full_precision
from pipeline.common.errors import InputError

if TYPE_CHECKING:
    from pipeline.audio.codecs.encodec_package import EncodecModel

# Of the mapping from audio to codes; datasets of another version are not resumed. 1: the last frame was zero-padded.
CODES_VERSION = 2


class StreamingDecoderModule(Protocol):
    """The methods by which a codec's decoder module decodes chunk by chunk."""

    def start(self, batch: int) -> Any:
        """Return the state before the first frame of `batch` clips."""

    def step(self, frames: Tensor, state: Any) -> Tensor:
        """Decode frames [B, D, t] to the samples [B, 1, s] that are now complete, and update the state."""

    def finish(self, state: Any) -> Tensor:
        """Return the samples [B, 1, s] that remain after the last step."""


class Codec:
    """Encodes waveforms to codes and decodes codes to waveforms, in fp32 under any autocast and TF32 settings."""

    hop_length = 320

    def __init__(
        self,
        name: str,
        model: EncodecModel,
        codebooks: int,
        weights: str,
        device: str | torch.device,
        *,
        is_waveform_codec: bool,
    ) -> None:
        """Wrap a model.

        Args:
            name: The codec's name, as in `codec=`.
            model: The encoder takes [B, 1, S] and the lengths of the rows and returns [B, D, T]; the decoder is a
                `StreamingDecoderModule`.
            codebooks: The number of codebooks that `encode` returns.
            weights: The sha256 of the weights file.
            device: The device that encodes and decodes.
            is_waveform_codec: Whether phases are kept, so that waveforms can be compared sample by sample.

        Raises:
            InputError: The model does not have this many codebooks.
        """
        max_codebooks = model.quantizer.n_q
        if not 1 <= codebooks <= max_codebooks:
            raise InputError(f"codec.codebooks={codebooks}: {name} has 1 to {max_codebooks} codebooks")
        self.name, self.codebooks, self.weights = name, codebooks, weights
        self.sample_rate, self.frame_rate = model.sample_rate, model.frame_rate
        self.codebook_size, self.max_codebooks = model.quantizer.bins, max_codebooks
        assert self.sample_rate == self.frame_rate * self.hop_length
        self.device = torch.device(device)
        # The package lists 2, 4, 8, 16 and 32 codebooks; its quantizer derives any number from the bandwidth.
        model.bandwidth = codebooks * self.bandwidth / 1000
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.is_waveform_codec = is_waveform_codec

    @property
    def bandwidth(self) -> float:
        """Bits per second of one codebook."""
        return self.frame_rate * math.log2(self.codebook_size)

    @property
    def identity(self) -> dict[str, Any]:
        """The properties that two datasets, or a dataset and a model, must share for their codes to be compatible."""
        return {
            "name": self.name,
            "weights": self.weights,
            "sample_rate": self.sample_rate,
            "frame_rate": self.frame_rate,
            "codebooks": self.codebooks,
            "codebook_size": self.codebook_size,
            "dtype": "float32",
            "version": CODES_VERSION,
        }

    @property
    def best_batch(self) -> int:
        """The measured best number of clips of a few seconds to encode in one batch.

        On a CPU convolutions run clip by clip in any batch; only the LSTM gains from batching, up to 8 clips. On an
        H100, 64 clips are within 10 % of the fastest, and take 4 GiB at 4 s.
        """
        return 64 if self.device.type == "cuda" else 8

    def num_frames(self, samples: int) -> int:
        """Return the number of frames that cover `samples` samples; the last frame may extend past the end."""
        return math.ceil(samples / self.hop_length)

    @torch.inference_mode()
    def encode(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode each row from an empty encoder state.

        Args:
            wav: [B, 1, S].
            lengths: [B] valid samples of each row; all of them by default. The samples after them have no effect: the
                first ceil(lengths[b] / 320) frames of row b equal those of the row encoded alone. Later frames are
                undefined.

        Returns:
            Codes, int64 [B, K, ceil(S / 320)].
        """
        batch, channels, samples = wav.shape
        valid = [samples] * batch if lengths is None else lengths.tolist()
        assert channels == 1 and len(valid) == batch and min(valid) > 0 and max(valid) <= samples, (wav.shape, valid)
        wav = wav.to(self.device, torch.float32)
        if min(valid) < samples:
            ends = torch.tensor(valid)[:, None, None].to(self.device)
            wav = wav.where(torch.arange(samples, device=self.device) < ends, 0)  # a product would keep a NaN
        with full_precision(self.device):
            latents = self.model.encoder(wav, valid)  # [B, D, T]
            codes = self.model.quantizer.encode(latents, self.model.frame_rate, self.model.bandwidth).transpose(0, 1)
        codes = F.pad(codes, (0, self.num_frames(samples) - codes.shape[-1]))
        assert codes.shape == (batch, self.codebooks, self.num_frames(samples)), codes.shape
        return codes

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode complete clips.

        Args:
            codes: [B, k, T], of the first k codebooks.

        Returns:
            Waveforms [B, 1, 320 T].

        Raises:
            InputError: There are more codebooks than the codec has, or codes outside 0..1023.
        """
        codes = self.validate_codes(codes)
        with full_precision(self.device):
            return self.model.decode([(codes, None)])

    def decode_clip(self, codes: Tensor) -> np.ndarray:
        """Decode one clip of codes [k, T] to samples, float32 [S]."""
        return self.decode(codes[None])[0, 0].cpu().numpy()

    def streaming_decoder(self) -> StreamingDecoder:
        """Return a decoder that takes codes chunk by chunk."""
        return StreamingDecoder(self)

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode chunks of codes [B, k, t] to chunks of waveforms [B, 1, s], which joined equal `decode`."""
        decoder = self.streaming_decoder()
        for chunk in chunks:
            if (wav := decoder.push(chunk)).shape[-1]:
                yield wav
        if (wav := decoder.flush()).shape[-1]:
            yield wav

    def validate_codes(self, codes: Tensor) -> Tensor:
        """Return codes [B, K, T] as int64 on the codec's device; raise InputError if it cannot decode them."""
        assert codes.ndim == 3 and codes.shape[-1] > 0, codes.shape
        if codes.shape[1] > self.max_codebooks:
            raise InputError(f"{codes.shape[1]} codebooks to decode, but {self.name} has {self.max_codebooks}")
        low, high = (int(edge) for edge in codes.aminmax())
        if low < 0 or high >= self.codebook_size:
            raise InputError(f"codes from {low} to {high}: {self.name} decodes 0..{self.codebook_size - 1} only")
        return codes.to(self.device, torch.int64)


class StreamingDecoder:
    """Decodes codes chunk by chunk; the joined outputs of `push` and `flush` equal `Codec.decode`.

    Latency: EnCodec needs the first 7 frames together and then none; the embedded codec has 864 samples.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._state: Any = None
        self._decoder: StreamingDecoderModule = codec.model.decoder  # type: ignore[assignment]

    @torch.inference_mode()
    def push(self, chunk: Tensor) -> Tensor:
        """Decode codes [B, k, t] and return the samples [B, 1, s] that are now complete."""
        codes = self._codec.validate_codes(chunk)
        with full_precision(self._codec.device):
            self._state = self._decoder.start(len(codes)) if self._state is None else self._state
            return self._decoder.step(self._codec.model.quantizer.decode(codes.transpose(0, 1)), self._state)

    @torch.inference_mode()
    def flush(self) -> Tensor:
        """Return the samples [B, 1, s] that remain after the last push."""
        if self._state is None:
            return torch.zeros(1, 1, 0)
        with full_precision(self._codec.device):
            return self._decoder.finish(self._state)
