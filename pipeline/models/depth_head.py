"""A small transformer over the codebooks of a frame, which predicts one code after the other.

Sources: Lee et al. 2022 (RQ-Transformer, arXiv:2203.01941); Défossez et al. 2024 (Moshi, arXiv:2410.00037).

    position   0              1                   2                   ...   K-1
    input      h              h + e(code 0)       h + e(code 1)       ...   h + e(code K-2)
    predicts   code 0         code 1              code 2              ...   code K-1

h is the output of the backbone for the frame, projected to the width of this transformer; e are its own embeddings. The
output of this transformer, projected back, is added to that of the backbone, from which linear classifiers predict the
codes: without it they would be those of the parallel pattern. Without this sum a model learns the first code later.

Letters: B rows, K codebooks, N frames, D width of the backbone, W width of this transformer, H heads, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.common.import_guards import hide_broken_packages
from pipeline.models.heads import CodebookHeads, HeadDecoder
from pipeline.models.inference_layers import GELU, InferenceLayers, LinearBuilder
from pipeline.models.patterns.base import HeadSize

with hide_broken_packages("torchaudio", "torchvision"):  # transformers imports both where they are installed
    from transformers import GPT2Config, GPT2Model

_MAX_ROWS = 32_768  # frames that attention reads at once: GPU kernels take at most 65,535
_EXPAND_STD = 0.02  # of the weights of the projection back, so that training starts near the parallel pattern
_EMBEDDING_STD = 0.5  # of the embeddings of codes: that of the projected output of the backbone


class DepthHead(CodebookHeads):
    """The head of a pattern in which all codes of a frame are in one step.

    Args:
        size: the backbone and the codes.
        layers: of the transformer over codebooks.
        width: W.
        heads: H.
    """

    offsets: Tensor

    def __init__(self, size: HeadSize, layers: int, width: int, heads: int) -> None:
        codebooks, classes = size.codebooks, size.classes
        super().__init__(codebooks, size.width, classes)
        self.project, self.expand = nn.Linear(size.width, width), nn.Linear(width, size.width)
        self.codes = nn.Embedding((codebooks - 1) * classes, width)  # the last code is no input
        config = GPT2Config(
            vocab_size=1, bos_token_id=0, eos_token_id=0, n_positions=codebooks, n_embd=width, n_layer=layers,
            n_head=heads, attn_pdrop=size.dropout, resid_pdrop=size.dropout, embd_pdrop=size.dropout,
            activation_function=GELU,
        )  # fmt: skip
        self.transformer = GPT2Model(config)
        self.transformer.register_module("wte", None)
        self.register_buffer("offsets", torch.arange(codebooks - 1)[:, None] * classes, persistent=False)

    def init_weights(self, norm: float) -> None:
        """Initialize the weights, except those that `GPT2Model` initializes."""
        super().init_weights(norm)
        nn.init.normal_(self.project.weight, std=_EMBEDDING_STD / norm)
        nn.init.zeros_(self.project.bias)
        nn.init.normal_(self.expand.weight, std=_EXPAND_STD)
        nn.init.zeros_(self.expand.bias)
        nn.init.normal_(self.codes.weight, std=_EMBEDDING_STD)

    def forward(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Logits [K, N, C] from rows [K, N, D], equal for all codebooks, and tokens [K, N]."""
        frames = self.project(rows[0])  # [N, W]
        codes = F.pad(self.codes(tokens[:-1] + self.offsets), (0, 0, 0, 0, 1, 0))  # [K, N, W], 0 before the first
        inputs = (frames + codes).transpose(0, 1)  # [N, K, W]
        hidden = torch.cat([self._transform(part) for part in inputs.split(_MAX_ROWS)])  # [N, K, W]
        return self.classify(rows + self.expand(hidden).transpose(0, 1))

    def _transform(self, inputs: Tensor) -> Tensor:
        """Inputs [N, K, W] -> output of the transformer [N, K, W]."""
        gpt2 = self.transformer
        x: Tensor = gpt2.drop(inputs + gpt2.wpe(torch.arange(inputs.shape[1], device=inputs.device)))
        for block in gpt2.h:
            x = block(x)
        normalized: Tensor = gpt2.ln_f(x)
        return normalized

    def decoder(self, build: LinearBuilder) -> HeadDecoder:
        """The head for inference."""
        return DepthHeadDecoder(self, build)

    def enable_checkpointing(self) -> None:
        """Store only the inputs of layers."""
        self.transformer.activation_checkpointing_enable()


class DepthHeadDecoder:
    """`DepthHead` for inference: one codebook after the other, with the keys and values of those before it."""

    def __init__(self, head: DepthHead, build: LinearBuilder) -> None:
        self._head, codebooks = head, len(head.weight)
        self.groups = tuple(slice(k, k + 1) for k in range(codebooks))
        self._layers = InferenceLayers(head.transformer, build)
        self._project, self._expand = (build(each.weight.t(), each.bias) for each in (head.project, head.expand))
        self._classifiers = [build(weight.t(), bias) for weight, bias in zip(head.weight, head.bias, strict=True)]

    def __call__(self, hidden: Tensor, choose: Callable[[int, Tensor], Tensor]) -> None:
        """Decode one step; see `HeadDecoder`."""
        frame = self._project(hidden)  # [B, W]
        cache: list[tuple[Tensor, Tensor]] = []  # the keys and values [B, H, k, W / H] of each layer

        def attend(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if i == len(cache):
                cache.append((k, v))
            else:
                cache[i] = torch.cat([cache[i][0], k], 2), torch.cat([cache[i][1], v], 2)
            return F.scaled_dot_product_attention(q, *cache[i])

        positions = self._head.transformer.wpe.weight  # [K, W]
        x = frame + positions[0]
        for k, classify in enumerate(self._classifiers):
            row = hidden + self._expand(self._layers(x[:, None], attend))  # [B, D]
            tokens = choose(k, classify(row)[:, None].float())  # [B, 1]
            if k + 1 < len(self._classifiers):
                x = frame + positions[k + 1] + self._head.codes(tokens[:, 0] + self._head.offsets[k])
