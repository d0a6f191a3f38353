"""Weights in 8 bits: int8 codes, and a bf16 scale for each output of a matrix. A weight is its code times its scale.

A file with quantized weights has, beside each tensor `NAME` of codes, its scales `NAME_scale`, which broadcast to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

SUFFIX = "_scale"
_LARGEST = 127
_MULTIPLE = 32  # PyTorch's kernel reads past the end of rows of other lengths (seen with 264 inputs and 5 rows)
_OUTPUTS_LAST = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")  # GPT-2 stores these as [in, out]


def quantize(weight: Tensor, inputs: int = -1) -> tuple[Tensor, Tensor]:
    """Round weights to 8 bits, so that the largest of each output keeps its value up to the scale's rounding.

    Quantizing the product of codes and scales gives the same codes and scales.

    Args:
        weight: [..., in], or with the inputs at the dimension `inputs`.
        inputs: The dimension that a product sums over.

    Returns:
        Codes, int8, and scales, bf16, with size 1 at the dimension of the inputs.
    """
    scales = (weight.float().abs().amax(inputs, keepdim=True) / _LARGEST).bfloat16()
    codes = (weight / scales.float().clamp_min(torch.finfo(torch.float32).tiny)).round()
    return codes.clamp(-_LARGEST, _LARGEST).to(torch.int8), scales


def quantize_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Quantize the matrices among named weights; biases, norms and vectors stay as they are."""
    quantized: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(".weight") and value.ndim >= 2:
            inputs = 0 if _OUTPUTS_LAST.search(name) else -1
            quantized[name], quantized[name + SUFFIX] = quantize(value, inputs)
        else:
            quantized[name] = value
    return quantized


def is_quantized(names: Iterable[str]) -> bool:
    """Whether weights with these names are those of `quantize_state`."""
    return any(name.endswith(SUFFIX) for name in names)


def dequantize_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `quantize_state` in fp32; others as they are."""
    return {
        name: value.float() * state[name + SUFFIX].float() if name + SUFFIX in state else value
        for name, value in state.items()
        if not name.endswith(SUFFIX)
    }


class Int8Linear:
    """A linear layer on a CPU with weights of 8 bits: x [M, in] -> x @ weight + bias [M, out].

    Inputs and products are rounded to bf16. A row gets the same bits alone, in a batch, and with any number of threads.
    It is faster than fp32 for few rows, whose time is that of reading the weights.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Quantize a weight [in, out]."""
        codes, scales = quantize(weight.t().contiguous())
        self._padding = -codes.shape[1] % _MULTIPLE
        self._codes, self._scales, self._bias = F.pad(codes, (0, self._padding)), scales.flatten(), bias

    def __call__(self, x: Tensor) -> Tensor:
        """The product and the bias, in fp32."""
        if self._padding:
            x = F.pad(x, (0, self._padding))
        return torch._weight_int8pack_mm(x.bfloat16(), self._codes, self._scales) + self._bias
