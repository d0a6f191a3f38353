"""The one error that a user is meant to read, and what nobody is meant to read."""

from __future__ import annotations

import os
import re
from typing import Any

SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
HIDDEN = "***"
_LOGIN = re.compile(r"(?<=://)[^/\s'\"@]*@")  # user:password@host, as far as the host's @
_SIGNED = re.compile(r"(?i)([?&][\w.-]*(?:sig|signature|token|key|keyid|credential|secret|password)=)[^&\s'\"#]+")


class InputError(ValueError):
    """Bad usage, or input refused before any work: entry points print it in one line and exit with 2.

    The message names the file or the setting at fault, what was expected, and what to do. Secrets in it are hidden.
    """

    def __init__(self, *parts: object) -> None:
        super().__init__(*(without_secrets(part) if isinstance(part, str) else part for part in parts))


class MachineError(RuntimeError):
    """The machine, and no input or setting, kept a command from its work: memory, disk, limits, a killed process.

    The message is one line that says what to do; the command ends with exit code 1, and the next run resumes.
    """


def without_secrets(text: str) -> str:
    """A text as it may be printed, logged and stored.

    Logins in addresses, what signs them, and the keys of this process's environment become `***`.
    """
    for name in SECRETS:
        value = os.environ.get(name, "")
        if len(value) >= 8:  # a placeholder such as "test" is no secret, and is in many words
            text = text.replace(value, HIDDEN)
    if "://" not in text:
        return text
    return _SIGNED.sub(rf"\1{HIDDEN}", _LOGIN.sub(f"{HIDDEN}@", text))


def all_without_secrets(found: Any) -> Any:
    """Settings as they may be stored: every text in dicts and lists as `without_secrets` gives it."""
    if isinstance(found, str):
        return without_secrets(found)
    if isinstance(found, dict):
        return {key: all_without_secrets(value) for key, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [all_without_secrets(value) for value in found]
    return found
