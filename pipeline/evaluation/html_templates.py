"""HTML from Jinja2 templates, which escape every value and redact secrets in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.common.errors import redact

FOLDER = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> Markup:
    """Render a template of `FOLDER`. Only values of type `Markup` are inserted as HTML."""
    return Markup(_ENVIRONMENT.get_template(template).render(values))


def macros(template: str) -> Any:
    """The macros of a template, as functions that return HTML."""
    return _ENVIRONMENT.get_template(template).module


def _redact_text(value: Any) -> Any:
    return redact(value) if type(value) is str else value


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    finalize=_redact_text,
)  # fmt: skip
