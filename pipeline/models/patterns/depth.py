"""All codes of a frame in one step, one after the other. Source: Lee et al. 2022 (RQ-Transformer, arXiv:2203.01941)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import model_validator

from pipeline.common.errors import InputError
from pipeline.common.setting_types import PositiveInt
from pipeline.models.patterns import PATTERNS
from pipeline.models.patterns.base import CodebookSteps, HeadCost, HeadSize, PatternSettings

if TYPE_CHECKING:
    from pipeline.models.heads import Head


@PATTERNS.register("depth")
class Depth(PatternSettings):
    """Code k of frame t is at step t, as in the parallel pattern: T steps. A second transformer predicts the codes.

    0: 0 1 2 3
    1: 0 1 2 3
    2: 0 1 2 3

    Attributes:
        layers: Those of the transformer over the codes of a frame.
        width: Its width.
        heads: Its number of attention heads.
    """

    layers: PositiveInt
    width: PositiveInt
    heads: PositiveInt

    @model_validator(mode="after")
    def _check_heads(self) -> Depth:
        if self.width % self.heads:
            raise InputError(f"pattern.width={self.width} is not a multiple of pattern.heads={self.heads}")
        return self

    def codebook_steps(self, k: int, codebooks: int) -> CodebookSteps:
        """The steps of codebook k."""
        return CodebookSteps()

    def build_head(self, size: HeadSize) -> Head:
        """The transformer over the codes of a frame."""
        from pipeline.models.depth_head import DepthHead

        return DepthHead(size, self.layers, self.width, self.heads)

    def head_cost(self, size: HeadSize) -> HeadCost:
        """The cost of `build_head`."""
        K, D, C, W = size.codebooks, size.width, size.classes, self.width
        project, classifiers = D * W, K * C * D
        codes, layer = (K - 1) * C * W, 12 * W * W
        transformer = K * W + self.layers * (layer + 13 * W) + 2 * W
        parameters = 2 * project + W + D + codes + transformer + classifiers + K * C
        largest = max(project + W, project + D, codes, K * W, 4 * W * W + 4 * W, classifiers + K * C)
        products = project + K * (self.layers * layer + project) + classifiers
        return HeadCost(parameters, largest, products, self.layers, W)
