"""Check the settings of one or more commands without running them.

  python -m pipeline.check train +exp=delay_gpt2 model=medium
  python -m pipeline.check preprocess data=jamendo -- train +exp=delay_gpt2 -- generate run=RUN seconds=10

Each command's settings are composed and checked as the command itself does before any work; files are not opened.
`--` separates commands. Every problem is one line on standard error, and the exit code is then 2.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.common.console import print_error
from pipeline.common.errors import InputError
from pipeline.common.exit_codes import EXIT_USAGE
from pipeline.common.paths import CONF
from pipeline.config.cli import compose, explain_error, with_safe_output


def check_settings(command: str, overrides: Sequence[str]) -> str | None:
    """What is wrong with the settings of a command, in one line; None if nothing is."""
    from hydra.errors import HydraException

    try:
        cfg = compose(command, list(overrides))
        _check_values(command, cfg, overrides)
    except InputError as error:
        return str(error)
    except (HydraException, OmegaConfBaseException) as error:
        return explain_error(command, error)
    return None


def _check_values(command: str, cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Raises InputError for values that the command would refuse before it opens any file."""
    for missing in sorted(OmegaConf.missing_keys(cfg)):
        raise InputError(f"the setting '{missing}' has no default: give {missing}=...")
    OmegaConf.to_container(cfg, resolve=True)
    if command == "train":
        from pipeline.training import config

        config.validate(cfg)
    if any("sampling" in word for word in overrides):  # the defaults are right, and PyTorch takes seconds to import
        from pipeline.generation.request import parse_sampling

        parse_sampling(OmegaConf.to_container(cfg.sampling, resolve=True))  # type: ignore[arg-type]


def _split(words: Sequence[str]) -> Iterator[list[str]]:
    """The words between `--`."""
    part: list[str] = []
    for word in [*words, "--"]:
        if word == "--":
            yield part
            part = []
        else:
            part.append(word)


def main() -> None:
    """Check what the command line names, and exit with 2 if anything is wrong."""
    words = sys.argv[1:]
    if not words or {"--help", "-h"} & set(words):
        print(__doc__)
        return
    wrong = 0
    for part in _split(words):
        command, *overrides = part or [""]
        if not (CONF / f"{command}.yaml").is_file() or command == "hydra_quiet":
            problem: str | None = "no such command; `python -m pipeline` lists them"
        else:
            problem = check_settings(command, overrides)
        if problem:
            wrong += 1
            print_error(f"{command}: {problem}")
    if wrong:
        sys.exit(EXIT_USAGE)


if __name__ == "__main__":
    with_safe_output(main)
