"""Encoder and decoder of the embedded codec: log-magnitude bands at 75 Hz, and single-pass phase reconstruction.

Encoder: frames of 2,048 samples under a Hann window, hop 320 at 24 kHz, frame t centred on sample 320 t + 160, so that
T = ceil(S / 320); the clip is padded with silence. Magnitudes are pooled to 359 bands (every bin up to 1.3 kHz, then
0.9 % apart). The output is their natural log minus its mean over the corpus of the codebooks.

Decoder: bands are interpolated to bins. The phase of each spectral peak advances from the previous frame by its
interpolated frequency, and the bins of its lobe share it (Beauregard, Harish & Wyse, "Single Pass Spectrogram
Inversion", 2015). Frames are overlap-added. Apart from the overlap the decoder is causal, so it can stream:

    frame     t   |------------ 2048 ------------|
    frame   t+1       |------------ 2048 ------------|
    complete to here -^ after frame t: 320 (t + 1) - 864 samples of the clip

Letters: B clips, S samples, T frames, D bands, N bins (1,025).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOP = 320
WINDOW = 2048
BINS = WINDOW // 2 + 1
LEAD = (WINDOW - HOP) // 2  # samples of a frame's window before its 320 samples
HOPS_PER_WINDOW = math.ceil(WINDOW / HOP)  # hops that a window covers, rounded up
FLOOR = 1e-4  # added to magnitudes before the log
BAND_SPACING = 0.009  # distance of neighbouring bands relative to their frequency
GOLDEN = (3 - 5**0.5) / 2  # turns between the initial phases of neighbouring bins, so that they are spread evenly
CPU_FRAMES = 64  # clips x frames that a CPU decodes together: their bins fit into its cache
GPU_FRAMES = 8192


def band_centres() -> np.ndarray:
    """Return the centres of the bands in bins [D], at least one bin apart."""
    centres, at = [], 0.0
    while at < BINS - 1:
        centres.append(at)
        at += max(1.0, at * BAND_SPACING)
    return np.array(centres)


def pooling_matrix() -> Tensor:
    """Return the triangles [D, N] over neighbouring centres, each with sum 1."""
    centres, bins = band_centres(), np.arange(BINS)
    edges = np.concatenate([[centres[0] - 1], centres, [BINS]])
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clip(0, 1)
    return torch.from_numpy((triangles / triangles.sum(axis=1, keepdims=True)).astype(np.float32))


def interpolation_weights() -> tuple[Tensor, Tensor]:
    """Return for each bin the band below it, int64 [N], and the weight of the band above, float32 [N]."""
    centres, bins = band_centres(), np.arange(BINS)
    low = (np.searchsorted(centres, bins, side="right") - 1).clip(0, len(centres) - 2)
    share = ((bins - centres[low]) / (centres[low + 1] - centres[low])).clip(0, 1)
    return torch.from_numpy(low), torch.from_numpy(share.astype(np.float32))


class SpectralEncoder(nn.Module):
    """Encodes wav [B, 1, S] to bands [B, D, ceil(S / 320)]. mean: [D]."""

    ratios = (HOP,)  # EncodecModel computes the hop length from it
    mean: Tensor
    pool: Tensor
    window: Tensor

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.dimension = len(mean)
        self.register_buffer("mean", mean.float())
        self.register_buffer("pool", pooling_matrix().T.contiguous() / (WINDOW / 4), persistent=False)  # [N, D]
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        assert self.pool.shape == (BINS, self.dimension)

    def forward(self, wav: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Encode wav [B, 1, S]. lengths: unused, since the samples after each row's end are zero already."""
        frames = F.pad(wav.squeeze(1), (LEAD, LEAD + -wav.shape[-1] % HOP)).unfold(1, WINDOW, HOP)  # [B, T, 2048]
        magnitudes = torch.fft.rfft(frames * self.window).abs()  # [B, T, N]
        frequencies: Tensor = (magnitudes @ self.pool).add_(FLOOR).log_().sub_(self.mean).transpose(1, 2)
        return frequencies


@dataclass
class SynthesisState:
    """The state between two frames.

    Attributes:
        phase: [B, N] in turns.
        tail: [B, 1920], the overlap that is not complete yet.
        weight: [1920], the sum of squared windows of the tail.
        skip: Samples to drop before the clip begins.
    """

    phase: Tensor
    tail: Tensor
    weight: Tensor
    skip: int = LEAD


class PhaseDecoder(nn.Module):
    """Decodes bands [B, D, T] to wav [B, 1, 320 T], complete or in chunks with explicit state."""

    mean: Tensor
    low: Tensor
    share: Tensor
    bins: Tensor
    window: Tensor

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        low, share = interpolation_weights()
        self.register_buffer("mean", mean.float())
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("share", share, persistent=False)
        self.register_buffer("bins", torch.arange(BINS), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def forward(self, bands: Tensor) -> Tensor:
        """Decode complete clips: bands [B, D, T] -> wav [B, 1, 320 T]."""
        state = self.start(len(bands))
        size = max(1, (GPU_FRAMES if bands.is_cuda else CPU_FRAMES) // len(bands))
        parts = [self.step(chunk, state) for chunk in bands.split(size, dim=-1)]
        return torch.cat([*parts, self.finish(state)], dim=-1)

    def start(self, batch: int) -> SynthesisState:
        """Return the state before the first frame of `batch` clips."""
        phase = (self.bins * GOLDEN).frac().expand(batch, BINS)
        over = (HOPS_PER_WINDOW - 1) * HOP
        return SynthesisState(phase, self.window.new_zeros(batch, over), self.window.new_zeros(over))

    def step(self, bands: Tensor, state: SynthesisState) -> Tensor:
        """Decode frames [B, D, t], t >= 1, to the samples [B, 1, s] that are now complete, and update the state."""
        magnitudes, phases = self._spectrum(bands.transpose(1, 2) + self.mean, state)
        frames = torch.fft.irfft(torch.polar(magnitudes, phases)).roll(WINDOW // 2, -1) * self.window
        sound = _overlap_add(frames, state.tail)
        weight = _overlap_add(self.window.square().expand(1, frames.shape[1], WINDOW), state.weight[None])[0]
        done = frames.shape[1] * HOP
        state.tail, state.weight = sound[:, done:], weight[done:]
        drop = min(state.skip, done)
        state.skip -= drop
        return (sound[:, drop:done] / weight[drop:done].clamp(min=0.1)).unsqueeze(1)

    def finish(self, state: SynthesisState) -> Tensor:
        """Return the samples [B, 1, s] that remain after the last step, s <= 864."""
        return (state.tail / state.weight.clamp(min=0.1))[:, None, state.skip : LEAD]

    def _spectrum(self, logs: Tensor, state: SynthesisState) -> tuple[Tensor, Tensor]:
        """Convert log bands [B, T, D] to magnitudes and phases (radians), each [B, T, N]; advance state.phase."""
        low, high = logs[..., self.low], logs[..., self.low + 1]
        magnitudes = torch.lerp(low, high, self.share).exp_().sub_(FLOOR).clamp_(min=0)
        nearest, turns = self._peaks((magnitudes + 1e-7).log_())
        phases = torch.empty_like(turns)
        phase = state.phase
        for t in range(turns.shape[1]):  # the only sequential step
            phase = phase.gather(1, nearest[:, t]).add_(turns[:, t]).frac_()
            phases[:, t] = phase
        state.phase = phase
        return magnitudes * (WINDOW / 4), phases.mul_(2 * math.pi)

    def _peaks(self, logs: Tensor) -> tuple[Tensor, Tensor]:
        """Return each bin's nearest peak in logs [B, T, N], int64, and the turns its phase advances by in a hop."""
        centre, left, right = logs[..., 1:-1], logs[..., :-2], logs[..., 2:]
        rise, fall = centre - left, centre - right
        peak = F.pad((rise > 0) & (fall >= 0), (1, 1))
        offset = F.pad((0.5 * (rise - fall) / (rise + fall + 1e-9)).clamp_(-0.5, 0.5), (1, 1))
        before = torch.where(peak, self.bins, -4 * BINS).cummax(-1).values
        after = torch.where(peak, self.bins, 2 * BINS).flip(-1).cummin(-1).values.flip(-1)
        nearest = torch.where(self.bins - before <= after - self.bins, before, after)
        nearest = torch.where(nearest == 2 * BINS, BINS - 1, nearest)  # a frame without a peak
        turns = (self.bins + offset).mul_(HOP / WINDOW).frac_()
        return nearest, turns.gather(-1, nearest)


def _overlap_add(frames: Tensor, tail: Tensor) -> Tensor:
    """Overlap-add frames [B, T, 2048] to tail [B, 1920]: [B, 320 T + 1920]."""
    batch, count = frames.shape[:2]
    pieces = F.pad(frames, (0, HOPS_PER_WINDOW * HOP - WINDOW)).view(batch, count, HOPS_PER_WINDOW, HOP)
    out = F.pad(tail, (0, count * HOP)).view(batch, count + HOPS_PER_WINDOW - 1, HOP)
    for i in range(HOPS_PER_WINDOW):
        out[:, i : i + count] += pieces[:, :, i]
    return out.view(batch, -1)
