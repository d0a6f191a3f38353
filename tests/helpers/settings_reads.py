"""Which settings the code of a command reads: a small data-flow analysis of its source.

Configs enter as parameters called `cfg`. Parts of them are followed through assignments, attributes, arguments of calls
and keyword arguments, by name and across files. What is only copied, such as the whole config that a run folder keeps,
is not read.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
_COPIES = {"to_container", "create", "dict", "cast", "deepcopy", "redact_all"}  # calls that return their argument


def reachable_files(package: Path, file: Path) -> set[Path]:
    """The files of a package that a file imports, directly or not, with the file itself."""
    reached: set[Path] = set()
    todo = [file]
    while todo:
        file = todo.pop()
        if file in reached:
            continue
        reached.add(file)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                path = package.parent / Path(*name.split("."))
                todo += [module for module in (path.with_suffix(".py"), path / "__init__.py") if module.is_file()]
    return {file for file in reached if file.is_relative_to(package)}


class SettingsReads:
    """The settings that some files read.

    Attributes:
        paths: Dotted names of settings that are read.
        unpacked: Dotted names of groups whose settings are all read, as keyword arguments of a library.
    """

    def __init__(self, files: Iterable[Path], settings: Iterable[str]) -> None:
        """settings: the dotted names of all settings that may be read."""
        self.paths: set[str] = set()
        self.unpacked: set[str] = set()
        parts = [name.split(".") for name in settings]
        self._known = {".".join(names[:i]) for names in parts for i in range(len(names) + 1)}
        self._trees = {file: ast.parse(file.read_text()) for file in files}
        self._aliases: dict[tuple[Path | None, str], set[str]] = defaultdict(set)  # (file or None: attribute, name)
        self._strings: dict[tuple[Path, str], set[str]] = defaultdict(set)  # values of variables of loops
        self._functions: dict[str, list[tuple[Path, list[str]]]] = defaultdict(list)
        for file, tree in self._trees.items():
            self._collect(file, tree)
        size = -1
        while size != (size := sum(map(len, self._aliases.values())) + len(self.paths) + len(self.unpacked)):
            for file, tree in self._trees.items():
                for node in ast.walk(tree):
                    self._visit(file, node)

    def is_read(self, setting: str) -> bool:
        """Whether a setting, or a group around it, is read."""
        parents = [setting.rsplit(".", n)[0] for n in range(1, setting.count(".") + 1)]
        return setting in self.paths or any(parent in self.unpacked for parent in parents)

    def _collect(self, file: Path, tree: ast.Module) -> None:
        """Find functions, parameters called `cfg`, and loops over literal strings."""
        constants = {
            node.targets[0].id: strings_of(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        methods = {child for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for child in node.body}
        for node in ast.walk(tree):
            if isinstance(node, Function):
                parameters = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                self._functions[node.name].append((file, parameters[node in methods and parameters[:1] != ["cfg"] :]))
                if "cfg" in parameters:
                    self._aliases[file, "cfg"].add("")
            elif isinstance(node, ast.ClassDef):
                fields = [item.target.id for item in node.body
                          if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]  # fmt: skip
                inits = [item for item in node.body if isinstance(item, Function) and item.name == "__init__"]
                self._functions[node.name].append((file, [a.arg for a in inits[0].args.args[1:]] if inits else fields))
                if not inits:
                    self._functions[f"{node.name}."].append((file, fields))
            elif isinstance(node, ast.For | ast.comprehension) and isinstance(node.target, ast.Name):
                iterated = node.iter
                name = iterated.id if isinstance(iterated, ast.Name) else ""
                self._strings[file, node.target.id] |= strings_of(iterated) or constants.get(name, set())

    def _visit(self, file: Path, node: ast.AST) -> None:
        if isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
            self.paths |= self._resolve(file, node) - {""}
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._assign(file, target, node.value)
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            self._assign(file, node.target, node.value)
        elif isinstance(node, ast.Call):
            self._call(file, node)

    def _assign(self, file: Path, target: ast.expr, value: ast.expr) -> None:
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = [*zip(target.elts, value.elts, strict=False)]
        for one, source in pairs:
            if isinstance(one, ast.Name):
                self._aliases[file, one.id] |= self._resolve(file, source)
            elif isinstance(one, ast.Attribute):
                self._aliases[None, one.attr] |= self._resolve(file, source)

    def _call(self, file: Path, node: ast.Call) -> None:
        name, arguments = name_of(node.func), node.args
        if name == "partial" and arguments:
            name, arguments = name_of(arguments[0]), arguments[1:]
        for keyword in node.keywords:
            if keyword.arg is None:
                self._unpack(name, self._resolve(file, keyword.value) - {""})
        prefixes = {path for argument in arguments for path in self._resolve(file, argument)}
        literals = {text for argument in arguments for text in strings_of(argument)}
        self.paths |= {join(prefix, text) for prefix in prefixes for text in literals} & self._known
        for other, parameters in self._functions[name]:
            pairs = [*zip(parameters, arguments, strict=False)]
            pairs += [(keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg in parameters]
            for parameter, argument in pairs:
                paths = self._resolve(file, argument)
                self._aliases[other, parameter] |= paths
                if (other, parameters) in self._functions[f"{name}."]:  # a field of a dataclass
                    self._aliases[None, parameter] |= paths

    def _unpack(self, name: str, groups: set[str]) -> None:
        """Read the settings of groups that are keyword arguments of a call: those that the function has, if known."""
        parameters = {parameter for _, names in self._functions[name] for parameter in names}
        if parameters:
            self.paths |= {join(group, parameter) for group in groups for parameter in parameters} & self._known
        else:
            self.unpacked |= groups

    def _resolve(self, file: Path, node: ast.AST) -> set[str]:
        """The settings that an expression may be, as dotted names; "" is the whole config."""
        paths: set[str] = set()
        if isinstance(node, ast.Name):
            paths = self._aliases[file, node.id]
        elif isinstance(node, ast.Attribute):
            paths = {join(path, node.attr) for path in self._resolve(file, node.value)} | self._aliases[None, node.attr]
        elif isinstance(node, ast.Subscript):
            names = strings_of(node.slice)
            if isinstance(node.slice, ast.Name):
                names = self._strings[file, node.slice.id]
            paths = {join(path, name) for path in self._resolve(file, node.value) for name in names}
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            if name == "get" and isinstance(node.func, ast.Attribute) and node.args:
                names = strings_of(node.args[0])
                paths = {join(path, text) for path in self._resolve(file, node.func.value) for text in names}
            elif name in _COPIES:
                paths = {path for argument in node.args for path in self._resolve(file, argument)}
        elif isinstance(node, ast.IfExp):
            paths = self._resolve(file, node.body) | self._resolve(file, node.orelse)
        elif isinstance(node, ast.BoolOp):
            paths = {path for value in node.values for path in self._resolve(file, value)}
        elif isinstance(node, ast.DictComp):
            source = node.generators[0].iter
            if isinstance(source, ast.Call) and isinstance(source.func, ast.Attribute) and source.func.attr == "items":
                paths = self._resolve(file, source.func.value)
        elif isinstance(node, ast.Dict):
            merged = [v for k, v in zip(node.keys, node.values, strict=True) if k is None]
            paths = {path for value in merged for path in self._resolve(file, value)}
        return paths & self._known


def join(prefix: str, name: str) -> str:
    """The dotted name of a setting in a group."""
    return f"{prefix}.{name}" if prefix else name


def name_of(function: ast.expr) -> str:
    """The last part of the name of what is called."""
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def strings_of(node: ast.expr) -> set[str]:
    """The text of a literal, or the texts in a literal tuple, list or set."""
    items = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return {item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)}


def setting_names(settings: object, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings that are not groups of others."""
    if not isinstance(settings, dict) or not settings:
        yield prefix
        return
    for name, value in settings.items():
        yield from setting_names(value, join(prefix, str(name)))
