"""What the documents say of the code is true: links, paths, settings, symbols, imports, messages, tables."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import pipeline
from pipeline.config.cli import CONF
from tests.helpers.documents import (
    COMMAND_DOCUMENTS,
    DOCUMENTS,
    ROOT,
    anchors_of,
    blocks_of,
    commands_of,
    links_of,
    prose_of,
    text_of,
)

README, DOCS = ROOT / "README.md", ROOT / "docs"
COMMANDS = sorted(file.stem for file in CONF.glob("*.yaml") if (ROOT / "pipeline" / f"{file.stem}.py").is_file())
_NAMES = [str(document.relative_to(ROOT)) for document in DOCUMENTS]
_SETTING = re.compile(
    r"`((?:audio_samples|codec|data|embedder|limits|model|optim|sampling|tracking|trainer)\.\w+)(?:=[^`]*)?`"
)
_PATH = re.compile(r"`((?:pipeline|conf|jobs|tests|docs)/[\w./-]*)`")


def test_readme_is_short_and_links_every_document() -> None:
    """README has at most 200 lines, and every file of docs/ is linked from it."""
    assert len(text_of(README).splitlines()) <= 200
    assert {f"docs/{file.name}" for file in DOCS.glob("*.md")} <= set(links_of(README))


@pytest.mark.parametrize("document", DOCUMENTS, ids=_NAMES)
def test_links_resolve(document: Path) -> None:
    """A relative link names a file that git tracks, and an anchor names a heading."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for link in links_of(document):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        name = str(target.relative_to(ROOT))
        assert name in tracked or any(file.startswith(f"{name}/") for file in tracked), link
        assert not anchor or anchor in anchors_of(target), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=_NAMES)
def test_paths_exist(document: Path) -> None:
    """Paths in backticks exist, except those with a NAME to replace."""
    for path in _PATH.findall(prose_of(document)):
        assert (ROOT / path).exists() or "NAME" in path, path


@pytest.mark.parametrize("document", COMMAND_DOCUMENTS, ids=lambda document: document.name)
def test_settings_exist(document: Path) -> None:
    """Settings of groups in backticks are settings of some command."""
    known = frozenset().union(*map(_settings_of, COMMANDS))
    known |= {"model.encode", "model.safetensors"}  # no settings, but named like some
    known |= {"sampling.top_n_sigma"}  # of the plug-in in extending.md
    assert not [name for name in _SETTING.findall(prose_of(document)) if name not in known]


def test_changelog_names_settings_that_exist() -> None:
    """Of every renamed setting, each listed command has the new name and none has the old one."""
    table = re.findall(
        r"^\| ([a-z, ]+) \| `([\w.*]+)(?:=\w+)?` \| `([\w.*]+)(?:=\w+)?` \|$", text_of(ROOT / "CHANGELOG.md"), re.M
    )
    assert len(table) > 30
    for commands, old, new in table:
        for command in commands.split(", "):
            known = _settings_of(command)
            assert new.removesuffix(".*") in known, f"{command} has no setting {new}"
            assert old.removesuffix(".*") not in known, f"{command} still has the setting {old}"


def test_symbols_of_the_ten_questions_exist() -> None:
    """Each of the ten questions links a file, which defines the symbols named beside it."""
    table = text_of(DOCS / "architecture.md").partition("## Ten questions")[2]
    lines = [line for line in table.splitlines() if line.startswith("| ") and "](" in line]
    assert len(lines) == 10
    for line in lines:
        link, _, rest = line.partition("](")[2].partition(")")
        source = text_of(DOCS / link)
        for symbol in re.findall(r"`(\w+(?:\.\w+)?)`", rest):
            name = symbol.rpartition(".")[2]
            assert re.search(rf"^\s*(def|class) {name}\b|^{name}\(\)", source, re.MULTILINE), symbol


def test_drawing_shows_the_imports() -> None:
    """The drawing has every import between folders, and no arrow of it runs back up."""
    drawing = next(text for language, text in blocks_of(DOCS / "architecture.md") if language == "mermaid")
    arrows = {
        (source, target.strip())
        for source, targets in re.findall(r"^ +(\w+)\S*(?: .*)? --> (.*)$", drawing, re.MULTILINE)
        for target in targets.split("&")
    }
    imports = {edge for edge in _imports() if edge[1] != "common" and edge[0] != "tools"}
    assert imports <= arrows, f"not in the drawing: {imports - arrows}"
    order = ["commands", "webui", "hub", "evaluation", "training", "preprocessing", "generation", "tracking"]
    height = {name: number for number, name in enumerate(order)}
    assert all(height[source] < height.get(target, len(order)) for source, target in arrows)


def test_quoted_messages_are_in_the_source() -> None:
    """Messages in the troubleshooting table are in the source as quoted; those of other programs are listed here."""
    others = {"No slot '-1' specified on host 'localhost'", "Port 29500 already in use"}
    source = "\n".join(file.read_text() for file in (ROOT / "pipeline").rglob("*.py"))
    cells = re.findall(r"^\| (`[^|]*) \|", text_of(DOCS / "troubleshooting.md"), re.MULTILINE)
    quoted = {text for cell in cells for text in re.findall(r"`([^`]+)`", cell)}
    assert len(quoted - others) > 3
    for message in quoted - others:
        parts = [part for part in re.split(r"'?\.\.\.'?|manifest\.json", message) if len(part) > 3]
        assert parts and all(part.strip(" ();") in source for part in parts), message


def test_benchmark_tables_have_date_and_command() -> None:
    """Every section of the benchmarks starts with a date and names a command."""
    sections = re.split(r"^## .*$", text_of(DOCS / "benchmarks.md"), flags=re.MULTILINE)[1:]
    assert len(sections) > 5
    for section in sections:
        assert re.match(r"\s*20\d\d-\d\d-\d\d", section), section[:80]
        assert re.search(r"`(python -m|make) |^python -m ", section, re.MULTILINE), section[:80]


def test_citation_file_is_of_this_version() -> None:
    """CITATION.cff and CHANGELOG.md name the version of the package, and the article is cited in both places."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == pipeline.__version__
    assert f"## [{pipeline.__version__}]" in text_of(ROOT / "CHANGELOG.md")
    article = citation["references"][0]
    assert article["title"] in text_of(DOCS / "citation.md") and article["url"] in text_of(README)


def test_blocks_have_known_languages() -> None:
    """Code blocks are commands, Python, drawings, BibTeX or plain text."""
    languages = {language for document in DOCUMENTS for language, _ in blocks_of(document)}
    assert languages <= {"", "bash", "python", "py", "yaml", "mermaid", "bibtex"}
    assert len(commands_of(README)) > 15


@functools.cache
def _settings_of(command: str) -> frozenset[str]:
    """The dotted names of a command's settings: its own, and those of every choice of its groups."""
    own = yaml.safe_load((CONF / f"{command}.yaml").read_text())
    names = set(_dotted_names({name: value for name, value in own.items() if name != "defaults"}))
    for group in (next(iter(part)) for part in own["defaults"] if isinstance(part, dict)):
        for file in (CONF / group).glob("*.yaml"):
            names |= {group, *_dotted_names(yaml.safe_load(file.read_text()), f"{group}.")}
    return frozenset(names)


def _dotted_names(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _dotted_names(value, f"{prefix}{name}.")


def _imports() -> set[tuple[str, str]]:
    """(folder, imported folder) of all modules in folders of the package."""
    edges = set()
    folders = {path.name for path in (ROOT / "pipeline").iterdir() if (path / "__init__.py").is_file()}
    for file in (ROOT / "pipeline").glob("*/**/*.py"):
        source = file.relative_to(ROOT / "pipeline").parts[0]
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pipeline":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.startswith("pipeline.")]
            else:
                continue
            edges |= {(source, name.split(".")[1]) for name in names}
    return {(source, target) for source, target in edges if target in folders and source != target}
