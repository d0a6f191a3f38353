"""Nothing from data is run, nothing is opened unproven, and no secret is told: by the source, and by trial."""

from __future__ import annotations

import ast
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pipeline import export
from pipeline.common.errors import InputError, redact, redact_all
from pipeline.corpora.download.http import FetchError, RemoteFile, RetryPolicy, fetch, remote_size
from pipeline.data.storage import open_storage

HOME = Path(__file__).parents[1]
FILES = sorted((HOME / "pipeline").rglob("*.py"))
NEVER = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "tempfile.mktemp"),
    *("subprocess.getstatusoutput", "os.execvp", "os.spawnlp", "pickle.load", "pickle.loads", "pickle.Unpickler"),
    *("marshal.load", "marshal.loads", "shelve.open", "dill.load", "dill.loads", "joblib.load", "pandas.read_pickle"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "wds.WebDataset", "wds.gopen.gopen"),
    *("ssl._create_unverified_context", "importlib.import_module", "torch.hub.load", "shutil.unpack_archive"),
}
MUST = {  # what a call has to say
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "np.save": ("allow_pickle", False),
}
MUST_NOT = {"shell": True, "trust_remote_code": True, "verify": False, "allow_pickle": True, "weights_only": False}
EXCEPT = {"pipeline/common/import_guards.py": "importlib.import_module"}  # of packages whose names are in the source
METHODS = {"extractall", "extract", "read_pickle"}  # of whatever object


def faults(source: str) -> Iterator[str]:
    """What a program does that it must not, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("pipe:"):
            yield f"line {node.lineno}: an address that is a command"
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        if name in NEVER or name.rpartition(".")[2] in METHODS:
            yield f"line {node.lineno}: {name} is never called"
        word, value = MUST.get(name, (None, None))
        if word and (word not in given or given[word] is not value):
            yield f"line {node.lineno}: {name} without {word}={value}"
        for word, value in MUST_NOT.items():
            if word in given and given[word] is value:
                yield f"line {node.lineno}: {name} with {word}={value}"


def test_the_source_does_none_of_what_lets_data_run() -> None:
    found = [
        f"{file.relative_to(HOME)}, {fault}"
        for file in FILES
        for fault in faults(file.read_text())
        if EXCEPT.get(str(file.relative_to(HOME)), "none") not in fault
    ]
    assert len(FILES) > 50 and not found


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(f)", "torch.load(f, weights_only=False)", "torch.load(f, weights_only=flag)", "np.load(f)",
        "np.load(f, allow_pickle=True)", "pickle.loads(b)", "yaml.load(t)", "eval(t)", "tar.extractall(p)",
        "subprocess.run(t, shell=True)", "os.system(t)", "AutoModel.from_pretrained(n, trust_remote_code=True)",
        "requests.get(u, verify=False)", "tempfile.mktemp()", "url = 'pipe:cat x'",
    ],
)  # fmt: skip
def test_each_of_these_would_be_found(line: str) -> None:
    assert [*faults(line)]


def test_jobs_print_no_environment() -> None:
    for file in (HOME / "jobs").iterdir():
        lines = [line.strip() for line in file.read_text().splitlines()]
        assert not [line for line in lines if line in ("env", "set", "printenv", "set -x", "export -p")], file
        said = [line for line in lines if line.startswith("say ") and file.suffix == ".sbatch"]
        assert not [line for line in said if "$*" in line or "$@" in line], "a job's log is kept: no command lines"


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
def test_addresses_are_shown_without_what_opens_them(text: str, shown: str) -> None:
    assert redact(text) == shown == str(InputError(text)) == str(FetchError(text))
    assert redact_all({"a": [text, 1], "b": {"c": text}}) == {"a": [shown, 1], "b": {"c": shown}}


def test_keys_of_the_environment_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, f"0123456789-{name}")
        assert redact(f"the server says 0123456789-{name} is wrong") == "the server says *** is wrong"


def test_a_traceback_tells_no_login(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command prints uncaught errors redacted, those of libraries too, which name whole addresses."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", ["export.py", "--help"])
    export.main()
    try:
        raise OSError(f"404, url={LOGIN!r}") from ValueError(LOGIN)
    except OSError as error:
        sys.excepthook(OSError, error, error.__traceback__)
    shown = capsys.readouterr().err
    assert "wordword" not in shown and shown.count("s3://***@bucket/cache") == 2 and "Traceback" in shown


def test_a_store_opens_with_its_login_and_is_shown_without() -> None:
    pytest.importorskip("aiohttp")
    store = open_storage("http://user:wordword@127.0.0.1:9/cache")
    assert "wordword" in store.address and store.display_path("a.tar") == "http://***@127.0.0.1:9/cache/a.tar"
    with pytest.raises(InputError) as caught:
        store.read("a.tar")
    assert "wordword" not in str(caught.value) and "***@127.0.0.1:9/cache/a.tar" in str(caught.value)


def test_a_download_that_fails_tells_no_login(tmp_path: Path) -> None:
    remote = RemoteFile("http://user:wordword@127.0.0.1:9/a.tar", tmp_path / "a.tar")
    with pytest.raises(FetchError) as one:
        fetch(remote, RetryPolicy(1, 1.0, 0.01))
    with pytest.raises(FetchError) as other:
        remote_size(remote, 1.0)
    assert "wordword" not in f"{one.value}{other.value}"


def test_a_run_folder_holds_no_login_and_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in its settings nor in its log; the settings of the run itself stay as they are."""
    import torch

    from pipeline.training.distributed import World
    from pipeline.training.run import init_run_dir

    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    shards = {"a": LOGIN, "b": "${shards.a}/b"}
    cfg = OmegaConf.create({"shards": shards, "lr": 1e-3, "none": None, "tracking": {"name": "none"}})
    try:
        with init_run_dir(cfg, tmp_path, World(0, 1, torch.device("cpu"))):
            logging.getLogger("pipeline").info("%d clips at %s, key %s", 3, cfg.shards, "0123456789abcdef")
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = before
    written = (tmp_path / "config.yaml").read_text() + (tmp_path / "log.txt").read_text()
    assert "wordword" not in written and "0123456789abcdef" not in written
    assert OmegaConf.load(tmp_path / "config.yaml")["shards"]["b"] == "s3://***@bucket/cache/b"
    assert cfg.shards.b == f"{LOGIN}/b" and "3 clips" in written


def test_a_command_that_is_refused_tells_no_login() -> None:
    pytest.importorskip("aiohttp")
    words = [sys.executable, "-m", "pipeline.shards", "describe", "http://user:wordword@127.0.0.1:9/cache"]
    env = {**os.environ, "PYTHONPATH": str(HOME)}
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 2 and "wordword" not in done.stdout + done.stderr and "127.0.0.1:9" in done.stderr
