"""The command line of every command: Hydra's settings, help, one-line errors and exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage or an input refused before any work, 75 stopped on request after saving, 130
interrupted, 141 the reader of standard output has closed it (`| head`).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Generic, NoReturn, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.common.console import print_error
from pipeline.common.errors import InputError, print_exception
from pipeline.common.exit_codes import EXIT_FAILED, EXIT_OUTPUT_CLOSED, EXIT_REQUEUE, EXIT_USAGE
from pipeline.common.messages import missing_setting
from pipeline.common.paths import CONF
from pipeline.common.registry import import_plugins, plugin_conf_folders
from pipeline.common.settings import CommandSettings, hydra_quote, parse_settings
from pipeline.config import help, sweeps
from pipeline.config.conf_files import list_groups
from pipeline.config.hints import explain_error
from pipeline.config.overrides import add_open_settings, check_overrides, keep_typed_texts

_S = TypeVar("_S", bound=CommandSettings)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_overridden: set[str] = set()


def hydra_command(model: type[_S]) -> Callable[[Callable[[_S], int | None]], Command[_S]]:
    """A decorator that makes a function of settings into a command, configured by `conf/{model.command}.yaml`.

    The docstring of the function's module is the command's `--help`. What the function returns is the exit code (None
    is 0). Settings that are not valid are refused before the function is called.
    """
    return lambda function: Command(model, function)


class Command(Generic[_S]):
    """A command: called without arguments, it reads the command line and exits.

    Attributes:
        settings: The class of its settings.
    """

    def __init__(self, model: type[_S], function: Callable[[_S], int | None]) -> None:
        self.settings = model
        self._function = function

    def __call__(self) -> None:
        """Run with the settings of the command line."""
        sys.excepthook = print_exception
        _remove_local_rank_from_argv()
        with_safe_output(self._run)

    def task(self, overrides: Sequence[str]) -> int | None:
        """Run with the settings of these overrides, in this process, and return the exit code."""
        return self._function(load_settings(self.settings, overrides))

    def run_composed(self, cfg: DictConfig, overrides: Sequence[str]) -> int | None:
        """Run with the settings of a composed config."""
        return self._function(_read_settings(self.settings, cfg, overrides))

    def _run(self) -> None:
        overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        try:
            _import_typed_plugins(overrides)
            if {"--help", "-h"} & set(sys.argv[1:]):
                print(_format_help(self.settings, sys.modules[self._function.__module__].__doc__ or "", overrides))
                return
        except InputError as error:
            _refuse(str(error))
        _run_hydra(self)


def with_safe_output(run: Callable[[], None]) -> None:
    """Call `run` so that neither a terminal's encoding nor a closed pipe ends it with a traceback.

    Characters that the terminal cannot show are escaped. When the reader of standard output has closed it, exit with
    `EXIT_OUTPUT_CLOSED`, or with the command's own exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        run()
    except OSError:
        if not _is_output_closed():
            raise
        sys.exit(EXIT_OUTPUT_CLOSED)
    finally:
        if _is_output_closed():  # otherwise Python fails when it flushes the stream at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_output_closed() -> bool:
    """Whether nothing reads standard output any more: the other end of the pipe, or the terminal, is closed."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):  # it is not a file, as in a notebook
        return False


def load_settings(model: type[_S], overrides: Sequence[str] = ()) -> _S:
    """The settings of a command, as its command line would read them: for tests, notebooks and tools.

    Args:
        model: The class of the command's settings.
        overrides: Settings as `name=value`, as on the command line.

    Raises:
        InputError: A setting does not exist, has no value, or a value is not valid.
    """
    _import_typed_plugins(overrides)
    cfg = compose(model.command, overrides)
    try:
        return _read_settings(model, cfg, overrides)
    except OmegaConfBaseException as error:
        raise InputError(explain_error(model.command, error)) from None


def compose(name: str, overrides: Sequence[str] = (), with_hydra: bool = False) -> DictConfig:
    """The config of a command, whose values are not checked; on request with Hydra's own.

    Raises:
        InputError: Hydra refuses an override.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    check_overrides(name, overrides)
    state = GlobalHydra.instance()
    outer, state.hydra = state.hydra, None  # a command may compose the settings of another
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            own = [*add_open_settings(name, overrides), *_search_path()]
            return hydra_compose(name, own, return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explain_error(name, error)) from None
    finally:
        state.hydra = outer


def _format_help(model: type[CommandSettings], docstring: str, overrides: Sequence[str]) -> str:
    """The help of a command, for the choices that are on its command line."""
    cfg = compose(model.command, [override for override in overrides if "=" in override], with_hydra=True)
    choices = {group: str(cfg.hydra.runtime.choices[group]) for group in list_groups(model.command)}
    values = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(values, dict)
    shown = {str(setting): value for setting, value in values.items() if setting != "hydra"}
    return help.format_help(model, docstring, shown, choices)


def _read_settings(model: type[_S], cfg: DictConfig, overrides: Sequence[str]) -> _S:
    """The typed settings of a composed config."""
    for setting in sorted(OmegaConf.missing_keys(cfg)):
        raise InputError(missing_setting(setting))
    typed = keep_typed_texts(model, cfg, overrides)
    _overridden.clear()
    _overridden.update(typed)
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    return parse_settings(model, {str(name): value for name, value in values.items() if name != "hydra"})


def _import_typed_plugins(arguments: Sequence[str]) -> None:
    """Import the plug-ins of `plugins=[A,B]`, before settings are composed: they may add choices."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    for argument in arguments:
        if argument.lstrip("+").startswith("plugins="):
            with contextlib.suppress(HydraException):  # Hydra raises it again when it composes
                value = OverridesParser.create().parse_override(argument).value()
                import_plugins([str(item) for item in (value if isinstance(value, list) else [value])])


def _search_path() -> list[str]:
    """The override that adds the conf folders of plug-ins."""
    folders = plugin_conf_folders()
    return [f"hydra.searchpath=[{','.join(hydra_quote(f'file://{folder}') for folder in folders)}]"] if folders else []


def overridden_settings() -> set[str]:
    """The dotted names of the settings that are on the command line."""
    return set(_overridden)


class _Job:
    """Runs a command, once or once per job of a sweep, and keeps how each ended.

    Errors are caught here and not around Hydra, which would log them in its own words first.
    """

    def __init__(self, command: Command[Any], swept: list[str]) -> None:
        self._command, self._swept = command, swept
        self.codes: list[int | None] = []
        self.errors: list[str] = []

    def __call__(self, cfg: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        try:
            overrides = list(HydraConfig.get().overrides.task)
            sweeps.separate_outputs(self._command.settings.command, cfg, self._swept, overrides)
            self.codes.append(self._command.run_composed(cfg, overrides))
        except InputError as error:
            self.errors.append(str(error))
        except OmegaConfBaseException as error:
            self.errors.append(explain_error(self._command.settings.command, error))
        except OSError as error:
            if _is_output_closed():
                sys.exit(EXIT_OUTPUT_CLOSED)
            if not _is_disk_full(error):
                raise
            self.codes.append(_fail_on_full_disk(error))
        if self.codes[-1:] == [EXIT_REQUEUE]:  # stopped on request: the other jobs of the sweep are not started
            sys.exit(EXIT_REQUEUE)


def _run_hydra(command: Command[Any]) -> None:
    """Compose the settings, run the command, and exit with its code."""
    import hydra
    from hydra.errors import HydraException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them
    name = command.settings.command
    swept: list[str] = []
    job = _Job(command, swept)
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    sys.argv = [sys.argv[0], *add_open_settings(name, sys.argv[1:]), *_search_path()]
    try:
        check_overrides(name, overrides)
        with contextlib.ExitStack() as stack:
            if {"-m", "--multirun"} & set(sys.argv[1:]):
                swept += sweeps.swept_settings(overrides)
                folder = stack.enter_context(tempfile.TemporaryDirectory())  # Hydra writes its multirun.yaml there
                sys.argv.append(f"hydra.sweep.dir={folder}")
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job.__call__)()
    except InputError as error:
        _refuse(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _refuse(explain_error(name, error))
    except OSError as error:
        if not _is_disk_full(error):
            raise
        sys.exit(_fail_on_full_disk(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if job.errors:
        _refuse("\nerror: ".join(dict.fromkeys(job.errors)))
    if any(job.codes):
        sys.exit(max(job.codes, key=lambda code: code or 0))


def _is_disk_full(error: OSError) -> bool:
    return error.errno in _DISK_FULL or "No usable temporary directory" in str(error)


def _fail_on_full_disk(error: OSError) -> int:
    """Print the error about a full disk in one line, and return the exit code."""
    temporary = f"temporary files (TMPDIR={os.environ.get('TMPDIR', '/tmp')})"
    path = error.filename or f"the output folder, or {temporary}"
    print_error(f"{path}: {error.strerror}; free some space, and run the same command again")
    return EXIT_FAILED


def _refuse(message: str) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":  # the other ranks have the same error
        print_error(message)
    sys.exit(EXIT_USAGE)


def _remove_local_rank_from_argv() -> None:
    """Remove --local_rank=N, which the `deepspeed` launcher appends and Hydra refuses; LOCAL_RANK has the number."""
    for arg in [arg for arg in sys.argv[1:] if arg.startswith("--local_rank") or arg.startswith("--local-rank")]:
        sys.argv.remove(arg)
        if "=" in arg:
            os.environ.setdefault("LOCAL_RANK", arg.split("=", 1)[1])
