"""The plan of the code: which folder imports which, sizes of files and functions, names, dead code, docstrings."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from pipeline.audio.codecs import CODECS
from pipeline.audio.embedders import EMBEDDERS
from pipeline.common.registry import Registry
from pipeline.corpora import CORPORA
from pipeline.models.patterns import PATTERNS

ROOT = Path(__file__).parents[1]
PIPELINE = ROOT / "pipeline"
LONGEST_COMMAND = 60  # lines without the docstring
LONGEST_FILE = {"pipeline": 400, "tests": 450}  # lines
LONGEST_FUNCTION = 60
LONGEST_TEST_NAME = 60
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# Which folders a folder may import besides itself and `common`. A file at the root is a command, and may import all.
MAY_IMPORT = {
    "common": set(),
    # five libraries that do not know each other
    "config": set(),
    "corpora": set(),
    "audio": set(),
    "data": set(),
    "models": set(),
    "preprocessing": {"corpora", "audio", "data"},
    "generation": {"models", "audio"},
    "tracking": {"audio", "data"},  # spectrograms of logged audio; the manifest describes a logged dataset
    "training": {"models", "data", "tracking", "generation", "audio"},  # audio: decodes the samples after a validation
    "evaluation": {"generation", "models", "audio", "data"},
    "webui": {"generation", "evaluation", "audio", "data"},  # audio: uploads, spectrograms; data: example prompts
    "hub": {
        "generation",
        "evaluation",
        "models",
        "data",
        "corpora",
        "audio",
    },  # the card describes them
    "tools": {"config", "audio", "corpora", "data", "models", "training"},  # programs of the maintainers
}

# Names that vulture takes for unused although a library reads or sets them.
USED_BY_LIBRARIES = {
    "__getattr__", "__dir__",  # Python: lazy attributes of the package
    "readable", "seekable", "readinto",  # io.RawIOBase
    "checkpoint_engine", "check_overflow", "partition_gradients", "norm_type", "scaled_global_norm",  # DeepSpeed
    "unscale_and_clip_grads",
    "closure",  # torch.optim.Optimizer.step
    "healthz", "live", "state_session_capacity", "has_launched",  # FastAPI and Gradio
    "ratios",  # of EnCodec's SEANet
}  # fmt: skip
UNUSED = {  # code that only tests use, and that is still there; to be empty
    "save_pretrained",
}  # fmt: skip

COMMON_WORDS = {"folder", "notes", "huggingface"}  # names of extensions that code also uses for other things

BANNED = {  # too vague to name anything
    "afar", "aside", "asked", "begun", "found", "given", "heard", "held", "laid", "lies", "made", "mended", "place",
    "places", "spared", "stand", "stands", "take", "takes", "tell", "tells", "told", "torn", "wanted", "word", "words",
}  # fmt: skip


def files(*folders: str) -> list[Path]:
    """The Python files in folders of the repository."""
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def public(file: Path) -> Iterator[tuple[str, Definition]]:
    """Public functions, classes and methods of a file, with dotted names."""

    def walk(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Definition]]:
        for child in node.body:
            if isinstance(child, Definition) and not child.name.startswith("_"):
                yield prefix + child.name, child
                if isinstance(child, ast.ClassDef):
                    yield from walk(child, f"{prefix}{child.name}.")

    yield from walk(ast.parse(file.read_text()), "")


def imported(file: Path) -> set[str]:
    """The folders of `pipeline` that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide which folder is meant"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    folders = {name.split(".")[1] for name in names if name.startswith("pipeline.")}
    return {folder for folder in folders if (PIPELINE / folder).is_dir() or (PIPELINE / f"{folder}.py").is_file()}


def test_folders_import_what_the_table_allows() -> None:
    folders = {folder.name for folder in PIPELINE.iterdir() if (folder / "__init__.py").is_file()}
    assert folders == set(MAY_IMPORT)
    forbidden = {
        (folder, name): str(file.relative_to(ROOT))
        for folder in folders
        for file in (PIPELINE / folder).rglob("*.py")
        for name in imported(file) - MAY_IMPORT[folder] - {folder, "common"}
    }
    assert not forbidden


def test_imports_have_no_circle() -> None:
    assert len([*TopologicalSorter(MAY_IMPORT).static_order()]) == len(MAY_IMPORT)


def test_nothing_shadows_a_module_that_train_imports_first() -> None:
    """`deepspeed pipeline/train.py` puts pipeline/ first on sys.path until the file removes it.

    Until then only the standard library is imported, and no file or folder in pipeline/ has the name of such a module.
    """
    names = {path.stem for path in PIPELINE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not names & sys.stdlib_module_names
    body = ast.parse((PIPELINE / "train.py").read_text()).body
    fixed = next(i for i, node in enumerate(body) if isinstance(node, ast.If) and "sys.path" in ast.unparse(node))
    early = [node for node in body[:fixed] if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.name for node in early if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in early if isinstance(node, ast.ImportFrom)}
    assert modules and {module.split(".")[0] for module in modules} <= sys.stdlib_module_names


@pytest.mark.parametrize("file", files("pipeline", "tests"), ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_are_short(file: Path) -> None:
    text = file.read_text()
    assert text.count("\n") <= LONGEST_FILE[file.relative_to(ROOT).parts[0]]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None and node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name


@pytest.mark.parametrize("file", sorted(PIPELINE.glob("*.py")), ids=lambda file: file.name)
def test_commands_are_short(file: Path) -> None:
    text = file.read_text()
    docstring = ast.parse(text).body[0]
    assert text.count("\n") - (docstring.end_lineno or 0) <= LONGEST_COMMAND


def test_everything_public_has_a_docstring() -> None:
    """Modules, classes, functions and methods; a method may inherit that of its base class."""
    missing = [str(file) for file in files("pipeline") if not ast.get_docstring(ast.parse(file.read_text()))]
    definitions = [(file, name, node) for file in files("pipeline") for name, node in public(file)]
    documented: dict[str, set[str]] = {}  # the methods of a class that have a docstring, inherited ones too
    inherits_from_libraries: set[str] = set()
    for _, name, node in definitions:
        if isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base) for base in node.bases]
            documented[name] = set().union(*(documented.get(base, set()) for base in bases))
            if any(base not in documented and base not in ("Protocol", "NamedTuple") for base in bases):
                inherits_from_libraries.add(name)
        elif "." in name and ast.get_docstring(node):
            documented[name.rpartition(".")[0]].add(node.name)
    for file, name, node in definitions:
        owner = name.rpartition(".")[0]
        is_inherited = node.name in documented.get(owner, set()) or owner in inherits_from_libraries
        if not ast.get_docstring(node) and not is_inherited:
            missing.append(f"{file.relative_to(ROOT)}:{node.lineno} {name}")
    assert not missing


def test_no_code_is_unused() -> None:
    """What vulture finds in pipeline/, where tests do not count as a use."""
    command = [
        sys.executable,
        "-m",
        "vulture",
        "pipeline",
        "--min-confidence",
        "60",
        "--ignore-decorators",
        "@*.register,@*_validator",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    unused = re.findall(r"^(\S+): unused [\w ]+ '(\w+)'", done.stdout, re.MULTILINE)
    assert {name for _, name in unused} - USED_BY_LIBRARIES <= UNUSED, unused


def test_settings_have_no_untyped_values() -> None:
    """No field and no signature of a class of settings has `Any`."""
    classes = [node for file in files("pipeline") for _, node in public(file) if isinstance(node, ast.ClassDef)]
    names, count = {"Settings"}, 0
    while count < len(names):
        count = len(names)
        names |= {node.name for node in classes if names & {ast.unparse(base) for base in node.bases}}
    untyped = []
    for node in (node for node in classes if node.name in names):
        for part in node.body:
            function = part if isinstance(part, ast.FunctionDef) else None
            arguments = [*function.args.args, *function.args.kwonlyargs] if function else []
            typed = [part.annotation] if isinstance(part, ast.AnnAssign) else [a.annotation for a in arguments]
            typed += [function.returns] if function else []
            untyped += [node.name for item in typed if item and re.search(r"\bAny\b", ast.unparse(item))]
    assert len(names) > 30 and not untyped


def identifiers(file: Path) -> Iterator[tuple[int, str]]:
    """The names that a file defines, without underscores around them, and their lines."""
    for node in ast.walk(ast.parse(file.read_text())):
        name = None
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, Definition):
            name = node.name
        if name:
            yield node.lineno, name.strip("_")


def test_no_identifier_is_too_vague() -> None:
    banned = [
        f"{file.relative_to(ROOT)}:{line} {name}"
        for file in files("pipeline", "tests")
        for line, name in identifiers(file)
        if name in BANNED
    ]
    assert not banned, banned


def test_names_of_tests_are_short() -> None:
    long = [
        f"{file.relative_to(ROOT)} {name}"
        for file in files("tests")
        for _, name in identifiers(file)
        if name.startswith("test_") and len(name) >= LONGEST_TEST_NAME
    ]
    assert not long, long


@pytest.mark.slow
def test_the_documentation_builds_without_warnings(tmp_path: Path) -> None:
    """The command of `make docs`: every module has a page."""
    command = re.search(r"^docs: .*\n\t\$\(RUN\) (pdoc .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert command
    arguments = command[1].replace("--output-directory build/docs", f"--output-directory {tmp_path}").split()
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not re.search(r"(?i)warn|error", done.stdout + done.stderr), done.stderr
    for file in files("pipeline"):
        if file.stem == "__main__":
            continue
        module = file.relative_to(ROOT).with_suffix("")
        page = module.parent if file.stem == "__init__" else module
        assert (tmp_path / page.with_suffix(".html")).is_file(), f"{page} has no page"


@pytest.mark.slow
def test_types_are_correct(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


def strings(file: Path) -> Iterator[tuple[int, str]]:
    """The string constants of a file and their lines, without docstrings."""
    tree = ast.parse(file.read_text())
    documented = [node for node in ast.walk(tree) if isinstance(node, ast.Module | Definition)]
    docstrings = {id(node.body[0].value) for node in documented if node.body and isinstance(node.body[0], ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


@pytest.mark.parametrize("registry", [CORPORA, CODECS, EMBEDDERS, PATTERNS], ids=lambda registry: registry.kind)
def test_an_extension_is_named_in_its_own_file_only(registry: Registry[type]) -> None:
    """Nothing else in the code compares its name, so that a new one is one file."""
    own = {name: Path(inspect.getfile(entry)) for name, entry in registry.items() if name not in COMMON_WORDS}
    name = re.compile(rf"(?<![\w-])({'|'.join(own)})(?![\w-])")
    others = [
        f"{file.relative_to(ROOT)}:{line} {match[1]}"
        for file in files("pipeline")
        if PIPELINE / "tools" not in file.parents
        for line, text in strings(file)
        for match in name.finditer(text)
        if file != own[match[1]]
    ]
    assert not others, others
