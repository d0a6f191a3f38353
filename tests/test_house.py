"""The house keeps its plan: rooms do not know each other, and nothing shadows a package."""

import ast
import sys
from pathlib import Path

import pytest

PIPELINE = Path(__file__).parents[1] / "pipeline"
ROOMS = {"corpora", "sound", "cache", "lm"}


def imported(file: Path) -> set[str]:
    """Modules of ours that a file imports, as dotted names."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide which room is meant"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.split(".")[0] == "pipeline"}


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_itself_and_the_error_only(room: str) -> None:
    for file in (PIPELINE / room).rglob("*.py"):
        for name in imported(file):
            part = name.split(".")[1] if "." in name else ""
            assert part in {room, "errors", ""}, f"{file.relative_to(PIPELINE.parent)} imports {name}"


def test_no_module_of_ours_bears_the_name_of_the_standard_library() -> None:
    for file in PIPELINE.glob("*.py"):
        assert file.stem == "__init__" or file.stem not in sys.stdlib_module_names, file
