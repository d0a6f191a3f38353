"""User-facing errors and redaction of secrets."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

REDACTED = "***"
_KEY = r"(?:api|access|account|private|secret)[_-]?key(?:[_-]?id)?"
_NAME = rf"(?:secret|password|passwd|token|signature|credentials?|jwt|{_KEY})"  # ends the name of a secret setting
_SECRET_SETTING = re.compile(rf"(?i)(?:.*[^a-z])?{_NAME}$")
_SECRET_VARIABLE = re.compile(r"(?i).*(?:secret|password|passwd|token|jwt|_key|key_id|connection_string)$")
_LOGIN = re.compile(
    r"""(?<=://)(?:
        [^/?#\s"]*@                           # user:password@, up to the last @ before the path
      | [^/?#\s"@:\[\]]+:(?!\d+/)[^\s"@]*@   # a password with a slash in it; what follows a host's colon is a number
    )""",
    re.VERBOSE,
)
_SIGNED = re.compile(
    rf"(?i)([?&;#][\w.-]*(?:{_NAME}|sig|key|keyid|key-pair-id|accessid|auth|authorization|pass|pwd|policy)=)[^&\s\"'#]+"
)
_ASSIGNED = re.compile(
    rf"""(?ix)(
        (?:^|[\s'"{{,;?&+~])[\w.-]*{_NAME}=        # +data.password=..., AccountKey=...
      | [{{,]\s*['"]?[\w.-]*{_NAME}['"]?:\s*      # {{password: ...}}
    )(?:'[^']*'|"[^"]*"|[^\s,;&'"}}]+)"""
)


class InputError(ValueError):
    """Wrong usage, or an input refused before any work: commands print it in one line and exit with 2.

    The message names the file or the setting, what is expected, and what to do. Secrets in it are redacted.
    """

    def __init__(self, *parts: object) -> None:
        super().__init__(*(redact(part) if isinstance(part, str) else part for part in parts))


class MachineError(RuntimeError):
    """A fault of the machine, not of an input or a setting: memory, disk, limits, a killed process.

    The message is one line that says what to do; the command exits with 1, and the next run resumes.
    """


def redact(text: str) -> str:
    """A text without secrets, to be printed, logged, stored or sent.

    Logins and signatures in addresses, values of settings with a secret name (`password=...`), and the values of
    environment variables with a secret name become `***`. Values of fewer than 8 characters are kept: they are
    placeholders such as "test", and parts of many other words.
    """
    for value in _secret_values():
        text = text.replace(value, REDACTED)
    text = _ASSIGNED.sub(rf"\1{REDACTED}", text)
    if "://" not in text:
        return text
    return _SIGNED.sub(rf"\1{REDACTED}", _LOGIN.sub(f"{REDACTED}@", text))


def one_line(error: object) -> str:
    """The message of an exception in one line, redacted; the name of its type where it has no message."""
    return redact(" ".join(str(error).split())) or type(error).__name__


def first_line(error: object) -> str:
    """The first line of the message of an exception, for libraries that print pages; otherwise like `one_line`."""
    lines = str(error).strip().splitlines()
    return one_line(lines[0] if lines else error)


def first_problem(error: ValidationError) -> str:
    """The first problem of a file that pydantic has checked, in one line: `splits.train is 5: ...`."""
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"])) or "its content"
    if problem["type"] == "missing":
        return one_line(f"{where} is missing")
    return one_line(f"{where} is {problem['input']!r:.80}: {problem['msg'].removeprefix('Value error, ')}")


def print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback without secrets; a `sys.excepthook`, since logs of jobs are kept."""
    lines = traceback.format_exception(kind, error, trace)
    print(redact("".join(lines)), end="", file=sys.stderr)


def redact_all(value: Any) -> Any:
    """Settings without secrets, to be stored or sent: every text is redacted, and values of settings with secret names.

    Returns plain dicts and lists, also for OmegaConf's.
    """
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: _of_setting(key, item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [redact_all(item) for item in value]
    return value


def _of_setting(name: Any, value: Any) -> Any:
    """The value of a setting, redacted if its name is that of a secret."""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool) and _SECRET_SETTING.match(str(name)):
        return REDACTED
    return redact_all(value)


def _secret_values() -> list[str]:
    """Values of environment variables with secret names, the longest first: one may contain another."""
    values = {value for name, value in os.environ.items() if len(value) >= 8 and _SECRET_VARIABLE.match(name)}
    return sorted((value for value in values if not _is_path(value)), key=len, reverse=True)


def _is_path(value: str) -> bool:
    """Whether a value is the path of a file with a secret, and not the secret."""
    try:
        return Path(value).exists()
    except OSError:  # the name is too long
        return False
