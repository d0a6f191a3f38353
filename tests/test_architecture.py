"""The house keeps its plan: rooms do not know each other, nothing shadows a package, and all of it can be read."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.common.paths import CONF

ROOT = Path(__file__).parents[1]
PIPELINE = ROOT / "pipeline"
LIBRARIES = ("audio", "common", "config", "corpora", "data", "models")  # each imports itself and `common`
LONGEST_FILE = {"pipeline": 400, "tests": 450}  # lines
LONGEST_FUNCTION = 60
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def files(*folders: str) -> list[Path]:
    """The Python files of folders of the repository."""
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def public(file: Path) -> Iterator[tuple[str, Definition]]:
    """Public functions, classes and methods of a file, with dotted names."""

    def walk(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Definition]]:
        for found in node.body:
            if isinstance(found, Definition) and not found.name.startswith("_"):
                yield prefix + found.name, found
                if isinstance(found, ast.ClassDef):
                    yield from walk(found, f"{prefix}{found.name}.")

    yield from walk(ast.parse(file.read_text()), "")


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


@pytest.mark.parametrize("folder", LIBRARIES)
def test_a_library_imports_itself_and_common_only(folder: str) -> None:
    for file in (PIPELINE / folder).rglob("*.py"):
        for name in imported(file):
            part = name.split(".")[1] if "." in name else ""
            assert part in {folder, "common", "__version__", ""}, f"{file.relative_to(PIPELINE.parent)} imports {name}"


def test_no_module_of_ours_bears_the_name_of_the_standard_library() -> None:
    for file in PIPELINE.glob("*.py"):
        assert file.stem == "__init__" or file.stem not in sys.stdlib_module_names, file


@pytest.mark.parametrize("file", files("pipeline", "tests"), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_and_no_function_is_long(file: Path) -> None:
    text = file.read_text()
    assert text.count("\n") <= LONGEST_FILE[file.relative_to(ROOT).parts[0]]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None and node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name


def test_all_that_is_public_says_what_it_is() -> None:
    """A module, a class, a function; a method of a class of ours may leave that to the class it is made after."""
    told: dict[str, set[str]] = {}  # a class -> its methods with a docstring, inherited ones too
    silent = [str(file) for file in files("pipeline") if not ast.get_docstring(ast.parse(file.read_text()))]
    found = [(file, name, node) for file in files("pipeline") for name, node in public(file)]
    for _, name, node in found:
        if isinstance(node, ast.ClassDef):
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            told[name] = set().union(*(told.get(base, set()) for base in bases))
        elif "." in name and ast.get_docstring(node):
            told[name.rpartition(".")[0]].add(node.name)
    for file, name, node in found:
        if not ast.get_docstring(node) and node.name not in told.get(name.rpartition(".")[0], set()):
            silent.append(f"{file.relative_to(ROOT)}:{node.lineno} {name}")
    assert not silent


def test_what_a_function_refuses_stands_in_its_docstring() -> None:
    """Public functions that raise a user's error say so; entry points need not, nor methods made after another."""
    silent = []
    for file in files("pipeline"):
        for name, node in public(file):
            doc = ast.get_docstring(node)
            if isinstance(node, ast.ClassDef) or name == "main" or doc is None:
                continue
            raised = {ast.unparse(call.exc.func) for call in ast.walk(node)
                      if isinstance(call, ast.Raise) and isinstance(call.exc, ast.Call)}  # fmt: skip
            if raised & {"InputError", "AudioError"} and not re.search("[Rr]aise|[Rr]efuse|Error", doc):
                silent.append(f"{file.relative_to(ROOT)}:{node.lineno} {name}")
    assert not silent


def test_no_name_is_defined_for_nobody() -> None:
    """Every function, class, field and constant is used somewhere besides where it is defined."""
    text = {file: file.read_text() for file in files("pipeline", "tests")}
    words = re.findall(r"\w+", "\n".join([*text.values(), *(file.read_text() for file in CONF.rglob("*.yaml"))]))
    uses = Counter(words)
    for file in files("pipeline"):
        tree = ast.parse(text[file])
        names = [target.id for node in tree.body if isinstance(node, ast.Assign) for target in ast.walk(node)
                 if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store)]  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, Definition):
                names.append(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.append(node.target.id)
        nobody_s = [name for name in names if uses[name] == 1 and not name.startswith("__")]
        assert not nobody_s, f"{file.relative_to(ROOT)} defines what nobody uses"


@pytest.mark.slow
def test_the_documents_are_built_without_a_warning(tmp_path: Path) -> None:
    """The command of `make docs`: every module becomes a page, and pdoc has nothing to say."""
    command = re.search(r"^docs: .*\n\t\$\(RUN\) (pdoc .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert command
    words = command[1].replace("--output-directory build/docs", f"--output-directory {tmp_path}").split()
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not re.search(r"(?i)warn|error", done.stdout + done.stderr), done.stderr
    for file in files("pipeline"):
        if file.stem == "__main__":
            continue
        module = file.relative_to(ROOT).with_suffix("")
        page = module.parent if file.stem == "__init__" else module
        assert (tmp_path / page.with_suffix(".html")).is_file(), f"{page} has no page"


@pytest.mark.slow
def test_the_types_are_right(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
