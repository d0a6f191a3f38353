"""The interface of codecs: `Codec` encodes and decodes complete clips, `StreamingDecoder` decodes chunk by chunk.

A new codec is a subclass of `Codec` with `encode_batch` and `decode_batch`. It imports torch inside functions, so that
commands start fast.

A sound of one clip is an array as soundfile has it: [S] for one channel, [S, 2] for two.

Letters: B clips, K streams of codes (one for each codebook, or each codebook and channel), T frames, S samples.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.common.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from pipeline.audio.codecs import CodecSettings

LONGEST_PIECE = 2048  # frames that are decoded at once where pieces can be joined: it bounds the memory


class StreamingDecoder(Protocol):
    """Decodes codes chunk by chunk; the joined outputs of `push` and `flush` equal `Codec.decode`."""

    def push(self, chunk: Tensor) -> Tensor:
        """Decode codes [B, k, t] and return the samples [B, channels, s] that are now complete."""

    def flush(self) -> Tensor:
        """Return the samples [B, channels, s] that remain after the last push."""


class Codec(ABC):
    """Encodes waveforms to codes and decodes codes, in fp32 under any autocast and TF32 settings.

    Attributes:
        channels: 1 for mono, 2 for stereo.
        streams_per_codebook: 2 where both channels have each codebook, else 1.
        codebooks: The number of streams of codes, K, that `encode` returns.
        max_codebooks: The number of streams that the codec has.
        codes_version: Of the mapping from audio to codes; datasets of another version are not resumed.
        is_waveform_codec: Whether phases are kept, so that waveforms can be compared sample by sample.
        context_frames: The frames before and after a frame that its samples depend on; None: all of them.
    """

    channels = 1
    streams_per_codebook = 1
    codes_version = 1
    is_waveform_codec = True
    context_frames: int | None = None

    def __init__(
        self,
        settings: CodecSettings,
        weights: str,
        device: str | torch.device,
        *,
        sample_rate: int,
        hop_length: int,
        codebook_size: int,
        max_codebooks: int,
    ) -> None:
        """Describe a codec.

        Args:
            settings: Name and number of codebooks.
            weights: The sha256 of the weights file.
            device: The device that encodes and decodes.
            sample_rate: In Hz.
            hop_length: The samples of a frame.
            codebook_size: The number of codes of each codebook.
            max_codebooks: The number of codebooks that the codec has.

        Raises:
            InputError: The codec does not have this many codebooks.
        """
        import torch

        self.name, self.codebooks = settings.name, settings.codebooks
        if self.codebooks > max_codebooks:
            raise InputError(f"codec.codebooks={self.codebooks}: {self.name} has 1 to {max_codebooks} codebooks")
        self.weights, self.device = weights, torch.device(device)
        self.sample_rate, self.hop_length = sample_rate, hop_length
        self.codebook_size, self.max_codebooks = codebook_size, max_codebooks

    @abstractmethod
    def encode_batch(self, wav: Tensor, lengths: list[int]) -> Tensor:
        """Encode rows of different lengths.

        Args:
            wav: float32 [B, channels, S] on the codec's device, zero after the end of each row.
            lengths: [B] valid samples of each row. The first ceil(lengths[b] / hop_length) frames of row b equal those
                of the row encoded alone.

        Returns:
            Codes [B, codebooks, at most ceil(S / hop_length)].
        """

    @abstractmethod
    def decode_batch(self, codes: Tensor) -> Tensor:
        """Decode the first k streams, int64 [B, k, T] on the codec's device, to [B, channels, hop_length T]."""

    def dequantize(self, codes: Tensor) -> Tensor | None:
        """The continuous latents of codes, as `decode_batch` gets them; here none.

        Args:
            codes: int64 [B, k, T] of the first k streams, on the codec's device.

        Returns:
            float32 [B, D, T]: with a residual quantizer the sums of the codebooks' vectors; None: the codec has none.
        """
        return None

    @property
    def can_decode_in_pieces(self) -> bool:
        """Whether `streaming_decoder` needs memory for a few frames only, whatever the length."""
        return self.context_frames is not None

    @property
    def frame_rate(self) -> float:
        """Frames per second; an int where it is whole."""
        rate = self.sample_rate / self.hop_length
        return int(rate) if rate.is_integer() else rate

    @property
    def bandwidth(self) -> float:
        """Bits per second of one stream of codes."""
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
            "version": self.codes_version,
            **({"channels": self.channels} if self.channels > 1 else {}),
        }

    @property
    def best_batch(self) -> int:
        """The best number of clips of a few seconds to encode in one batch.

        For EnCodec it is measured. On a CPU convolutions run clip by clip in any batch; only the LSTM gains from
        batching, up to 8 clips. On an H100, 64 clips are within 10 % of the fastest, and take 4 GiB at 4 s.
        """
        return 64 if self.device.type == "cuda" else 8

    def num_frames(self, samples: int) -> int:
        """Return the number of frames that cover `samples` samples; the last frame may extend past the end."""
        return math.ceil(samples / self.hop_length)

    def encode(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode each row from an empty encoder state.

        Args:
            wav: [B, channels, S].
            lengths: [B] valid samples of each row; all of them by default. The samples after them have no effect: the
                first ceil(lengths[b] / hop_length) frames of row b equal those of the row encoded alone. Later frames
                are undefined.

        Returns:
            Codes, int64 [B, K, ceil(S / hop_length)].
        """
        import torch
        from torch.nn.functional import pad

        from pipeline.audio.precision import full_precision

        batch, channels, samples = wav.shape
        valid = [samples] * batch if lengths is None else lengths.tolist()
        assert channels == self.channels and len(valid) == batch, (wav.shape, valid)
        assert min(valid) > 0 and max(valid) <= samples, (wav.shape, valid)
        with torch.inference_mode(), full_precision(self.device):
            wav = wav.to(self.device, torch.float32)
            if min(valid) < samples:
                ends = torch.tensor(valid)[:, None, None].to(self.device)
                wav = wav.where(torch.arange(samples, device=self.device) < ends, 0)  # a product would keep a NaN
            codes = self.encode_batch(wav, valid)
            codes = pad(codes, (0, self.num_frames(samples) - codes.shape[-1]))
        assert codes.shape == (batch, self.codebooks, self.num_frames(samples)), codes.shape
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Decode complete clips.

        Args:
            codes: [B, k, T], of the first k streams.

        Returns:
            Waveforms [B, channels, hop_length T].

        Raises:
            InputError: There are more codebooks than the codec has, or codes that its codebooks do not have.
        """
        import torch

        from pipeline.audio.precision import full_precision

        if self.can_decode_in_pieces and codes.shape[-1] > LONGEST_PIECE:
            decoder = self.streaming_decoder()
            pieces = [decoder.push(piece) for piece in codes.split(LONGEST_PIECE // 2, dim=-1)]
            return torch.cat([*pieces, decoder.flush()], dim=-1)
        with torch.inference_mode(), full_precision(self.device):
            return self.decode_batch(self.validate_codes(codes))

    def latents(self, codes: Tensor) -> Tensor | None:
        """The continuous latents of the codes [B, k, T] of the first k streams: [B, D, T]; None: the codec has none.

        Raises:
            InputError: As `decode` does.
        """
        import torch

        from pipeline.audio.precision import full_precision

        with torch.inference_mode(), full_precision(self.device):
            return self.dequantize(self.validate_codes(codes))

    def encode_clip(self, wav: np.ndarray) -> Tensor:
        """Encode a sound, [S] or [S, 2], to codes [K, T] on the codec's device."""
        import torch

        assert wav.shape[1:] == ((self.channels,) if self.channels > 1 else ()), wav.shape
        return self.encode(torch.from_numpy(wav.reshape(len(wav), -1)).T[None])[0]

    def decode_clip(self, codes: Tensor) -> np.ndarray:
        """Decode one clip of codes [k, T] to a sound, float32 [S] or [S, 2]."""
        return to_array(self.decode(codes[None])[0])

    def silence(self, samples: int) -> np.ndarray:
        """Return a sound of zeros, [S] or [S, 2]."""
        import numpy as np

        return np.zeros((samples, 2) if self.channels == 2 else samples, np.float32)

    def streaming_decoder(self) -> StreamingDecoder:
        """Return a decoder that receives codes chunk by chunk.

        Here it decodes overlapping pieces, each with `context_frames` on both sides, and everything at the end if the
        context is unknown.
        """
        from pipeline.audio.codecs.streaming import Overlap, StagedDecoder

        return StagedDecoder(self, [Overlap(self.decode_batch, self.hop_length, self.context_frames)])

    def validate_codes(self, codes: Tensor) -> Tensor:
        """Return codes [B, K, T] as int64 on the codec's device; raise InputError if it cannot decode them."""
        assert codes.ndim == 3 and codes.shape[-1] > 0, codes.shape
        if codes.shape[1] > self.max_codebooks:
            raise InputError(f"{codes.shape[1]} codebooks to decode, but {self.name} has {self.max_codebooks}")
        low, high = (int(edge) for edge in codes.aminmax())
        if low < 0 or high >= self.codebook_size:
            raise InputError(f"codes from {low} to {high}: {self.name} decodes 0..{self.codebook_size - 1} only")
        return codes.to(self.device).long()


def to_array(wav: Tensor) -> np.ndarray:
    """A waveform [channels, S] as the sound of one clip, [S] or [S, 2]."""
    samples = wav.cpu().numpy()
    return samples[0] if len(samples) == 1 else samples.T.copy()
