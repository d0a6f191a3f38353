"""EnCodecMAE's encoder for inference (Pepino, Riera & Ferrer 2023): 24 kHz sound -> features, about 75 a second.

A front end (Kaldi log-mel filterbank, or the continuous output of EnCodec's encoder), a linear map, sinusoidal
positions, and a ResiDual transformer (Xie et al. 2023) of two streams: in each layer the first is normed after each
branch, the second sums up what the branches gave.

Letters: B chunks of at most 4 s, S samples, T frames, D width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.audio.codecs.encodec_package import SEANetEncoder
from pipeline.audio.codecs.seanet import Seanet

SAMPLE_RATE = 24_000
HOP = 320  # of the attention mask: frames to attend to are samples // 320 for either front end
CHUNK = 4 * SAMPLE_RATE  # positions restart in each chunk
PREEMPHASIS = 0.97
LOWEST_HZ = 20.0
MASKED_SCORE = (
    -1e9
)  # added to what attention must not see; finite, as in the authors' code: a row of nothing else is even


@dataclass(frozen=True)
class MelConfig:
    """Kaldi log-mel filterbank; `mean` and `scale` of its values over the training corpus."""

    bins: int = 256
    frame_ms: float = 26.56
    shift_ms: float = 13.28
    mean: float = -6.12
    scale: float = 4.82


@dataclass(frozen=True)
class Architecture:
    """Sizes of an encoder. mel: None for the EnCodec front end, which is 128 wide.

    shortest_tail: samples that the last chunk of several must exceed, else it is left out.
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
        """Whether attention may see as many frames as the whole clip has (v2) or as the chunk has (v1)."""
        return self.shortest_tail > 0


class KaldiMel(nn.Module):
    """[B, S] -> [B, T, bins]: frames that fit wholly, DC removed, pre-emphasis, Hann, power, triangles, log, normed."""

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
        """[fft / 2 + 1, bins], equally spaced in mel = 1127 ln(1 + f / 700)."""
        low, high = (1127 * math.log1p(hz / 700) for hz in (LOWEST_HZ, SAMPLE_RATE / 2))
        step = (high - low) / (self.mel.bins + 1)
        left = low + torch.arange(self.mel.bins) * step  # float32, as Kaldi's port in torchaudio has it
        mels = 1127 * torch.log(1 + torch.arange(self.fft / 2) * (SAMPLE_RATE / self.fft) / 700)
        up, down = (mels[:, None] - left) / step, (left + 2 * step - mels[:, None]) / step
        return F.pad(torch.minimum(up, down).clamp(min=0), (0, 0, 0, 1))  # Kaldi leaves out the highest bin

    def num_frames(self, samples: int) -> int:
        """Frames of a chunk."""
        return 1 + (samples - self.size) // self.shift

    def forward(self, wav: Tensor) -> Tensor:
        """wav: [B, S]."""
        x = wav.unfold(-1, self.size, self.shift)  # [B, T, size]
        x = x - x.mean(-1, keepdim=True)
        x = x - PREEMPHASIS * torch.cat([x[..., :1], x[..., :-1]], dim=-1)
        power = torch.fft.rfft(x * self.window, n=self.fft).abs().square()
        logs = (power @ self.triangles).clamp(min=torch.finfo(torch.float32).eps).log()
        return (logs - self.mel.mean) / self.mel.scale


class EncodecFrames(nn.Module):
    """[B, S] -> [B, ceil(S / 320), 128]: EnCodec's encoder before quantisation. package: it, with its weights."""

    def __init__(self, package: SEANetEncoder) -> None:
        super().__init__()
        self.encoder = Seanet(package)

    def num_frames(self, samples: int) -> int:
        """Frames of a chunk."""
        return math.ceil(samples / HOP)

    def forward(self, wav: Tensor) -> Tensor:
        """wav: [B, S]."""
        return self.encoder(wav.unsqueeze(1)).transpose(1, 2)


class Block(nn.Module):
    """A ResiDual layer. Heads lie one after another in `qkv` and `out`, which have no biases."""

    def __init__(self, arch: Architecture, ffn: nn.Module) -> None:
        super().__init__()
        inner = arch.heads * arch.head_dim
        self.heads = arch.heads
        self.qkv = nn.Linear(arch.dim, 3 * inner, bias=False)
        self.out = nn.Linear(inner, arch.dim, bias=False)
        self.norm1, self.norm2, self.ffn = nn.LayerNorm(arch.dim), nn.LayerNorm(arch.dim), ffn

    def forward(self, normed: Tensor, summed: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both streams [B, T, D] -> both; bias: [B, 1, 1, T], added to the scores of each key."""
        q, k, v = self.qkv(normed).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, T, D / H]
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        attended = self.out(heard.transpose(1, 2).flatten(2))
        normed = self.norm1(normed + attended)
        thought = self.ffn(normed)
        return self.norm2(normed + thought), summed + attended + thought


class EncodecMae(nn.Module):
    """Chunks of sound -> features. Give it a front end, then weights by `load_state_dict`."""

    def __init__(self, arch: Architecture, frontend: KaldiMel | EncodecFrames, width: int) -> None:
        super().__init__()
        self.arch, self.frontend = arch, frontend
        self.proj = nn.Linear(width, arch.dim)
        self.scale = nn.Parameter(torch.ones(()))
        ffn = nn.Sequential(nn.Linear(arch.dim, arch.ffn), nn.ReLU(), nn.Linear(arch.ffn, arch.dim))
        self.blocks = nn.ModuleList(Block(arch, ffn) for _ in range(arch.layers))  # all layers share one FFN
        self.final_norm = nn.LayerNorm(arch.dim)

    def forward(self, chunks: Sequence[Tensor], attend: Sequence[int]) -> tuple[Tensor, Tensor]:
        """chunks: B of [S_b]; attend: the frames of each that attention may see -> [B, T, D] and frames [B]."""
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
        """Chunks of one length together, so that none is padded: [B, T, width], zeros after a chunk's own frames."""
        sizes = [len(chunk) for chunk in chunks]
        frames = [self.frontend.num_frames(size) for size in sizes]
        out = chunks[0].new_zeros(len(chunks), max(frames), self.proj.in_features)
        for size in sorted(set(sizes)):
            rows = [b for b, own in enumerate(sizes) if own == size]
            found = self.frontend(torch.stack([chunks[b] for b in rows]))
            out[rows, : found.shape[1]] = found
        return out, torch.tensor(frames, device=out.device)

    def _positions(self, count: int) -> Tensor:
        """[count, D]: sine and cosine by turns."""
        rates = torch.exp(torch.arange(0, self.arch.dim, 2) * (-math.log(10_000) / self.arch.dim))
        angles = torch.arange(count)[:, None] * rates
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
