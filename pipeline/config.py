"""How an entry point meets its user: Hydra's command line, readable help, one-line errors, exit codes.

Exit codes: 0 done, 1 failed, 2 bad usage or input refused before work, 75 stopped on request after saving.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.errors import InputError, without_secrets

CONF = Path(__file__).resolve().parents[1] / "conf"
STOPPED = 75  # EX_TEMPFAIL: a requeue goes on
_GROUPS = {folder.name for folder in CONF.iterdir() if folder.is_dir()}


def entry(name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a task of a composed config into a command, configured by `conf/{name}.yaml`.

    The task's module docstring is its `--help`; what the task returns is its exit code (None is 0).
    """

    def wrap(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        def command() -> None:
            _keep_local_rank_out_of_argv()
            if {"--help", "-h"} & set(sys.argv[1:]):
                print(_help(name, sys.modules[task.__module__].__doc__ or ""))
                return
            _run(name, task)

        command.task = task  # type: ignore[attr-defined]
        return command

    return wrap


def compose(name: str, overrides: list[str] | None = None) -> DictConfig:
    """The config of an entry point, as its command line would give it: for tests, notebooks and helpers."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return hydra_compose(name, overrides or [])


def _run(name: str, task: Callable[[DictConfig], Any]) -> None:
    import hydra
    from hydra.errors import HydraException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, and are told in one line
    code: list[Any] = []
    refused: list[InputError] = []

    def job(cfg: DictConfig) -> None:
        try:
            code.append(task(cfg))
        except InputError as error:  # caught in here: Hydra would announce it in its own words first
            refused.append(error)
        if code[-1:] == [STOPPED]:  # asked to stop: what a sweep has still to run is not begun
            sys.exit(STOPPED)

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        _refuse(_explain(name, str(error)))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if refused:
        _refuse("\nerror: ".join(map(str, refused)))
    if any(code):
        sys.exit(max(code, key=lambda c: c or 0))


def _refuse(message: str) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":  # one rank speaks for all
        print(f"error: {without_secrets(message)}", file=sys.stderr)
    sys.exit(2)


def _keep_local_rank_out_of_argv() -> None:
    """The `deepspeed` launcher appends --local_rank=N, which Hydra refuses; the variable says the same."""
    for arg in [a for a in sys.argv[1:] if a.startswith("--local_rank") or a.startswith("--local-rank")]:
        sys.argv.remove(arg)
        if "=" in arg:
            os.environ.setdefault("LOCAL_RANK", arg.split("=", 1)[1])


def _settings(name: str) -> list[str]:
    """Every setting that `conf/{name}.yaml` and the choices of its groups know, as dotted names."""
    keys: set[str] = set()

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), value)
        keys.add(prefix)

    root = yaml.safe_load((CONF / f"{name}.yaml").read_text()) or {}
    groups = [group for entry in root.pop("defaults", []) if isinstance(entry, dict) for group in entry]
    walk("", root)
    for group in groups:
        group = group.removeprefix("override ").lstrip("/")
        for file in (CONF / group).glob("*.yaml"):
            walk(group, yaml.safe_load(file.read_text()) or {})
    return sorted(keys - {"", "defaults", "hydra"})


def _explain(name: str, error: str) -> str:
    """Hydra's message in one line, with the nearest setting that exists."""
    line = " ".join(part.strip() for part in error.splitlines() if part.strip())
    found = re.search(r"Could not override '([^']+)'", error) or re.search(r"Key '([^']+)' is not in struct", error)
    if found:
        key = found.group(1)
        near = difflib.get_close_matches(key, _settings(name), n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return f"there is no setting '{key}'{hint} (--help lists them)"
    missing = re.search(r"(?:Missing mandatory value|full_key): ([\w.]+)", error)
    if "Missing mandatory value" in error and missing:
        return f"the setting '{missing.group(1)}' has no default: give {missing.group(1)}=..."
    return line


def _help(name: str, doc: str) -> str:
    cfg = compose(name)
    lines = [doc.strip(), "", "Groups (group=choice):"]
    for group in sorted(_GROUPS):
        if group in cfg or (group == "exp" and name == "train"):
            choices = ", ".join(sorted(file.stem for file in (CONF / group).glob("*.yaml")))
            lines.append(f"  {'+' if group == 'exp' else ''}{group}: {choices}")
    lines += ["", "Settings and their defaults (name.name=value):"]
    lines += [f"  {line}" for line in OmegaConf.to_yaml(cfg).splitlines()]
    lines += ["", "Hydra's own flags: --cfg job (show the settings of a run), -m (sweep over a=1,2,3)."]
    return "\n".join(lines)
