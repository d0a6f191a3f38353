"""EnCodec's SEANet encoder and decoder (Défossez et al. 2022), the same function written to run fast and to stream.

Against the `encodec` package's modules, whose weights it takes:
- layout [B, T, C], in which a convolution over time reads its window in one stretch: half the time on a CPU;
- weight norm folded; ELU as max(exp(min(x, 0)) - 1, x), because PyTorch's own takes 46 % of the package's time;
- every layer is causal, and what it needs of the past is explicit: `state` maps a layer to it. So a sound in chunks
  gives the same as the whole, and on a CPU the layers run row by row in chunks that stay in its cache;
- the LSTM, whose weights are read anew at each step, runs on all rows at once.

A sound that does not fill its last frame is reflected at its own end before each strided layer, as in the package and
in transformers, also where it shares a batch with longer ones.

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

from pipeline.audio.codecs.encodec_package import seanet as theirs

State = dict[nn.Module, Any]

CPU_CHUNK = 150  # frames at a time on a CPU: of 12 to 200 the fastest
MIN_FIRST_FRAMES = 7  # frames that the first chunk must have: a kernel of 7 reflects 6 samples at the start


class Conv(nn.Module):
    """A causal convolution [B, T, C] -> [B, T / stride, C'], after an ELU if `elu`. weight: [C', C, k].

    The past of the first chunk is its own start, reflected, or zeros where `reflect` is off.
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
        """x: [B, T, C]; T is a multiple of the stride, except at the end of a sound, which is then reflected."""
        batch, steps, width = x.shape
        if self.elu or self.past:
            padded = x.new_empty(batch, self.past + steps, width)
            now = padded[:, self.past :]
            if self.elu:
                _elu(x, out=now)
            else:
                now.copy_(x)
            if self.past:
                begins = self not in state
                padded[:, : self.past] = self._first_context(now) if begins else state[self]
                state[self] = padded[:, steps:].clone()
                if steps % self.stride:
                    padded = self._reflect_end(padded, begins)
            x = padded
        x = x.transpose(1, 2).unsqueeze(2)  # [B, C, 1, T], channels last in memory
        y = F.conv2d(x, self.weight, self.bias, (1, self.stride), dilation=(1, self.dilation))
        return y.squeeze(2).transpose(1, 2)  # [B, T / stride, C']

    def _first_context(self, x: Tensor) -> Tensor:
        if not self.reflect:
            return x.new_zeros(len(x), self.past, x.shape[2])
        if x.shape[1] <= self.past:  # too short to reflect: zeros follow it, as in the package
            x = F.pad(x, (0, 0, 0, self.past + 1 - x.shape[1]))
        return x[:, 1 : self.past + 1].flip(1)

    def _reflect_end(self, padded: Tensor, begins: bool) -> Tensor:
        """[B, past + T, C] -> up to a multiple of the stride, the end reflected as the package does it."""
        steps = padded.shape[1] - self.past
        extra = -steps % self.stride
        if begins and steps <= self.past:  # the zeros that the start was reflected from stand here too
            return F.pad(padded, (0, 0, 0, extra))
        return torch.cat([padded, padded[:, -1 - extra : -1].flip(1)], dim=1)


class Upsample(nn.Module):
    """A transposed convolution of stride r after an ELU: [B, T, C] -> [B, r T, C']. weight: [C, C', 2 r].

    Output r n + j takes x[n] with the kernel's first half and x[n - 1] with its second: a convolution of kernel 2
    with r C' channels.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.ratio = weight.shape[2] // 2
        now, before = weight.split(self.ratio, dim=2)  # each [C, C', r]
        kernel = torch.stack([before, now]).permute(3, 2, 1, 0).flatten(0, 1)  # [r C', C, 2]
        self.conv = Conv(kernel, bias.repeat(self.ratio), 1, 1, elu=True, reflect=False)

    def forward(self, x: Tensor, state: State) -> Tensor:
        """x: [B, T, C]."""
        batch, steps, _ = x.shape
        return self.conv(x, state).reshape(batch, steps * self.ratio, -1)


class Residual(nn.Module):
    """Two convolutions beside a third of kernel 1: [B, T, C] -> [B, T, C]."""

    def __init__(self, first: nn.Module, second: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.shortcut = first, second, shortcut

    def forward(self, x: Tensor, state: State) -> Tensor:
        """x: [B, T, C]."""
        return self.shortcut(x, state).add_(self.second(self.first(x, state), state))


class Lstm(nn.Module):
    """An LSTM beside the identity: [B, T, C] -> [B, T, C]."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor, state: State) -> Tensor:
        """x: [B, T, C]."""
        y, state[self] = self.lstm(x.transpose(0, 1), state.get(self))
        return y.transpose(0, 1) + x


@dataclass
class StreamState:
    """`batch` sounds in progress. state: what each layer knows of the past; waiting: their beginning, if it waits."""

    batch: int
    state: State = field(default_factory=dict)
    waiting: Tensor | None = None


class Seanet(nn.Module):
    """A SEANet encoder or decoder: [B, C, T] -> [B, C', T'], whole or, for a decoder, in chunks.

    hop: steps that enter an encoder for each that leaves it; 1 of a decoder.
    """

    def __init__(self, package: theirs.SEANetEncoder | theirs.SEANetDecoder) -> None:
        super().__init__()
        layers = _convert(package.model)
        at = next(i for i, layer in enumerate(layers) if isinstance(layer, Lstm))
        self.lstm: Lstm = layers[at]
        self.before, self.after = nn.ModuleList(layers[:at]), nn.ModuleList(layers[at + 1 :])
        self.hop_length = int(package.hop_length) if isinstance(package, theirs.SEANetEncoder) else 1

    def forward(self, x: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """x: [B, C, T], from its beginning to its end.

        lengths: steps of each row that belong to it (None: all). Its first ceil(lengths[b] / hop) outputs are those of
        the row alone; what the others are depends on what follows it, which must be finite.
        """
        x = x.transpose(1, 2)
        own = [x.shape[1]] * len(x) if lengths is None else list(lengths)
        x = x[:, : max(own)]
        return (self._forward_batch(x, own) if x.is_cuda else self._forward_row_by_row(x, own)).transpose(1, 2)

    def _forward_row_by_row(self, x: Tensor, own: list[int]) -> Tensor:
        x = _run_by_row(self.before, x, own, CPU_CHUNK * self.hop_length)
        return _run_by_row(self.after, self.lstm(x, {}), [self._num_outputs(n) for n in own], CPU_CHUNK)

    def _forward_batch(self, x: Tensor, own: list[int]) -> Tensor:
        layers = [*self.before, self.lstm, *self.after]
        if len(set(own)) == 1:
            return _run(layers, x, {})
        y, state, ends = F.pad(x, (0, 0, 0, -x.shape[1] % self.hop_length)), State(), own
        for layer in layers:
            if isinstance(layer, Conv) and layer.stride > 1:
                _reflect_ends(y, ends, layer.stride)
                ends = [math.ceil(end / layer.stride) for end in ends]
            y = layer(y, state)
        for b, n in enumerate(own):
            if self._num_outputs(n) < MIN_FIRST_FRAMES:  # its start was reflected from steps that are not its own
                y[b : b + 1, : self._num_outputs(n)] = _run(layers, x[b : b + 1, :n], {})
        return y

    def _num_outputs(self, steps: int) -> int:
        return math.ceil(steps / self.hop_length)

    def start(self, batch: int) -> StreamState:
        """The beginning of `batch` sounds."""
        return StreamState(batch)

    def step(self, x: Tensor, stream: StreamState) -> Tensor:
        """The next frames [B, C, t] -> samples [B, 1, 320 t]: none until REFLECTED frames are there, then all."""
        if not stream.state:
            stream.waiting = x if stream.waiting is None else torch.cat([stream.waiting, x], dim=-1)
            if stream.waiting.shape[-1] < MIN_FIRST_FRAMES:
                return x.new_empty(stream.batch, 1, 0)
            x, stream.waiting = stream.waiting, None
        return self._run(x, stream.state)

    def finish(self, stream: StreamState) -> Tensor:
        """The samples [B, 1, s] of a sound shorter than REFLECTED frames; else none."""
        if stream.waiting is None:
            return torch.empty(stream.batch, 1, 0, device=next(self.buffers()).device)
        return self._run(stream.waiting, stream.state)

    def _run(self, x: Tensor, state: State) -> Tensor:
        return _run([*self.before, self.lstm, *self.after], x.transpose(1, 2), state).transpose(1, 2)


def _run_by_row(layers: Iterable[nn.Module], x: Tensor, own: list[int], chunk: int) -> Tensor:
    """The first own[b] steps of each row b of x [B, T, C], in chunks; zeros follow the shorter rows' outputs."""
    rows = []
    for row, n in zip(x.split(1), own, strict=True):
        state: State = {}
        rows.append(torch.cat([_run(layers, piece, state) for piece in row[:, :n].split(chunk, dim=1)], dim=1))
    longest = max(row.shape[1] for row in rows)
    return torch.cat([F.pad(row, (0, 0, 0, longest - row.shape[1])) for row in rows])


def _reflect_ends(x: Tensor, ends: list[int], stride: int) -> None:
    """Fill up each row b of x [B, T, C] from step ends[b] to a multiple of the stride with what is before, reflected.

    As in the package, but for rows of fewer steps than are reflected: their values are of no use.
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
        torch.maximum(out.exp_().sub_(1), x, out=out)  # e^x - 1 >= x, and 0 < x where the clamp was at work


def _convert(package: Iterable[Any]) -> list[Any]:
    """The package's layers as ours, each activation joined to the layer that it precedes."""
    layers: list[Any] = []
    elu = False
    for layer in package:
        if isinstance(layer, nn.ELU):
            assert layer.alpha == 1
            elu = True
            continue
        if isinstance(layer, theirs.SConv1d):
            assert layer.causal and layer.pad_mode == "reflect"
            conv: Any = layer.conv.conv
            layers.append(Conv(_fold_weight_norm(conv), conv.bias, conv.stride[0], conv.dilation[0], elu, reflect=True))
        elif isinstance(layer, theirs.SConvTranspose1d):
            assert elu and layer.causal and layer.trim_right_ratio == 1
            conv = layer.convtr.convtr
            layers.append(Upsample(_fold_weight_norm(conv), conv.bias))
        elif isinstance(layer, theirs.SEANetResnetBlock):
            assert not elu
            first, second = _convert(layer.block)
            (shortcut,) = _convert([layer.shortcut])
            layers.append(Residual(first, second, shortcut))
        else:
            assert isinstance(layer, theirs.SLSTM) and layer.skip and not elu, layer
            layers.append(Lstm(layer.lstm))
        elu = False
    return layers


def _fold_weight_norm(conv: Any) -> Tensor:
    """The weight that weight norm stands for: v g / |v| over all but the first dimension."""
    return torch._weight_norm(conv.weight_v, conv.weight_g, 0).detach()
