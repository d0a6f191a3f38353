"""What a codebook pattern defines: the steps of each codebook, and the head that predicts the codes of a step."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, NamedTuple

from pipeline.common.settings import Settings

if TYPE_CHECKING:
    from pipeline.models.heads import Head


class CodebookSteps(NamedTuple):
    """The steps of one codebook: its code of frame t is at step `first + stride * t + passes * length`.

    Attributes:
        first: The step of frame 0, if there are no earlier passes.
        stride: The steps from one frame to the next, at least 1.
        passes: The number of passes over the clip that come before this codebook; a pass is `length` steps long, the
            number of frames of the clip.
    """

    first: int = 0
    stride: int = 1
    passes: int = 0


class HeadSize(NamedTuple):
    """What a head has to fit.

    Attributes:
        codebooks: K.
        width: The width of the backbone.
        classes: The number of classes of a codebook.
        dropout: The probability in training.
    """

    codebooks: int
    width: int
    classes: int
    dropout: float = 0.0


class HeadCost(NamedTuple):
    """The size of a head, and what it computes for a frame.

    Attributes:
        parameters: The number of parameters.
        largest_module: The number of parameters of its largest module.
        products: The number of weights by which numbers of a frame are multiplied.
        layers: The layers of a transformer over the K codes of each frame; 0: there is none.
        width: The width of these layers.
    """

    parameters: int
    largest_module: int
    products: int
    layers: int = 0
    width: int = 0


class PatternSettings(Settings):
    """A pattern. Its steps are evenly spaced, so that a codebook's rows of a batch are a slice of all steps."""

    name: str

    @abstractmethod
    def codebook_steps(self, k: int, codebooks: int) -> CodebookSteps:
        """The steps of codebook k, of this many codebooks."""

    def steps_before_slide(self, frames: int, num_steps: int) -> int:
        """The number of steps of a full window that are generated before the window slides.

        Args:
            frames: The frames of the window.
            num_steps: The steps of the window.
        """
        return num_steps

    def options(self) -> dict[str, object]:
        """The settings besides the name, which a model's config records."""
        return {name: value for name, value in self.to_dict().items() if name != "name"}

    def build_head(self, size: HeadSize) -> Head:
        """The head that predicts the codes of a step; by default a linear classifier for each codebook."""
        from pipeline.models.heads import CodebookHeads

        return CodebookHeads(size.codebooks, size.width, size.classes)

    def head_cost(self, size: HeadSize) -> HeadCost:
        """The cost of `build_head`."""
        weights = size.codebooks * size.classes * size.width
        parameters = weights + size.codebooks * size.classes
        return HeadCost(parameters, largest_module=parameters, products=weights)
