"""EnCodec's SEANet encoder and decoder (Défossez et al. 2022), rewritten to run faster and to stream.

It uses the weights of the `encodec` package's modules and computes the same function. The differences:
- The layout is [B, T, C], where a convolution over time reads contiguous memory: half the time on a CPU.
- Weight norm is folded. ELU is max(exp(min(x, 0)) - 1, x), since PyTorch's takes 46 % of the package's time.
- Every layer is causal with explicit state: `state` maps a layer to its past. So chunks give the same result as the
  complete clip, and on a CPU the layers run row by row in chunks that fit into the processor's cache.
- The LSTM, which reads its weights in each step, runs on all rows together.

A clip that does not fill its last frame is reflected at its end before each strided layer, as in the package and in
transformers, also in a batch with longer clips.

Letters: B clips, T time steps at the layer's rate, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.audio.encodec.package import seanet as package_seanet

State = dict[nn.Module, Any]

CPU_CHUNK = 150  # frames at a time on a CPU: the fastest of 12 to 200
MIN_FIRST_FRAMES = 7  # frames of the first chunk: a kernel of 7 reflects 6 samples at the start


class Conv(nn.Module):
    """A causal convolution [B, T, C] -> [B, T / stride, C'], after an ELU if `elu`. weight: [C', C, k].

    The context before the first chunk is its start reflected, or zeros if `reflect` is off.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, dilation: int, elu: bool, reflect: bool) -> None:
        super().__init__()
        self.stride, self.dilation, self.elu, self.reflect = stride, dilation, elu, reflect
        self.past = (weight.shape[2] - 1) * dilation - (stride - 1)
        weight = weight.detach().unsqueeze(2).contiguous(memory_format=torch.channels_last)  # [C', C, 1, k]
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias.detach())

    def forward(self, x: Tensor, state: State) -> Tensor:
        """Convolve x [B, T, C]; T is a multiple of the stride except at the end of a clip, which is then reflected."""
        batch, steps, width = x.shape
        if self.elu or self.past:
            padded = x.new_empty(batch, self.past + steps, width)
            now = padded[:, self.past :]
            if self.elu:
                _elu(x, out=now)
            else:
                now.copy_(x)
            if self.past:
                is_start = self not in state
                padded[:, : self.past] = self._first_context(now) if is_start else state[self]
                state[self] = padded[:, steps:].clone()
                if steps % self.stride:
                    padded = self._reflect_end(padded, is_start)
            x = padded
        x = x.transpose(1, 2).unsqueeze(2)  # [B, C, 1, T], channels last in memory
        y = F.conv2d(x, self.weight, self.bias, (1, self.stride), dilation=(1, self.dilation))
        return y.squeeze(2).transpose(1, 2)  # [B, T / stride, C']

    def _first_context(self, x: Tensor) -> Tensor:
        """Return the context [B, past, C] before the first chunk."""
        if not self.reflect:
            return x.new_zeros(len(x), self.past, x.shape[2])
        if x.shape[1] <= self.past:  # too short to reflect: pad it with zeros, as the package does
            x = F.pad(x, (0, 0, 0, self.past + 1 - x.shape[1]))
        return x[:, 1 : self.past + 1].flip(1)

    def _reflect_end(self, padded: Tensor, is_start: bool) -> Tensor:
        """Extend [B, past + T, C] to a multiple of the stride by reflecting the end, as the package does."""
        steps = padded.shape[1] - self.past
        extra = -steps % self.stride
        if is_start and steps <= self.past:  # the start was padded with zeros, too
            return F.pad(padded, (0, 0, 0, extra))
        return torch.cat([padded, padded[:, -1 - extra : -1].flip(1)], dim=1)


class Upsample(nn.Module):
    """A transposed convolution of stride r after an ELU: [B, T, C] -> [B, r T, C']. weight: [C, C', 2 r].

    Output r n + j is x[n] times the first half of the kernel plus x[n - 1] times the second: a convolution of kernel
    size 2 with r C' channels.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.ratio = weight.shape[2] // 2
        now, before = weight.split(self.ratio, dim=2)  # each [C, C', r]
        kernel = torch.stack([before, now]).permute(3, 2, 1, 0).flatten(0, 1)  # [r C', C, 2]
        self.conv = Conv(kernel, bias.repeat(self.ratio), 1, 1, elu=True, reflect=False)

    def forward(self, x: Tensor, state: State) -> Tensor:
        """Upsample x [B, T, C]."""
        batch, steps, _ = x.shape
        y: Tensor = self.conv(x, state).reshape(batch, steps * self.ratio, -1)
        return y


class Residual(nn.Module):
    """Two convolutions, added to a shortcut convolution of kernel size 1: [B, T, C] -> [B, T, C]."""

    def __init__(self, first: nn.Module, second: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.shortcut = first, second, shortcut

    def forward(self, x: Tensor, state: State) -> Tensor:
        """Apply the block to x [B, T, C]."""
        y: Tensor = self.shortcut(x, state).add_(self.second(self.first(x, state), state))
        return y


class Lstm(nn.Module):
    """An LSTM with a skip connection: [B, T, C] -> [B, T, C]."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor, state: State) -> Tensor:
        """Apply the LSTM to x [B, T, C]."""
        y, state[self] = self.lstm(x.transpose(0, 1), state.get(self))
        z: Tensor = y.transpose(0, 1) + x
        return z


@dataclass
class StreamState:
    """The state of decoding `batch` clips. state: the past of each layer; waiting: first frames that are too few."""

    batch: int
    state: State = field(default_factory=dict)
    waiting: Tensor | None = None


class Seanet(nn.Module):
    """A SEANet encoder or decoder: [B, C, T] -> [B, C', T'], for complete clips or, as a decoder, for chunks.

    hop_length: input steps per output step of an encoder; 1 for a decoder.
    """

    def __init__(self, package: package_seanet.SEANetEncoder | package_seanet.SEANetDecoder) -> None:
        super().__init__()
        layers = _convert(package.model)
        at = next(i for i, layer in enumerate(layers) if isinstance(layer, Lstm))
        self.lstm: Lstm = layers[at]
        self.before, self.after = nn.ModuleList(layers[:at]), nn.ModuleList(layers[at + 1 :])
        self.hop_length = int(package.hop_length) if isinstance(package, package_seanet.SEANetEncoder) else 1

    def forward(self, x: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Process complete clips.

        Args:
            x: [B, C, T].
            lengths: The valid steps of each row; all of them by default. The first ceil(lengths[b] / hop_length)
                outputs of row b equal those of the row alone. The others depend on the values after it, which must be
                finite.
        """
        x = x.transpose(1, 2)
        valid = [x.shape[1]] * len(x) if lengths is None else list(lengths)
        x = x[:, : max(valid)]
        return (self._forward_batch(x, valid) if x.is_cuda else self._forward_row_by_row(x, valid)).transpose(1, 2)

    def _forward_row_by_row(self, x: Tensor, valid: list[int]) -> Tensor:
        x = _run_by_row(self.before, x, valid, CPU_CHUNK * self.hop_length)
        return _run_by_row(self.after, self.lstm(x, {}), [self._num_outputs(n) for n in valid], CPU_CHUNK)

    def _forward_batch(self, x: Tensor, valid: list[int]) -> Tensor:
        layers = [*self.before, self.lstm, *self.after]
        if len(set(valid)) == 1:
            return _run(layers, x, {})
        y, state, ends = F.pad(x, (0, 0, 0, -x.shape[1] % self.hop_length)), State(), valid
        for layer in layers:
            if isinstance(layer, Conv) and layer.stride > 1:
                _reflect_ends(y, ends, layer.stride)
                ends = [math.ceil(end / layer.stride) for end in ends]
            y = layer(y, state)
        for b, n in enumerate(valid):
            if self._num_outputs(n) < MIN_FIRST_FRAMES:  # its start was reflected from steps of the padding
                y[b : b + 1, : self._num_outputs(n)] = _run(layers, x[b : b + 1, :n], {})
        return y

    def _num_outputs(self, steps: int) -> int:
        return math.ceil(steps / self.hop_length)

    def start(self, batch: int) -> StreamState:
        """Return the state before the first frame of `batch` clips."""
        return StreamState(batch)

    def step(self, x: Tensor, stream: StreamState) -> Tensor:
        """Decode frames [B, C, t] to samples [B, 1, 320 t]; the first MIN_FIRST_FRAMES frames are decoded together."""
        if not stream.state:
            stream.waiting = x if stream.waiting is None else torch.cat([stream.waiting, x], dim=-1)
            if stream.waiting.shape[-1] < MIN_FIRST_FRAMES:
                return x.new_empty(stream.batch, 1, 0)
            x, stream.waiting = stream.waiting, None
        return self._run(x, stream.state)

    def finish(self, stream: StreamState) -> Tensor:
        """Return the samples [B, 1, s] of a clip of fewer than MIN_FIRST_FRAMES frames; otherwise none remain."""
        if stream.waiting is None:
            return torch.empty(stream.batch, 1, 0, device=next(self.buffers()).device)
        return self._run(stream.waiting, stream.state)

    def _run(self, x: Tensor, state: State) -> Tensor:
        return _run([*self.before, self.lstm, *self.after], x.transpose(1, 2), state).transpose(1, 2)


def _run_by_row(layers: Iterable[nn.Module], x: Tensor, valid: list[int], chunk: int) -> Tensor:
    """Run the first valid[b] steps of each row b of x [B, T, C] in chunks; zero-pad the outputs of short rows."""
    rows = []
    for row, n in zip(x.split(1), valid, strict=True):
        state: State = {}
        rows.append(torch.cat([_run(layers, piece, state) for piece in row[:, :n].split(chunk, dim=1)], dim=1))
    longest = max(row.shape[1] for row in rows)
    return torch.cat([F.pad(row, (0, 0, 0, longest - row.shape[1])) for row in rows])


def _reflect_ends(x: Tensor, ends: list[int], stride: int) -> None:
    """Extend each row b of x [B, T, C] in place from step ends[b] to a multiple of the stride by reflection.

    It equals the package, except in rows with fewer steps than are reflected, whose outputs are replaced later.
    """
    fill = [(b, end + i, end - 2 - i) for b, end in enumerate(ends) if end > stride for i in range(-end % stride)]
    if fill:
        rows, to, source = torch.tensor(fill).T.to(x.device)
        x[rows, to] = x[rows, source]


def _run(layers: Iterable[nn.Module], x: Tensor, state: State) -> Tensor:
    for layer in layers:
        x = layer(x, state)
    return x


def _elu(x: Tensor, out: Tensor) -> None:
    if x.is_cuda:
        torch.ops.aten.elu.out(x, out=out)
    else:
        torch.clamp(x, max=0, out=out)
        torch.maximum(out.exp_().sub_(1), x, out=out)  # e^x - 1 >= x for x <= 0; for x > 0 the clamp gave 0 < x


def _convert(package: Iterable[Any]) -> list[Any]:
    """Convert the package's layers to ours, with each activation merged into the layer after it."""
    layers: list[Any] = []
    elu = False
    for layer in package:
        if isinstance(layer, nn.ELU):
            assert layer.alpha == 1
            elu = True
            continue
        if isinstance(layer, package_seanet.SConv1d):
            assert layer.causal and layer.pad_mode == "reflect"
            conv: Any = layer.conv.conv
            layers.append(Conv(_fold_weight_norm(conv), conv.bias, conv.stride[0], conv.dilation[0], elu, reflect=True))
        elif isinstance(layer, package_seanet.SConvTranspose1d):
            assert elu and layer.causal and layer.trim_right_ratio == 1
            conv = layer.convtr.convtr
            layers.append(Upsample(_fold_weight_norm(conv), conv.bias))
        elif isinstance(layer, package_seanet.SEANetResnetBlock):
            assert not elu
            first, second = _convert(layer.block)
            (shortcut,) = _convert([layer.shortcut])
            layers.append(Residual(first, second, shortcut))
        else:
            assert isinstance(layer, package_seanet.SLSTM) and layer.skip and not elu, layer
            layers.append(Lstm(layer.lstm))
        elu = False
    return layers


def _fold_weight_norm(conv: Any) -> Tensor:
    """Return the weight of a weight-normed convolution: v g / |v|, with the norm over all but the first dimension."""
    return torch._weight_norm(conv.weight_v, conv.weight_g, 0).detach()
