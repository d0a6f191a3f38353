"""`python -m tests.helpers.other_system SYSTEM [FOLDER]`: this package where Linux's modules and functions are missing.

SYSTEM is `win32` or `darwin`. Every module of `pipeline` is imported. With FOLDER, which has a folder `sounds` of audio
files, a model is then trained on them and generates: as `make quickstart` does on such a machine.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

MISSING_MODULES = {
    "darwin": ["deepspeed"],
    "win32": ["deepspeed", "fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "posix"],
}
OF_LINUX = ("sched_getaffinity", "memfd_create", "posix_fadvise", "O_DIRECT")
OF_UNIX = (
    "getuid", "geteuid", "getgid", "getpgid", "killpg", "setsid", "fork", "pread", "preadv", "pwrite", "pwritev",
    "set_blocking", "fchmod",
)  # fmt: skip
SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGKILL", "SIGHUP", "SIGPIPE", "SIGCHLD", "setitimer", "alarm")
MISSING = {"darwin": {os: OF_LINUX}, "win32": {os: (*OF_LINUX, *OF_UNIX), signal: SIGNALS}}
SMALL = ("codec=encodec_embedded", "codec.codebooks=2")


def import_all() -> int:
    """Import every module of this package, and return their number."""
    import pipeline

    names = [module.name for module in pkgutil.walk_packages(pipeline.__path__, "pipeline.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    return len(names)


def pretend(system: str) -> None:
    """Remove what a system has not, after other packages have been imported, which look at the real system."""
    sys.modules["deepspeed"] = None  # type: ignore[assignment]
    import_all()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("deepspeed", "pipeline")]:
        del sys.modules[name]
    for name in MISSING_MODULES[system]:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in MISSING[system].items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    if system == "win32":
        sys.modules["msvcrt"] = SimpleNamespace(LK_LOCK=1, LK_NBLCK=2, locking=lambda *_: None)  # type: ignore[assignment]
    sys.platform = system


def run(folder: Path) -> None:
    """Preprocess, train, stop, resume, generate and evaluate in this process."""
    shards, run = folder / "shards", folder / "run"
    data = ("data=folder", f"data.root={folder / 'sounds'}", "data.min_seconds=0.01", "data.valid=0.3", "data.test=0")
    here = ("encoder_workers=1", "decode_workers=0", f"data.scan_cache_dir={folder / 'scan_cache'}")
    call("preprocess", *data, *here, *SMALL, "embedder=encodecmae_tiny", f"out={shards}")
    model = ("model=tiny", "model.width=32", "model.layers=2", "tracking=none", "audio_samples.clips=1")
    for steps in (2, 4):
        trainer = (f"trainer.steps={steps}", "trainer.micro_batch=2")
        call("train", *SMALL, *model, *trainer, f"shards={shards}", f"run={run}")
    call("generate", f"run={run}", f"out={folder / 'sound.wav'}", "seconds=0.2")
    call("evaluate", f"run={run}", f"shards={shards}", "split=valid", "n=2", "resamples=10", "pitch=false")


def call(name: str, *overrides: str) -> None:
    """Run a command; each has to succeed."""
    code = importlib.import_module(f"pipeline.{name}").main.task(list(overrides))
    assert code in (0, None), (name, code)


if __name__ == "__main__":
    pretend(sys.argv[1])
    print(import_all(), "modules")
    if len(sys.argv) > 2:
        run(Path(sys.argv[2]))
