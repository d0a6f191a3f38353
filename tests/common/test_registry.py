"""Registries: discovery of built-in extensions and of plug-ins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common import registry
from pipeline.common.errors import InputError
from pipeline.common.registry import Registry

PROGRAM = """
import subprocess, sys
from greetings import GREETINGS
from pipeline.common.registry import import_plugins, plugin_conf_folders
if len(sys.argv) > 1:
    import_plugins(sys.argv[1:])
    print(*plugin_conf_folders(), flush=True)
    subprocess.run([sys.executable, __file__], check=True)
print(GREETINGS.get("hello")())
"""


def test_an_unknown_name_lists_the_choices() -> None:
    shapes = Registry[type]("shape", "pipeline.tools")
    shapes.register("square")(int)
    with pytest.raises(InputError, match=r"shape.name=sqare: there is no such shape; did you mean 'square'\?"):
        shapes.get("sqare", "shape.name")
    assert shapes.names() == ["square"] and shapes.get("square") is int


def test_two_extensions_cannot_share_a_name() -> None:
    shapes = Registry[type]("shape", "pipeline.tools")
    shapes.register("square")(int)
    with pytest.raises(InputError, match="have the same name"):
        shapes.register("square")(str)


def test_child_processes_have_the_plugins_of_their_parent(tmp_path: Path) -> None:
    (tmp_path / "greetings").mkdir()
    (tmp_path / "greetings" / "__init__.py").write_text(
        "from pipeline.common.registry import Registry\nGREETINGS = Registry('greeting', __name__)\n"
    )
    (tmp_path / "my_plugin.py").write_text(
        "from greetings import GREETINGS\n@GREETINGS.register('hello')\ndef hello():\n    return 'hi'\n"
    )
    (tmp_path / "conf").mkdir()
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {"PYTHONPATH": str(Path(registry.__file__).parents[2])}
    command = [sys.executable, "program.py", "my_plugin"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path / "conf"), "hi", "hi"], done.stderr


def test_a_plugin_that_is_no_module_is_refused() -> None:
    with pytest.raises(InputError, match=r"plugins=no_such_module: cannot be imported"):
        registry.import_plugins(["no_such_module"])
