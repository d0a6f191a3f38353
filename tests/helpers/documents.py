"""The Markdown documents of the repository: their commands, code blocks, links and headings."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND_DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
DOCUMENTS = (*COMMAND_DOCUMENTS, ROOT / "CHANGELOG.md", ROOT / "pipeline" / "assets" / "README.md")
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(
    r"`((?:[A-Z_]+=\S+ )*(?:python -m|deepspeed|sbatch(?=[^`]+\.sbatch)|make|pip install|jobs/\S+\.sh) [^`]*)`"
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def text_of(document: Path) -> str:
    """The text of a document."""
    return document.read_text(encoding="utf-8")


def prose_of(document: Path) -> str:
    """The text of a document without its code blocks."""
    return _FENCED.sub("", text_of(document))


def blocks_of(document: Path) -> list[tuple[str, str]]:
    """(language, text) of every code block of a document."""
    return _FENCED.findall(text_of(document))


def commands_of(document: Path) -> list[str]:
    """The commands of a document: lines of bash blocks without comments, and commands in backticks."""
    blocks = "\n".join(text for language, text in blocks_of(document) if language == "bash")
    lines = [re.sub(r"\s+# .*", "", line) for line in re.sub(r"\\\n\s*", " ", blocks).splitlines()]
    lines += [" ".join(command.split()) for command in _INLINE.findall(prose_of(document))]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [part for part in parts if part]


def all_commands() -> list[str]:
    """The commands of all documents, each once."""
    return list(dict.fromkeys(command for document in COMMAND_DOCUMENTS for command in commands_of(document)))


def links_of(document: Path) -> list[str]:
    """The targets of a document's links."""
    return _LINK.findall(prose_of(document))


def anchors_of(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose_of(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
