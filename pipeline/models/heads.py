"""Heads: from the output of the backbone to the logits of codes. A pattern chooses its head.

Letters: B clips or rows, K codebooks, N codes of each codebook, D width, C classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.inference_layers import LinearBuilder


class HeadDecoder(Protocol):
    """A head for inference.

    Attributes:
        groups: The codebooks whose codes are sampled together; the codes of a group depend on those of groups before.
    """

    @property
    def groups(self) -> Sequence[slice]:
        """The groups, in the order in which they are sampled."""

    def __call__(self, hidden: Tensor, choose: Callable[[int, Tensor], Tensor]) -> None:
        """Decode one step.

        Args:
            hidden: The output of the backbone [B, D] from which the step is predicted.
            choose: Gets the index of a group and its logits [B, n, C] in float32; returns its tokens [B, n].
        """


class Head(nn.Module):
    """Predicts the codes of each step from the output of the backbone."""

    @abstractmethod
    def init_weights(self, norm: float) -> None:
        """Initialize the weights. norm: that of a row of the backbone's output."""

    @abstractmethod
    def forward(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Logits, while all tokens are known.

        Args:
            rows: The output of the backbone [K, N, D] from which each code is predicted.
            tokens: The codes themselves [K, N]; the logits of a code may depend on those of codebooks before it.

        Returns:
            [K, N, C].
        """

    @abstractmethod
    def decoder(self, build: LinearBuilder) -> HeadDecoder:
        """The head for inference. build: builds its linear layers."""

    def enable_checkpointing(self) -> None:
        """Store less during the forward pass, and compute it again in the backward pass."""


class CodebookHeads(Head):
    """One linear classifier per codebook: the codes of a step do not depend on each other."""

    def __init__(self, codebooks: int, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(codebooks, classes, width))  # [K, C, D]
        self.bias = nn.Parameter(torch.zeros(codebooks, classes))  # [K, C]

    def init_weights(self, norm: float) -> None:
        """Initialize the weights. norm: that of a row of the backbone's output."""
        # logits with deviation 0.4: the loss starts at ln C + 0.08; with smaller ones the model learns to repeat a code
        # much later
        nn.init.normal_(self.weight, std=0.4 / norm)

    def forward(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Rows [K, N, D] -> logits [K, N, C]; see `classify`."""
        return self.classify(rows)

    def classify(self, rows: Tensor) -> Tensor:
        """Rows [K, N, D] -> logits [K, N, C]: the rows of codebook k are multiplied by the k-th matrix only."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        classes = weight.shape[1]
        if rows.is_cuda:  # pad the classes to a multiple of 64, as the matrix units of a GPU require
            padding = -classes % 64
            weight, bias = F.pad(weight, (0, 0, 0, padding)), F.pad(bias, (0, padding))
        return torch.baddbmm(bias[:, None], rows, weight.transpose(1, 2))[..., :classes]

    def decoder(self, build: LinearBuilder) -> HeadDecoder:
        """The head for inference."""
        return CodebookHeadsDecoder(self, build)


class CodebookHeadsDecoder:
    """`CodebookHeads` for inference: one product for all codebooks."""

    def __init__(self, head: CodebookHeads, build: LinearBuilder) -> None:
        self.codebooks = len(head.weight)
        self.groups = (slice(0, self.codebooks),)
        self._linear = build(head.weight.flatten(0, 1).t(), head.bias.flatten())

    def __call__(self, hidden: Tensor, choose: Callable[[int, Tensor], Tensor]) -> None:
        """Decode one step; see `HeadDecoder`."""
        choose(0, self._linear(hidden).view(len(hidden), self.codebooks, -1).float())
