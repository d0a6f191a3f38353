"""Registries: the extensions of one kind by their names, and the plug-ins that add to them.

    CODECS = Registry[type[CodecSettings]]("codec", __name__)      in the package of the kind

    @CODECS.register("my_codec")                                   in a file of that package, or of a plug-in
    class MyCodec(CodecSettings): ...

A plug-in is a module that registers extensions when it is imported. An installed one is named by an entry point of the
group `codec_audio_lm.plugins`; others by `plugins=[MODULE]` on the command line. Data never names code.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from pipeline.common.errors import InputError
from pipeline.common.messages import unknown_choice

ENTRY_POINTS = "codec_audio_lm.plugins"
PLUGINS = (
    "CODEC_AUDIO_LM_PLUGINS"  # environment variable with the modules of plugins=, so that child processes have them
)
_T = TypeVar("_T")
_Entry = TypeVar("_Entry")


class Registry(Generic[_T]):
    """The extensions of one kind."""

    def __init__(self, kind: str, package: str) -> None:
        """Create a registry.

        Args:
            kind: What the entries are, for messages: "codec".
            package: The name of the package whose modules register the built-in entries; all are imported at the first
                lookup, so they import slow libraries inside functions.
        """
        self.kind = kind
        self._package = package
        self._entries: dict[str, _T] = {}

    def register(self, name: str) -> Callable[[_Entry], _Entry]:
        """A decorator that adds a class or function under a name. The name must be new."""

        def add(entry: _Entry) -> _Entry:
            known = self._entries.setdefault(name, entry)  # type: ignore[arg-type]
            if _source(known) != _source(entry):
                raise InputError(f"{self.kind} {name}: {_source(entry)} and {_source(known)} have the same name")
            self._entries[name] = entry  # type: ignore[assignment]
            return entry

        return add

    def names(self) -> list[str]:
        """The names of all entries, sorted."""
        return sorted(self._discover())

    def items(self) -> list[tuple[str, _T]]:
        """All entries with their names, in the order in which they were registered."""
        return [*self._discover().items()]

    def get(self, name: str, setting: str = "") -> _T:
        """The entry of a name.

        Args:
            name: The name.
            setting: The setting that has this value, for the message.

        Raises:
            InputError: No entry has this name.
        """
        entries = self._discover()
        if name in entries:
            return entries[name]
        message = unknown_choice(setting or self.kind, name, entries, self.kind)
        raise InputError(f"{message}; a plug-in is added by plugins=[MODULE]")

    def _discover(self) -> dict[str, _T]:
        _import_package(self._package)
        import_plugins()
        return self._entries


def _source(entry: object) -> str:
    return f"{getattr(entry, '__module__', '')}.{getattr(entry, '__qualname__', entry)}"


@functools.cache
def _import_package(package: str) -> None:
    """Import all modules of a package, in the order of their names."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def import_plugins(modules: Iterable[str] = ()) -> list[ModuleType]:
    """Import plug-ins: those of entry points, of the parent process, and these. Child processes import them too.

    Raises:
        InputError: A module cannot be imported.
    """
    names = [name for name in os.environ.get(PLUGINS, "").split(",") if name]
    names = list(dict.fromkeys([*names, *modules]))
    plugins = [*_import_entry_points(), *map(_import_plugin, names)]
    os.environ[PLUGINS] = ",".join(names)
    return plugins


@functools.cache
def _import_entry_points() -> tuple[ModuleType, ...]:
    return tuple(_import_plugin(point.module) for point in importlib.metadata.entry_points(group=ENTRY_POINTS))


@functools.cache
def _import_plugin(name: str) -> ModuleType:
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))  # the deepspeed launcher starts a file, whose folder is on the path instead
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"plugins={name}: cannot be imported ({error}); give the name of a Python module") from error


def plugin_conf_folders() -> list[Path]:
    """The folders `conf` beside plug-ins, or inside those that are packages, with the choices that they add."""
    folders = []
    for module in import_plugins():
        folder = Path(module.__file__ or "").parent / "conf"
        if folder.is_dir():
            folders.append(folder.resolve())
    return list(dict.fromkeys(folders))
