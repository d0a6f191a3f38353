"""The tabs of the page. A tab of a plug-in works like these; it imports gradio inside its functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.common.registry import Registry

if TYPE_CHECKING:
    from pipeline.webui.page import Page
    from pipeline.webui.tab_request import TabRequest


class Tab(ABC):
    """A tab: its components, and what its button does. Its name in the registry is that of its button's API.

    Attributes:
        title: The title of the tab.
        order: The position among the tabs, which are sorted by it.
        button: The text of the button.
        has_controls: Whether it generates: then it has controls for sampling and the seed, and a second button that
            generates again with the same seed.
        sounds: The default duration of a generated sound, as a multiple of the training clips' duration.
    """

    title: ClassVar[str]
    order: ClassVar[int]
    button: ClassVar[str]
    has_controls: ClassVar[bool] = True
    sounds: ClassVar[float] = 1

    @abstractmethod
    def inputs(self, page: Page) -> list[Any]:
        """Create the components on the left. Their values are arguments of `run`, in the order of the list."""

    @abstractmethod
    def outputs(self, page: Page) -> list[Any]:
        """Create the components on the right. What `run` yields are their values. Those with an `elem_id` show the
        progress.
        """

    @abstractmethod
    def run(self, request: TabRequest, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Handle a click on the button. Only one click at a time is handled. Yields values of the outputs.

        Raises:
            InputError: The request is refused. The message is shown on the page.
        """

    def missing(self, page: Page) -> str | None:
        """What the tab needs and the page does not have, in Markdown, shown instead of the tab; None if nothing."""
        return None


TABS: Registry[type[Tab]] = Registry("tab", __name__)
