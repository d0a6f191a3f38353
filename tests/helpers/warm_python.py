"""Python programs that are forked from a server which has imported the slow packages: one starts in 0.1 s.

A program runs as `python ARGUMENTS` does, in its own process, folder and environment. Only what is read while packages
are imported is the server's: Python's hash seed, and variables such as HF_HOME and OMP_NUM_THREADS. All processes of
pytest-xdist share one server. The first that needs it starts it, and it ends with pytest.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
VARIABLE = "WARM_PYTHON"  # FOLDER:PID, the folder of the server and the process that it ends with
PRELOADED = (
    "deepspeed", "hydra", "pipeline.preprocessing.runner", "pipeline.corpora.folder",
    "pipeline.audio.codecs.encodec_embedded", "pipeline.audio.encodecmae.embedder", "pipeline.hub.model_card",
    "pipeline.training.run", "pipeline.training.preflight", "pipeline.generation.generator",
)  # fmt: skip


def choose_server() -> None:
    """Choose the folder of the server that this process and its children share."""
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = f"{tempfile.mkdtemp(prefix='warm-python-', dir='/tmp')}:{os.getpid()}"


class WarmPython:
    """A running `python ARGUMENTS`.

    Args:
        arguments: `-m MODULE`, `-c CODE` or a script, and the arguments of the program.
        output: the file that its output is appended to.
        errors: the file of its stderr; by default that of its output.
        stdin: what it reads.
        env: its environment; by default that of this process.
        cwd: its folder.
        preload: modules that the server imports before; not those that create files, which a program deletes at exit.

    Attributes:
        pid: of the process.
        output: the file that its output is appended to.
        returncode: as of `subprocess.Popen`; None until `poll` or `wait` has seen the end.
    """

    def __init__(
        self, arguments: list[str], output: Path, errors: Path | None = None, *, stdin: str = "",
        env: dict[str, str] | None = None, cwd: Path = ROOT, preload: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.output, self.returncode = output, None
        self._connection = _connect()
        request = {"arguments": list(map(str, arguments)), "env": dict(env or os.environ), "cwd": str(cwd)}
        request["preload"] = preload
        with (
            tempfile.TemporaryFile() as sent, tempfile.TemporaryFile() as input_, output.open("ab") as out,
            (errors or output).open("ab") as err,
        ):  # fmt: skip
            sent.write(json.dumps(request).encode())
            input_.write(stdin.encode())
            for file in (sent, input_):
                file.seek(0)
            socket.send_fds(self._connection, [b"."], [file.fileno() for file in (input_, out, err, sent)])
            self.pid = json.loads(self._connection.recv(64))

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._receive(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit code."""
        code = self._receive(timeout)
        if code is None:
            raise TimeoutError(f"it runs for more than {timeout} s: {self.output.read_text()}")
        return code

    def _receive(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._connection.settimeout(timeout)
            with suppress(BlockingIOError, TimeoutError):
                self.returncode = json.loads(self._connection.recv(64))
                self._connection.close()
        return self.returncode

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def send_signal(self, number: int) -> None:
        """Send a signal to a process that has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def run_python(arguments: list[str], *, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` to its end, as `subprocess.run` with captured output.

    Args:
        arguments: see `WarmPython`.
        timeout: in seconds.
        options: `stdin`, `env`, `cwd` and `preload` of `WarmPython`.
    """
    with tempfile.TemporaryDirectory(prefix="warm-output-") as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = WarmPython(arguments, out, err, **options)
        try:
            code = process.wait(timeout)
        finally:
            process.send_signal(signal.SIGKILL)
        return subprocess.CompletedProcess([sys.executable, *arguments], code, out.read_text(), err.read_text())


def _connect() -> socket.socket:
    """A connection to the server, which is started if there is none."""
    choose_server()
    folder, _, owner = os.environ[VARIABLE].rpartition(":")
    with (Path(folder) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (Path(folder) / "socket").exists():
            _start_server(Path(folder), owner)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"{folder}/socket")
    return connection


def _start_server(folder: Path, owner: str) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    env.pop("PYTHONPATH", None)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.warm_python", str(folder), owner], cwd=ROOT, env=env,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    while not (folder / "socket").exists():
        assert server.poll() is None, (folder / "log").read_text()
        time.sleep(0.01)


class _Server:
    """Forks a process for each connection, sends its process id and its exit code, and kills it if the client ends."""

    def __init__(self, folder: Path, owner: int) -> None:
        self._folder, self._children = folder, dict[int, tuple[int, socket.socket]]()  # by descriptors of processes
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{folder}/starting")
        self._listener.listen(64)
        (folder / "starting").rename(folder / "socket")
        self._owner = os.pidfd_open(owner)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._owner, selectors.EVENT_READ)

    def serve(self) -> dict[str, Any]:
        """In the server, runs until the owner has ended; in a fork, returns the request that it was forked for."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == self._owner:
                    self._end()
                elif key.fileobj == self._listener:
                    request = self._fork()
                    if request is not None:
                        return request
                elif key.fd in self._children:
                    self._reap(key.fd)
                else:  # a client sends nothing more: it has ended
                    os.kill(key.data, signal.SIGKILL)
                    self._selector.unregister(key.fileobj)

    def _fork(self) -> dict[str, Any] | None:
        connection, _ = self._listener.accept()
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 4)
        with os.fdopen(descriptors.pop(), "rb") as sent:
            request: dict[str, Any] = json.load(sent)
        for name in request.pop("preload"):
            importlib.import_module(name)
        pid = os.fork()
        if pid == 0:
            self._selector.close()
            self._listener.close()
            connection.close()
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
                os.close(descriptor)
            return request
        for descriptor in descriptors:
            os.close(descriptor)
        child = os.pidfd_open(pid)
        self._children[child] = (pid, connection)
        self._selector.register(child, selectors.EVENT_READ)
        self._selector.register(connection, selectors.EVENT_READ, pid)
        connection.send(json.dumps(pid).encode())
        return None

    def _reap(self, child: int) -> None:
        pid, connection = self._children.pop(child)
        self._selector.unregister(child)
        os.close(child)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(KeyError):  # its client has ended
            self._selector.unregister(connection)
            connection.send(json.dumps(code).encode())
        connection.close()

    def _end(self) -> None:
        for pid, _ in self._children.values():
            os.kill(pid, signal.SIGKILL)
        for name in ("socket", "lock", "log"):
            (self._folder / name).unlink()
        self._folder.rmdir()
        os._exit(0)


def _run_program(arguments: list[str], env: dict[str, str], cwd: str) -> None:
    """Run a program in this forked process, as Python would run it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    tempfile.tempdir = None  # TMPDIR may differ
    search = [str(Path(entry).absolute()) for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    first, *rest = arguments
    sys.path[0:1] = [cwd if first in ("-m", "-c") else str(Path(first).parent), *search]
    importlib.invalidate_caches()
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    else:
        sys.argv = arguments
        runpy.run_path(first, run_name="__main__")


def _exit_after(**request: Any) -> None:
    """Run a program, and exit as Python does, but for the destruction of all modules, which takes a second."""
    code: object = 0
    try:
        _run_program(**request)
    except SystemExit as end:
        code = end.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that the garbage collector of a fork does not copy their pages
    _exit_after(**_Server(Path(sys.argv[1]), int(sys.argv[2])).serve())
