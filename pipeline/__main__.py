"""List the commands: `python -m pipeline`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from pipeline.common.console import print_error
from pipeline.common.exit_codes import EXIT_USAGE
from pipeline.common.messages import nearest
from pipeline.common.paths import CONF
from pipeline.config.cli import with_safe_output

FOLDER = Path(__file__).parent


def commands() -> dict[str, str]:
    """The first line of the help of every command, by its name."""
    names = {file.stem for file in CONF.glob("*.yaml") if (FOLDER / f"{file.stem}.py").is_file()} | {"check"}
    return {name: _summary(FOLDER / f"{name}.py") for name in sorted(names)}


def _summary(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def main() -> None:
    """Print the commands; exit with 2 if the command line has other arguments."""
    listed = commands()
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--help", "-h")]
    if arguments:
        near = nearest(arguments[0], listed)
        hint = f"type `python -m pipeline.{near}`" if near else "`python -m pipeline` lists the commands"
        print_error(f"{arguments[0]}: {hint}")
        sys.exit(EXIT_USAGE)
    for name, summary in listed.items():
        print(f"python -m pipeline.{name:12}  {summary}")
    print("\nAdd --help to a command to see its settings. To train on several GPUs: deepspeed pipeline/train.py ...")


if __name__ == "__main__":
    with_safe_output(main)
