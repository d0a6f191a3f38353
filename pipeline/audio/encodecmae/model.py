"""EnCodecMAE's encoder for inference (Pepino, Riera & Ferrer 2023): 24 kHz audio to about 75 features per second.

It consists of a front end (Kaldi log-mel filterbank, or the continuous output of EnCodec's encoder), a linear
projection, sinusoidal positions, and a ResiDual transformer (Xie et al. 2023) with two streams: one is normalized after
each branch, the other is the sum of all branches.

Letters: B chunks of at most 4 s, S samples, T frames, D width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.audio.encodec.package import SEANetEncoder
from pipeline.audio.encodec.seanet import Seanet

SAMPLE_RATE = 24_000
HOP = 320  # of the attention mask: samples // 320 frames are visible, with either front end
CHUNK = 4 * SAMPLE_RATE  # positions restart in each chunk
PREEMPHASIS = 0.97
LOWEST_HZ = 20.0
MASKED_SCORE = (
    -1e9
)  # added to masked attention scores; finite, as in the authors' code: if all are masked, attention is uniform


@dataclass(frozen=True)
class MelConfig:
    """Settings of the Kaldi log-mel filterbank. mean, scale: statistics of its values over the training corpus."""

    bins: int = 256
    frame_ms: float = 26.56
    shift_ms: float = 13.28
    mean: float = -6.12
    scale: float = 4.82


@dataclass(frozen=True)
class Architecture:
    """Sizes of an encoder.

    Attributes:
        mel: Settings of the mel front end; None for EnCodec's, which is 128 wide.
        shortest_tail: A last chunk of several is dropped unless it has more samples than this.
    """

    dim: int
    layers: int
    heads: int
    head_dim: int
    ffn: int
    mel: MelConfig | None
    shortest_tail: int

    @property
    def masks_by_clip(self) -> bool:
        """Whether attention may see as many frames as the complete clip has (v2), rather than the chunk (v1)."""
        return self.shortest_tail > 0


class KaldiMel(nn.Module):
    """Normalized log-mel features as in Kaldi: [B, S] -> [B, T, bins], of frames that fit entirely into S."""

    window: Tensor
    triangles: Tensor

    def __init__(self, mel: MelConfig) -> None:
        super().__init__()
        self.mel = mel
        self.size = int(SAMPLE_RATE * mel.frame_ms * 0.001)
        self.shift = int(SAMPLE_RATE * mel.shift_ms * 0.001)
        self.fft = 1 << (self.size - 1).bit_length()
        self.register_buffer("window", torch.hann_window(self.size, periodic=False), persistent=False)
        self.register_buffer("triangles", self._triangles(), persistent=False)

    def _triangles(self) -> Tensor:
        """Return the filters [fft / 2 + 1, bins], equally spaced in mel = 1127 ln(1 + f / 700)."""
        low, high = (1127 * math.log1p(hz / 700) for hz in (LOWEST_HZ, SAMPLE_RATE / 2))
        step = (high - low) / (self.mel.bins + 1)
        left = low + torch.arange(self.mel.bins) * step  # float32, as in torchaudio's port of Kaldi
        mels = 1127 * torch.log(1 + torch.arange(self.fft / 2) * (SAMPLE_RATE / self.fft) / 700)
        up, down = (mels[:, None] - left) / step, (left + 2 * step - mels[:, None]) / step
        return F.pad(torch.minimum(up, down).clamp(min=0), (0, 0, 0, 1))  # Kaldi omits the highest bin

    def num_frames(self, samples: int) -> int:
        """Return the number of frames of a chunk."""
        return 1 + (samples - self.size) // self.shift

    def forward(self, wav: Tensor) -> Tensor:
        """Return features [B, T, bins] of wav [B, S]."""
        x = wav.unfold(-1, self.size, self.shift)  # [B, T, size]
        x = x - x.mean(-1, keepdim=True)
        x = x - PREEMPHASIS * torch.cat([x[..., :1], x[..., :-1]], dim=-1)
        power = torch.fft.rfft(x * self.window, n=self.fft).abs().square()
        logs = (power @ self.triangles).clamp(min=torch.finfo(torch.float32).eps).log()
        features: Tensor = (logs - self.mel.mean) / self.mel.scale
        return features


class EncodecFrames(nn.Module):
    """EnCodec's encoder before quantization: [B, S] -> [B, ceil(S / 320), 128]. package: the encoder with weights."""

    def __init__(self, package: SEANetEncoder) -> None:
        super().__init__()
        self.encoder = Seanet(package)

    def num_frames(self, samples: int) -> int:
        """Return the number of frames of a chunk."""
        return math.ceil(samples / HOP)

    def forward(self, wav: Tensor) -> Tensor:
        """Return features [B, T, 128] of wav [B, S]."""
        features: Tensor = self.encoder(wav.unsqueeze(1)).transpose(1, 2)
        return features


class Block(nn.Module):
    """A ResiDual layer. `qkv` and `out` have no biases; the channels of a head are contiguous."""

    def __init__(self, arch: Architecture, ffn: nn.Module) -> None:
        super().__init__()
        inner = arch.heads * arch.head_dim
        self.heads = arch.heads
        self.qkv = nn.Linear(arch.dim, 3 * inner, bias=False)
        self.out = nn.Linear(inner, arch.dim, bias=False)
        self.norm1, self.norm2, self.ffn = nn.LayerNorm(arch.dim), nn.LayerNorm(arch.dim), ffn

    def forward(self, normed: Tensor, summed: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Update both streams [B, T, D]. bias: [B, 1, 1, T], added to the attention scores of each key."""
        q, k, v = self.qkv(normed).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, T, D / H]
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        attended = self.out(heads.transpose(1, 2).flatten(2))
        normed = self.norm1(normed + attended)
        ffn = self.ffn(normed)
        return self.norm2(normed + ffn), summed + attended + ffn


class EncodecMae(nn.Module):
    """The complete encoder: a front end and a transformer."""

    def __init__(self, arch: Architecture, frontend: KaldiMel | EncodecFrames, width: int) -> None:
        super().__init__()
        self.arch, self.frontend = arch, frontend
        self.proj = nn.Linear(width, arch.dim)
        self.scale = nn.Parameter(torch.ones(()))
        ffn = nn.Sequential(nn.Linear(arch.dim, arch.ffn), nn.ReLU(), nn.Linear(arch.ffn, arch.dim))
        self.blocks = nn.ModuleList(Block(arch, ffn) for _ in range(arch.layers))  # all layers share one FFN
        self.final_norm = nn.LayerNorm(arch.dim)

    def forward(self, chunks: Sequence[Tensor], attend: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Encode chunks.

        Args:
            chunks: B waveforms [S_b].
            attend: The frames of each chunk that attention may see.

        Returns:
            Features [B, T, D], and the number of frames of each chunk [B].
        """
        x, frames = self._run_frontend(chunks)
        at = torch.arange(x.shape[1], device=x.device)
        x = self.proj(x) + self.scale * self._positions(x.shape[1]).to(x)
        seen = torch.tensor(attend, device=x.device)
        bias = None
        if (seen < x.shape[1]).any() or (frames < x.shape[1]).any():
            bias = x.new_zeros(x.shape[:2]).masked_fill_(at >= seen[:, None], MASKED_SCORE)
            bias = bias.masked_fill_(at >= frames[:, None], -math.inf)[:, None, None]
        normed = summed = x
        for block in self.blocks:
            normed, summed = block(normed, summed, bias)
        return normed + self.final_norm(summed), frames

    def _run_frontend(self, chunks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Run the front end on batches of chunks of equal length: [B, T, width], zero after each chunk's frames."""
        sizes = [len(chunk) for chunk in chunks]
        frames = [self.frontend.num_frames(size) for size in sizes]
        out = chunks[0].new_zeros(len(chunks), max(frames), self.proj.in_features)
        for size in sorted(set(sizes)):
            rows = [b for b, length in enumerate(sizes) if length == size]
            features = self.frontend(torch.stack([chunks[b] for b in rows]))
            out[rows, : features.shape[1]] = features
        return out, torch.tensor(frames, device=out.device)

    def _positions(self, count: int) -> Tensor:
        """Return positions [count, D]: alternating sines and cosines."""
        rates = torch.exp(torch.arange(0, self.arch.dim, 2) * (-math.log(10_000) / self.arch.dim))
        angles = torch.arange(count)[:, None] * rates
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
