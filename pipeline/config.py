"""How an entry point meets its user: Hydra's command line, readable help, one-line errors, exit codes.

Exit codes: 0 done, 1 failed, 2 bad usage or input refused before work, 75 stopped on request after saving.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline import kinds
from pipeline.errors import InputError, without_secrets

CONF = Path(__file__).resolve().parents[1] / "conf"
STOPPED = 75  # EX_TEMPFAIL: a requeue goes on
_GROUPS = {folder.name for folder in CONF.iterdir() if folder.is_dir()}
_typed: set[str] = set()


def entry(name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a task of a composed config into a command, configured by `conf/{name}.yaml`.

    The task's module docstring is its `--help`; what the task returns is its exit code (None is 0). A setting without a
    default that is not given is refused before it.
    """

    def wrap(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        def whole(cfg: DictConfig) -> Any:
            for missing in sorted(OmegaConf.missing_keys(cfg)):
                raise InputError(f"the setting '{missing}' has no default: give {missing}=...")
            return task(cfg)

        def command() -> None:
            _keep_local_rank_out_of_argv()
            if {"--help", "-h"} & set(sys.argv[1:]):
                print(_help(name, sys.modules[task.__module__].__doc__ or ""))
                return
            _run(name, whole)

        command.task = whole  # type: ignore[attr-defined]
        return command

    return wrap


def compose(name: str, overrides: list[str] | None = None) -> DictConfig:
    """The config of an entry point, as its command line would give it: for tests, notebooks and helpers.

    Raises InputError for a value of another kind than its setting's.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = hydra_compose(name, overrides or [])
    _fit(name, cfg, overrides or [])
    return cfg


def typed() -> set[str]:
    """The settings that stand on the command line, as dotted names."""
    return set(_typed)


def quoted(text: str) -> str:
    """A text in Hydra's quotes, where backslashes count only before a quote."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\'", re.sub(r"(\\+)$", r"\1\1", text)) + "'"


def word(setting: str, value: Any) -> str:
    """A setting as Hydra's command line has it, before the shell's own quotes."""
    text = str(value)
    plain = re.fullmatch(r"[\w./:@-]+", text, re.ASCII)
    return f"{setting}={text if plain else quoted(text)}"


def _run(name: str, task: Callable[[DictConfig], Any]) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, and are told in one line
    code: list[Any] = []
    refused: list[str] = []

    def job(cfg: DictConfig) -> None:
        try:
            _fit(name, cfg, list(HydraConfig.get().overrides.task))
            code.append(task(cfg))
        except InputError as error:  # caught in here: Hydra would announce it in its own words first
            refused.append(str(error))
        except OmegaConfBaseException as error:
            refused.append(_explain(name, error))
        if code[-1:] == [STOPPED]:  # asked to stop: what a sweep has still to run is not begun
            sys.exit(STOPPED)

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        _refuse(_explain(name, error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if refused:
        _refuse("\nerror: ".join(refused))
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


def _fit(name: str, cfg: DictConfig, overrides: list[str]) -> None:
    """Make what was typed what its settings take. Raises InputError where it is of another kind."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    known = _defaults(name) if overrides else {}
    last = {word.key_or_group: word for word in OverridesParser.create().parse_overrides(overrides)}
    _typed.clear()
    _typed.update(last)
    for setting, word in last.items():
        if word.is_delete() or word.is_sweep_override():
            continue
        text = (word.input_line or "").partition("=")[2].strip()
        value = word.value()
        if setting not in known or "${" in text or (setting in _GROUPS and isinstance(value, str)):
            continue
        found = kinds.fit(setting, text, value, kinds.examples(name, setting, known[setting]))
        if found is not value:
            OmegaConf.update(cfg, setting, found)


def _defaults(name: str) -> dict[str, list[Any]]:
    """The defaults of every setting that `conf/{name}.yaml` and the choices of its groups know, by dotted names."""
    found: dict[str, list[Any]] = {}

    def walk(prefix: str, node: Any) -> None:
        found.setdefault(prefix, []).append(node)
        if isinstance(node, dict):
            for key, value in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), value)

    root = yaml.safe_load((CONF / f"{name}.yaml").read_text()) or {}
    walk("", {key: value for key, value in root.items() if key != "defaults"})
    for group in _groups(name):
        for file in (CONF / group).glob("*.yaml"):
            walk(group, yaml.safe_load(file.read_text()) or {})
    return {key: values for key, values in found.items() if key}


def _groups(name: str) -> list[str]:
    """The groups of `conf/{name}.yaml`, among whose choices a command line takes one."""
    listed = yaml.safe_load((CONF / f"{name}.yaml").read_text())["defaults"]
    return [group for line in listed if isinstance(line, dict) for group in line]


def _explain(name: str, error: Exception) -> str:
    """Hydra's message in one line, with the nearest setting that exists, or with what to type instead."""
    from hydra.errors import OverrideParseException

    line = " ".join(part.strip() for part in str(error).splitlines() if part.strip())
    ambiguous = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'(?: requires| 1\.)", line)
    if isinstance(error, OverrideParseException) or ambiguous:
        return _quoting(ambiguous[1] if ambiguous else str(error.override))  # type: ignore[attr-defined]
    found = re.search(r"Could not override '([^']+)'", line) or re.search(r"Key '([^']+)' is not in struct", line)
    if found:
        return f"there is no setting '{found[1]}'{_instead(name, found[1])} (--help lists them)"
    missing = re.search(r"(?:Missing mandatory value|full_key): ([\w.]+)", line)
    if "Missing mandatory value" in line and missing:
        return f"the setting '{missing[1]}' has no default: give {missing[1]}=..."
    return line


def _instead(name: str, key: str) -> str:
    """What may be meant by a setting that there is not."""
    if key == "exp" and name == "train":
        return "; add an experiment with a plus: +exp=delay_gpt2"
    if key in _GROUPS:
        names = sorted(file.stem for file in CONF.glob("*.yaml") if file.stem != "quiet")
        others = ", ".join(other for other in names if key in _groups(other))
        return f" whose choice is taken here; {key}=CHOICE is for {others}" if others else ""
    near = difflib.get_close_matches(key, _defaults(name), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def _quoting(word: str) -> str:
    """How a word is typed that Hydra's grammar does not read: in its quotes, and in the shell's around these."""
    setting, equals, value = word.partition("=")
    if not equals:
        return f"{word}: settings are given as name=value"
    if value[:1] in ("[", "{"):
        return (
            f"{word}: odd names in a list are put in quotes, and all in the shell's: \"{setting}=['a (1).wav',b.wav]\""
        )
    told = f"{setting}={quoted(value)}"
    shell = shlex.quote(told) if set('"$`\\!') & set(value) else f'"{told}"'
    several = " ([A,B] is a list, -m sweeps)" if "," in value else ""
    return f"{word}: a value with such characters is put in quotes, and all in the shell's: {shell}{several}"


def _help(name: str, doc: str) -> str:
    cfg = compose(name)
    lines = [doc.strip(), "", "Groups (group=choice):"]
    for group in sorted([*_groups(name), *(["exp"] if name == "train" else [])]):
        choices = ", ".join(sorted(file.stem for file in (CONF / group).glob("*.yaml")))
        lines.append(f"  {'+' if group == 'exp' else ''}{group}: {choices}")
    lines += ["", "Settings and their defaults (name.name=value):"]
    lines += [f"  {line}" for line in OmegaConf.to_yaml(cfg).splitlines()]
    lines += ["", "Hydra's own flags: --cfg job (show the settings of a run), -m (sweep over a=1,2,3)."]
    return "\n".join(lines)
