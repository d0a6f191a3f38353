"""No code is run from data, and no secret is printed or stored: by the source, and by running it."""

from __future__ import annotations

import ast
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipeline import export
from pipeline.common.errors import InputError, redact, redact_all
from pipeline.corpora.download.http import DownloadError, RemoteFile, RetryPolicy, download, remote_size
from pipeline.data.storage import open_storage

ROOT = Path(__file__).parents[1]
FORBIDDEN_BY_RUFF = [
    "eval(text)", "exec(text)", "pickle.loads(data)", "pickle.Unpickler(file)", "marshal.loads(data)",
    "dill.load(file)", "shelve.open(path)", "yaml.load(text)", "yaml.load(text, yaml.UnsafeLoader)",
    "os.system(text)", "os.popen(text)", "subprocess.run(text, shell=True)", "subprocess.getoutput(text)",
    "requests.get(url, verify=False, timeout=1)", "ssl._create_unverified_context()", "tempfile.mktemp()",
    "tarfile.open(path).extractall(path)",
]  # fmt: skip
REQUIRED = {  # arguments that a call must have
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "np.save": ("allow_pickle", False),
}
FORBIDDEN_ARGUMENTS = {"trust_remote_code": True, "allow_pickle": True, "weights_only": False}
FORBIDDEN_CALLS = {  # that ruff does not know
    "compile", "__import__", "importlib.import_module", "torch.hub.load", "joblib.load", "pandas.read_pickle",
    "shutil.unpack_archive", "wds.WebDataset", "wds.gopen.gopen",
}  # fmt: skip
FORBIDDEN_METHODS = {"extractall", "extract", "read_pickle"}
EXCEPTIONS = {
    "pipeline/check.py": "importlib.import_module",  # of commands, whose names are those of our files
    "pipeline/common/import_guards.py": "importlib.import_module",  # of packages whose names are in the source
    "pipeline/common/machine.py": "importlib.import_module",  # of the standard library
    "pipeline/common/registry.py": "importlib.import_module",  # of plug-ins that are installed or on the command line
}


def unsafe_code(source: str) -> Iterator[str]:
    """What could run code from data, beyond ruff's rules, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("pipe:"):
            yield f"line {node.lineno}: an address that is a command"
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        arguments = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        if name in FORBIDDEN_CALLS or name.rpartition(".")[2] in FORBIDDEN_METHODS:
            yield f"line {node.lineno}: {name} is forbidden"
        argument, value = REQUIRED.get(name, (None, None))
        if argument and (argument not in arguments or arguments[argument] is not value):
            yield f"line {node.lineno}: {name} without {argument}={value}"
        for argument, value in FORBIDDEN_ARGUMENTS.items():
            if argument in arguments and arguments[argument] is value:
                yield f"line {node.lineno}: {name} with {argument}={value}"


def test_no_code_is_run_from_data() -> None:
    files = sorted((ROOT / "pipeline").rglob("*.py"))
    unsafe = [
        f"{file.relative_to(ROOT)}, {fault}"
        for file in files
        for fault in unsafe_code(file.read_text())
        if EXCEPTIONS.get(str(file.relative_to(ROOT)), "none") not in fault
    ]
    assert len(files) > 50 and not unsafe


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(f)", "torch.load(f, weights_only=False)", "torch.load(f, weights_only=flag)", "np.load(f)",
        "np.load(f, allow_pickle=True)", "tar.extractall(p)", "AutoModel.from_pretrained(n, trust_remote_code=True)",
        "url = 'pipe:cat x'", "__import__(name)",
    ],
)  # fmt: skip
def test_unsafe_code_is_noticed(line: str) -> None:
    assert [*unsafe_code(line)]


def test_ruff_forbids_what_runs_code_from_data(tmp_path: Path) -> None:
    """By the rules of pyproject.toml, which `make lint` applies to pipeline/."""
    file = tmp_path / "unsafe.py"
    imports = sorted({line.partition(".")[0] for line in FORBIDDEN_BY_RUFF if "." in line.partition("(")[0]})
    file.write_text("".join(f"import {name}\n" for name in imports) + "\n".join(FORBIDDEN_BY_RUFF) + "\n")
    command = ["ruff", "check", "--no-cache", "--output-format", "concise", "--config", str(ROOT / "pyproject.toml")]
    done = subprocess.run([sys.executable, "-m", *command, str(file)], capture_output=True, text=True, timeout=60)
    refused = {int(line.split(":")[1]) for line in done.stdout.splitlines() if re.search(r": S\d+ ", line)}
    accepted = [line for number, line in enumerate(FORBIDDEN_BY_RUFF, len(imports) + 1) if number not in refused]
    assert not accepted, done.stdout


def test_jobs_print_no_environment_and_no_arguments() -> None:
    """The logs of jobs are kept, and command lines and variables may hold secrets."""
    for file in (ROOT / "jobs").iterdir():
        lines = [line.strip() for line in file.read_text().splitlines()]
        assert not [line for line in lines if line in ("env", "set", "printenv", "set -x", "export -p")], file
        printed = [line for line in lines if line.startswith("log ") and file.suffix == ".sbatch"]
        assert not [line for line in printed if "$*" in line or "$@" in line], file


LOGIN = "s3://AKIA123:wordword@bucket/cache"
SIGNED = "https://bucket.s3.amazonaws.com/a.tar?X-Amz-Date=1&X-Amz-Credential=AKIA%2F1&X-Amz-Signature=abcdef0123&x=1"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"cannot read {LOGIN}/manifest.json (no)", "cannot read s3://***@bucket/cache/manifest.json (no)"),
        ("http://user@host:80/a?b=c", "http://***@host:80/a?b=c"),
        (
            SIGNED,
            "https://bucket.s3.amazonaws.com/a.tar?X-Amz-Date=1&X-Amz-Credential=***&X-Amz-Signature=***&x=1",
        ),
        ("https://x.blob.core.windows.net/a?sv=1&sig=ab%2Fc%3D", "https://x.blob.core.windows.net/a?sv=1&sig=***"),
        ("'http://h/a?token=abc' and 'http://h/b'", "'http://h/a?token=***' and 'http://h/b'"),
        ("http://host/a@b and mail a@b", "http://host/a@b and mail a@b"),
        ("shards/nsynth?key=1", "shards/nsynth?key=1"),
    ],
)
def test_addresses_are_shown_without_logins(text: str, shown: str) -> None:
    assert redact(text) == shown == str(InputError(text)) == str(DownloadError(text))
    assert redact_all({"a": [text, 1], "b": {"c": text}}) == {"a": [shown, 1], "b": {"c": shown}}


def test_keys_in_the_environment_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, f"0123456789-{name}")
        assert redact(f"the server says 0123456789-{name} is wrong") == "the server says *** is wrong"


def test_a_traceback_shows_no_login(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command redacts uncaught errors, also those of libraries, which name whole addresses."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", ["export.py", "--help"])
    export.main()
    try:
        raise OSError(f"404, url={LOGIN!r}") from ValueError(LOGIN)
    except OSError as error:
        sys.excepthook(OSError, error, error.__traceback__)
    shown = capsys.readouterr().err
    assert "wordword" not in shown and shown.count("s3://***@bucket/cache") == 2 and "Traceback" in shown


def test_a_storage_uses_its_login_and_does_not_show_it() -> None:
    pytest.importorskip("aiohttp")
    store = open_storage("http://user:wordword@127.0.0.1:9/cache")
    assert "wordword" in store.address and store.display_path("a.tar") == "http://***@127.0.0.1:9/cache/a.tar"
    with pytest.raises(InputError) as caught:
        store.read("a.tar")
    assert "wordword" not in str(caught.value) and "***@127.0.0.1:9/cache/a.tar" in str(caught.value)


def test_a_failed_download_shows_no_login(tmp_path: Path) -> None:
    remote = RemoteFile("http://user:wordword@127.0.0.1:9/a.tar", tmp_path / "a.tar")
    with pytest.raises(DownloadError) as one:
        download(remote, RetryPolicy(1, 1.0, 0.01))
    with pytest.raises(DownloadError) as other:
        remote_size(remote, 1.0)
    assert "wordword" not in f"{one.value}{other.value}"


def test_a_run_folder_has_no_login_and_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in its settings nor in its log; the settings that the run uses do not change."""
    import torch

    from pipeline.config.cli import load_settings
    from pipeline.training.context import RunContext
    from pipeline.training.distributed import World
    from pipeline.training.run import init_run_dir
    from pipeline.training.settings import TrainSettings

    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    settings = load_settings(TrainSettings, [f"shards={{a: '{LOGIN}', b: '{LOGIN}/b'}}", "tracking=none"])
    try:
        with init_run_dir(RunContext(settings, tmp_path, World(0, 1, torch.device("cpu")))):
            logging.getLogger("pipeline").info("%d clips at %s, key %s", 3, settings.shards, "0123456789abcdef")
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = before
    written = (tmp_path / "config.yaml").read_text() + (tmp_path / "log.txt").read_text()
    assert "wordword" not in written and "0123456789abcdef" not in written
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["shards"]["b"] == "s3://***@bucket/cache/b"
    assert settings.shards == {"a": LOGIN, "b": f"{LOGIN}/b"} and "3 clips" in written


def test_an_error_of_a_command_shows_no_login() -> None:
    pytest.importorskip("aiohttp")
    command = [sys.executable, "-m", "pipeline.shards", "describe", "http://user:wordword@127.0.0.1:9/cache"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 2 and "wordword" not in done.stdout + done.stderr and "127.0.0.1:9" in done.stderr
