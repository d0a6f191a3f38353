"""How an entry point meets its user: Hydra's command line, readable help, one-line errors, exit codes.

Exit codes: 0 done, 1 failed, 2 bad usage or input refused before work, 75 stopped on request after saving, 141 when the
reader of standard output has gone (`| head`).
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import io
import os
import re
import select
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.common.console import print_error
from pipeline.common.errors import InputError, print_exception
from pipeline.common.exit_codes import EXIT_FAILED, EXIT_OUTPUT_CLOSED, EXIT_REQUEUE, EXIT_USAGE
from pipeline.common.paths import CONF
from pipeline.common.settings import hydra_quote
from pipeline.config import sweeps, types

_GROUPS = {folder.name for folder in CONF.iterdir() if folder.is_dir()}
_overridden: set[str] = set()


def hydra_command(name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
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
            sys.excepthook = print_exception
            _keep_local_rank_out_of_argv()
            with_safe_output(run)

        def run() -> None:
            if {"--help", "-h"} & set(sys.argv[1:]):
                print(_help(name, sys.modules[task.__module__].__doc__ or ""))
                return
            _run(name, whole)

        command.task = whole  # type: ignore[attr-defined]
        return command

    return wrap


def with_safe_output(run: Callable[[], None]) -> None:
    """Call `run` so that neither a terminal's encoding nor a closed pipe ends it in a traceback.

    Characters that the terminal cannot show are escaped. When the reader of standard output has gone, exit with
    `EXIT_OUTPUT_CLOSED`, or with the code that the command chose itself.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        run()
    except OSError:
        if not _output_is_closed():
            raise
        sys.exit(EXIT_OUTPUT_CLOSED)
    finally:
        if _output_is_closed():  # else Python itself would complain when it flushes the stream at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _output_is_closed() -> bool:
    """Whether nothing can read standard output any more: the pipe's other end is closed, or the terminal has gone."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):  # no file behind it, as in a notebook
        return False


def compose(name: str, overrides: list[str] | None = None) -> DictConfig:
    """The config of an entry point, as its command line would give it: for tests, notebooks and helpers.

    Raises InputError for a value of another kind than its setting's, or an added setting that nothing reads.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    _check_overrides(name, overrides or [])
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = hydra_compose(name, overrides or [])
    _coerce_overrides(name, cfg, overrides or [])
    return cfg


def overridden_settings() -> set[str]:
    """The settings that stand on the command line, as dotted names."""
    return set(_overridden)


def _run(name: str, task: Callable[[DictConfig], Any]) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, and are told in one line
    code: list[Any] = []
    refused: list[str] = []
    swept: list[str] = []

    def job(cfg: DictConfig) -> None:
        try:
            overrides = list(HydraConfig.get().overrides.task)
            _coerce_overrides(name, cfg, overrides)
            sweeps.separate_outputs(name, cfg, swept, overrides)
            code.append(task(cfg))
        except InputError as error:  # caught in here: Hydra would announce it in its own words first
            refused.append(str(error))
        except OmegaConfBaseException as error:
            refused.append(explain_error(name, error))
        except OSError as error:
            if not _is_full_disk(error):
                raise
            code.append(_fail_on_full_disk(error))
        if code[-1:] == [EXIT_REQUEUE]:  # asked to stop: what a sweep has still to run is not begun
            sys.exit(EXIT_REQUEUE)

    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    try:
        _check_overrides(name, words)
        with contextlib.ExitStack() as stack:
            if {"-m", "--multirun"} & set(sys.argv[1:]):
                swept += sweeps.swept_settings(words)
                folder = stack.enter_context(tempfile.TemporaryDirectory())  # Hydra writes its multirun.yaml there
                sys.argv.append(f"hydra.sweep.dir={folder}")
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job)()
    except InputError as error:
        _refuse(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _refuse(explain_error(name, error))
    except OSError as error:
        if not _is_full_disk(error):
            raise
        sys.exit(_fail_on_full_disk(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if refused:
        _refuse("\nerror: ".join(dict.fromkeys(refused)))
    if any(code):
        sys.exit(max(code, key=lambda c: c or 0))


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _is_full_disk(error: OSError) -> bool:
    return error.errno in _FULL or "No usable temporary directory" in str(error)


def _fail_on_full_disk(error: OSError) -> int:
    """Print the one line of a full disk, and return the exit code."""
    temporary = f"temporary files (TMPDIR={os.environ.get('TMPDIR', '/tmp')})"
    where = error.filename or f"the folder that is written to, or {temporary}"
    print_error(f"{where}: {error.strerror}; free some space, and run the same command again")
    return EXIT_FAILED


def _refuse(message: str) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":  # one rank speaks for all
        print_error(message)
    sys.exit(EXIT_USAGE)


def _keep_local_rank_out_of_argv() -> None:
    """The `deepspeed` launcher appends --local_rank=N, which Hydra refuses; the variable says the same."""
    for arg in [a for a in sys.argv[1:] if a.startswith("--local_rank") or a.startswith("--local-rank")]:
        sys.argv.remove(arg)
        if "=" in arg:
            os.environ.setdefault("LOCAL_RANK", arg.split("=", 1)[1])


def _check_overrides(name: str, overrides: list[str]) -> None:
    """Raises InputError for words that Hydra would accept although nothing reads them, or refuse by a traceback."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException:
        return  # Hydra says what is wrong, and `explain` how to type it
    groups = {*_groups(name), "exp"}
    for override in parsed:
        key, text = override.key_or_group, (override.input_line or "").partition("=")[2]
        if not key:
            raise InputError(f"{override.input_line}: settings are given as name=value")
        chosen = key in groups and not override.is_delete() and not override.is_sweep_override()
        if chosen and not isinstance(override.value(), (str, list, dict)):
            raise InputError(_no_such_choice(key, text))
        added = override.is_add() or override.is_force_add()
        passed_on = key in groups or key.startswith(("hydra", "deepspeed."))
        if added and not passed_on and key not in _defaults(name):
            raise InputError(f"there is no setting '{key}'{_suggest_setting(name, key)} (--help lists them)")


def _coerce_overrides(name: str, cfg: DictConfig, overrides: list[str]) -> None:
    """Make what was typed what its settings take. Raises InputError where it is of another kind."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    known = _defaults(name) if overrides else {}
    last = {word.key_or_group: word for word in OverridesParser.create().parse_overrides(overrides)}
    _overridden.clear()
    _overridden.update(last)
    for setting, word in last.items():
        if word.is_delete() or word.is_sweep_override():
            continue
        text = (word.input_line or "").partition("=")[2].strip()
        value = word.value()
        if setting not in known or "${" in text or (setting in _GROUPS and isinstance(value, str)):
            continue
        found = types.coerce(setting, text, value, types.allowed_types(name, setting, known[setting]))
        if found is not value:
            OmegaConf.update(cfg, setting, found)


@functools.cache
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


def explain_error(name: str, error: Exception) -> str:
    """Hydra's message in one line, with the nearest setting that exists, or with what to type instead."""
    from hydra.errors import MissingConfigException, OverrideParseException

    line = " ".join(part.strip() for part in str(error).splitlines() if part.strip())
    ambiguous = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'(?: requires| 1\.)", line)
    if isinstance(error, OverrideParseException) or ambiguous:
        return _quoting_hint(ambiguous[1] if ambiguous else str(error.override))  # type: ignore[attr-defined]
    choice = re.search(r"Could not find '([^']+)/([^'/]*)'", line)
    if isinstance(error, MissingConfigException) and choice:
        return _no_such_choice(choice[1], choice[2], error.options)
    twice = re.search(r"Multiple values for (\S+)\. ", line)
    if twice:
        return f"{_setting_of(twice[1])}: given more than once; choose one"
    found = re.search(r"Could not override '([^']+)'", line) or re.search(r"Key '([^']+)' is not in struct", line)
    if found:
        return f"there is no setting '{found[1]}'{_suggest_setting(name, found[1])} (--help lists them)"
    missing = re.search(r"(?:Missing mandatory value|full_key): ([\w.]+)", line)
    if "Missing mandatory value" in line and missing:
        return f"the setting '{missing[1]}' has no default: give {missing[1]}=..."
    return line


def _setting_of(group: str) -> str:
    """A group as it is typed: an experiment has no default, so it is added with a plus."""
    return f"+{group}" if group == "exp" else group


def _no_such_choice(group: str, choice: str, choices: Sequence[str] | None = None) -> str:
    known = sorted(choices or [file.stem for file in (CONF / group).glob("*.yaml")])
    near = difflib.get_close_matches(choice, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{_setting_of(group)}={choice}: there is no such choice; {hint}choices are {', '.join(known)}"


def _suggest_setting(name: str, key: str) -> str:
    """What may be meant by a setting that there is not."""
    if key == "exp" and name == "train":
        return "; add an experiment with a plus: +exp=delay_gpt2"
    if key in _GROUPS:
        names = sorted(file.stem for file in CONF.glob("*.yaml") if file.stem != "hydra_quiet")
        others = ", ".join(other for other in names if key in _groups(other))
        return f" whose choice is taken here; {key}=CHOICE is for {others}" if others else ""
    near = difflib.get_close_matches(key, _defaults(name), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def _quoting_hint(word: str) -> str:
    """How a word is typed that Hydra's grammar does not read: in its quotes, and in the shell's around these."""
    setting, equals, value = word.partition("=")
    if not equals:
        return f"{word}: settings are given as name=value"
    if value[:1] in ("[", "{"):
        return (
            f"{word}: odd names in a list are put in quotes, and all in the shell's: \"{setting}=['a (1).wav',b.wav]\""
        )
    told = f"{setting}={hydra_quote(value)}"
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
