"""Every command of the README is run as it is written: in a folder that has what its words name, made small.

A command for which there is no way below fails: whoever writes one says here how it is run.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from packaging.requirements import Requirement

from pipeline.audio.codecs.embedded import EMBEDDED_FILE
from pipeline.check import check_settings
from pipeline.common.errors import InputError
from pipeline.common.paths import CONF
from pipeline.config.cli import compose
from pipeline.models.patterns import NAMES as PATTERNS
from pipeline.shards import positional_to_overrides as words_of_shards
from tests.helpers.corpora import pack
from tests.helpers.download_server import Site, serve
from tests.training.test_train import free_port, fresh_env

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python -m|deepspeed|sbatch(?=[^`]+\.sbatch)|make|pip install|jobs/\S+\.sh) [^`]*)`")
SMALL = {  # what makes a command small enough for a test, where it does not say otherwise itself
    "preprocess": "codec=encodec_embedded codec.codebooks=2 embedder=encodecmae_tiny samples_per_shard=6 "
    "encoder_workers=1 decode_workers=0 devices=cpu",
    "train": "codec=encodec_embedded codec.codebooks=2 model=tiny model.width=32 model.layers=2 tracking=none "
    "trainer.steps=2 trainer.micro_batch=4 audio_samples.clips=0",
    "evaluate": "n=4 resamples=10 temperatures=[1.0]",
    "compare": "n=4 resamples=10 benchmark_batch=2",
    "report": "n=2 temperatures=[1.0] codebooks=[1,2] num_interpolations=1 steps=3",
    "reconstruct": "codec=encodec_embedded codebooks=[1,2]",
    "dashboard": "dry_run=true",
}
SHELL = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def commands() -> list[str]:
    """The commands of bash blocks, without comments, and those among the prose, each once."""
    blocks = "\n".join(text for language, text in FENCED.findall(README) if language == "bash")
    lines = [re.sub(r"\s+# .*", "", line) for line in blocks.replace("\\\n", " ").splitlines()]
    lines += [" ".join(found.split()) for found in INLINE.findall(FENCED.sub("", README))]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return list(dict.fromkeys(part for part in parts if part))


@dataclass(frozen=True)
class Place:
    """The folder in which commands are run, and where NSynth is downloaded from."""

    root: Path
    site: Site

    def small(self, name: str, words: list[str]) -> list[str]:
        """The words of a command, and behind them those that make it small and that it does not say itself."""
        said = {word.lstrip("+").split("=", 1)[0] for word in words}
        more = [*SMALL.get(name, "").split(), *(["data.seconds=0.4"] if "data=nsynth" in words else [])]
        return [*words, *(word for word in more if word.split("=", 1)[0] not in said)]

    def task(self, name: str, words: list[str]) -> None:
        """An entry point's task in this process, for a command line; it has to end well."""
        module = importlib.import_module(f"pipeline.{name}")
        assert module.main.task(compose(name, words)) in (0, None)


def tone(file: Path, pitch: float, seconds: float = 0.5) -> None:
    """A sound that fades."""
    time = np.arange(round(24_000 * seconds)) / 24_000
    file.parent.mkdir(exist_ok=True)
    soundfile.write(file, 0.4 * np.sin(2 * np.pi * pitch * time) * np.exp(-3 * time), 24_000)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, nsynth_folder: Path) -> Iterator[Place]:
    """What the README's words name: the repository, a corpus, its cache (DIR), runs on it (RUN), a codec, sounds."""
    root = tmp_path_factory.mktemp("readme")
    for name in ("pipeline", "conf", "jobs", "tests", "Makefile", "pyproject.toml"):
        (root / name).symlink_to(ROOT / name)
    for number, name in enumerate(("a.wav", "FOLDER/d.wav", "FOLDER/e.wav")):
        tone(root / name, 220 * 2 ** (number / 5), 1.5)
    (root / "CODEC").mkdir()
    (root / "CODEC" / EMBEDDED_FILE).symlink_to(ROOT / "pipeline" / "assets" / EMBEDDED_FILE)
    (root / "data").mkdir()
    (root / "data" / "nsynth").symlink_to(nsynth_folder)
    files = {}
    for split in ("train", "valid", "test"):
        members = [file for file in sorted((nsynth_folder / f"nsynth-{split}").rglob("*.*")) if file.is_file()]
        inside: dict[str, bytes | Path] = {str(file.relative_to(nsynth_folder)): file for file in members}
        packed = pack(root / f"nsynth-{split}.jsonwav.tar.gz", inside)
        files[f"/nsynth/{packed.name}"] = packed.read_bytes()
    with pytest.MonkeyPatch.context() as patch, serve(Site(files)) as site:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            patch.setenv(name, "")  # so that what training sets is taken back
            patch.delenv(name)
        patch.chdir(root)
        handlers = logging.getLogger().handlers[:]
        found = Place(root, site)
        found.task("preprocess", found.small("preprocess", ["data=nsynth"]))
        found.task("train", found.small("train", ["+exp=delay_gpt2"]))
        logging.getLogger().handlers[:] = handlers
        (root / "DIR").symlink_to("shards/nsynth")
        (root / "RUN").symlink_to("runs/delay_gpt2")
        (root / "runs" / "flatten_gpt2").symlink_to("delay_gpt2")
        (root / "quickstart").mkdir()
        (root / "quickstart" / "run").symlink_to(root / "RUN")
        (root / "quickstart" / "shards").symlink_to(root / "DIR")
        (root / "runs" / "study").mkdir()
        for pattern in PATTERNS:
            (root / "runs" / "study" / pattern).symlink_to(root / "RUN")
        found.task("generate", ["run=RUN", "prompt=a.wav", "out=b.wav", "seconds=0.4"])
        yield found


# ---- ways to run a command -------------------------------------------------------------------------------------------
def run_entry(place: Place, name: str, words: list[str]) -> None:
    """The entry point's task here; what it says to write is there then."""
    place.task(name, place.small(name, words_of_shards(words) if name == "shards" else words))
    for word in words:
        assert not word.startswith("out=") or Path(word.removeprefix("out=")).exists()


def run_download(place: Place, name: str, words: list[str]) -> None:
    """NSynth comes from a server of this machine; a publisher that cannot be reached is told at once."""
    there = [*words, "pause=0.01", "data.root=downloaded"]
    if "data=nsynth" in words:
        place.task(name, [*there, f"addresses.nsynth={place.site.url}/nsynth"])
        assert (place.root / "downloaded" / "nsynth-valid.jsonwav.tar.gz").is_file()
    closed = [f"addresses.{key}=http://127.0.0.1:9" for key in compose(name, words).addresses]
    assert importlib.import_module("pipeline.download").main.task(compose(name, [*there, *closed])) == 1


def run_export(place: Place, name: str, words: list[str]) -> None:
    """Without a network it is refused by name before any work; without the push it is done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(InputError, match="push=OWNER/NAME"):
            place.task(name, words)
    place.task(name, [word for word in words if not word.startswith("push=")])


def run_demo(place: Place, name: str, words: list[str]) -> None:
    """Its settings name what is there (see below for the page itself)."""
    cfg = compose(name, words)
    assert cfg.run and (cfg.examples == "auto" or any((place.root / cfg.examples[0]).iterdir()))


def run_check(place: Place, name: str, words: list[str]) -> None:
    """The settings of the command behind it are right."""
    assert check_settings(words[0], words[1:]) is None


def run_sweep(words: list[str]) -> None:
    """Each combination composes, under a launcher that exists."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    on_slurm = "hydra/launcher=slurm" in words
    if on_slurm:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install hydra-submitit-launcher")
    one = [re.sub(r"^(\w[\w.]*=)([^,\[]+),.*", r"\1\2", word) for word in words]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = hydra_compose("train", one, return_hydra_config=True)
    assert not on_slurm or (cfg.hydra.launcher.partition == "gpu" and cfg.run == f"runs/lr-{cfg.optim.lr}")
    assert on_slurm or cfg.run == f"runs/study/{cfg.pattern.name}"


def run_module(place: Place, words: list[str]) -> None:
    """`python -m module words`: an entry point, a tool or a benchmark."""
    module, *rest = words
    assert importlib.util.find_spec(module), f"there is no {module}"
    room, _, name = module.rpartition(".")
    if rest[:1] == ["-m"]:
        run_sweep(rest[1:])
    elif room == "pipeline" and rest:  # without words it is named among the prose
        runs = {"download": run_download, "export": run_export, "demo": run_demo, "check": run_check}
        runs.get(name, run_entry)(place, name, rest)
    elif name == "memory_table":
        with contextlib.redirect_stdout(io.StringIO()) as said, pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", words)
            importlib.import_module(module).main()
        rows = [line for line in said.getvalue().splitlines() if re.match(r"\| \w+ \| [\d,]+ M", line)]
        assert [line for line in rows if line in README] == rows[len(rows) // 2 :]  # the table of eight GPUs
    else:  # of minutes
        source = Path(str(importlib.util.find_spec(module).origin)).read_text()  # type: ignore[union-attr]
        assert all(f'"{word}"' in source for word in rest if word.startswith("--"))


def run_deepspeed(place: Place, words: list[str]) -> None:
    """Its settings compose (see below for the launcher)."""
    at = words.index("pipeline/train.py")
    compose("train", words[at + 1 :])


def run_pip(place: Place, words: list[str]) -> None:
    """What is installed is this package with extras that it has, or a package that one of its extras names."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    known = {Requirement(line).name for lines in [project["dependencies"], *extras.values()] for line in lines}
    known.add("tinysoundfont")  # outside of its extra, as pyproject.toml says
    asked = [word for word in words if not word.startswith("-")]
    assert asked and words[0] == "install"
    for word in asked[1:]:
        here, _, inside = word.partition("[")
        if here == ".":
            assert {name for name in inside.rstrip("]").split(",") if name} <= set(extras)
        else:
            assert Requirement(word).name in known


def run_hub(place: Place, words: list[str]) -> None:
    """Its client is here, and what it fetches is what our settings name."""
    assert words[0] == "download" and importlib.util.find_spec("huggingface_hub.cli")
    named = [compose("train", []).model.pretrained, compose("preprocess", []).embedder.source]
    assert words[1] in named


def run_make(place: Place, words: list[str]) -> None:
    """Make knows what to do, and every command of ours in it composes."""
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, rest in re.findall(r"python -m pipeline\.(\w+) (.*)", done.stdout):
        compose(name, shlex.split(rest))
    for rest in re.findall(r"pipeline/train\.py (.*)", done.stdout):
        compose("train", shlex.split(rest))


def run_script(place: Place, words: list[str]) -> None:
    """`jobs/submit.sh` as a dry run, whose words the entry points take; others as they are."""
    submits = words[0].endswith("submit.sh")
    words = ["delay_gpt2" if word == "EXPERIMENT" else word for word in words]
    site = place.root / "site.env"  # not the empty .venv that another command has made there
    site.write_text((ROOT / "jobs" / "site.env").read_text() + f"VENV={shlex.quote(sys.prefix)}\n")
    done = subprocess.run(
        ["bash", *words, *(["--dry-run"] if submits else [])], cwd=place.root, capture_output=True, text=True,
        env={**os.environ, "SITE": str(site)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("sbatch")]
    assert len(steps) == 5 or not submits
    for step in steps:
        run_sbatch(place, step[1:])


def run_sbatch(place: Place, words: list[str]) -> None:
    """The job is there, and its entry point takes the words behind it."""
    script = next(word for word in words if word.endswith(".sbatch"))
    assert (place.root / script).is_file()
    name = Path(script).stem
    if (CONF / f"{name}.yaml").is_file():
        compose(name, words[words.index(script) + 1 :])


def run_shell(place: Place, words: list[str]) -> None:
    """A virtual environment is made (pip left out, which takes its time) and entered."""
    if "venv" in words:
        subprocess.run([sys.executable, *words[1:], "--without-pip"], cwd=place.root, check=True)
    subprocess.run(["bash", "-ec", ". .venv/bin/activate && [ $VIRTUAL_ENV ]"], cwd=place.root, check=True)


WAYS: dict[str, Callable[[Place, list[str]], None]] = {
    r"python -m ": lambda place, words: run_module(place, words[2:]),
    r"deepspeed .*pipeline/train\.py ": run_deepspeed,
    r"pip install ": lambda place, words: run_pip(place, words[1:]),
    r"hf ": lambda place, words: run_hub(place, words[1:]),
    r"make [\w-]+$": lambda place, words: run_make(place, words[1:]),
    r"jobs/\w+\.sh\b": run_script,
    r"sbatch .*\.sbatch\b": run_sbatch,
    r"python3 -m venv \.venv$|\. \.venv/bin/activate$": run_shell,
}


@pytest.mark.parametrize("command", commands())
def test_a_command_works_as_it_is_written(command: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = [way for pattern, way in WAYS.items() if re.match(pattern, command)]
    assert len(ways) == 1, f"say in {__file__} how `{command}` is run"
    monkeypatch.chdir(place.root)
    ways[0](place, shlex.split(command))


@pytest.mark.parametrize("block", [text for language, text in FENCED.findall(README) if language == "python"])
def test_python_works_as_it_is_written(block: str, place: Place, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(place.root)
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_what_troubleshooting_quotes_is_what_is_said() -> None:
    """Messages of ours stand in the source as they are quoted; those of others are known."""
    others = {"No slot '-1' specified on host 'localhost'", "Port 29500 already in use"}
    source = "\n".join(file.read_text() for file in (ROOT / "pipeline").rglob("*.py"))
    table = README.partition("## Troubleshooting")[2].partition("## ")[0]
    quoted = {
        text for row in re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE) for text in re.findall(r"`([^`]+)`", row)
    }
    assert len(quoted - others) > 3
    for message in quoted - others:
        parts = [part for part in re.split(r"'?\.\.\.'?|manifest\.json", message) if len(part) > 3]
        assert parts and all(part.strip(" ();") in source for part in parts), message


def test_every_block_is_of_a_known_language() -> None:
    assert {language for language, _ in FENCED.findall(README)} <= {"", "bash", "python", "bibtex"}
    assert len(commands()) > 30


@pytest.mark.parametrize("command", ["preprocess data=nsynth", "reconstruct audio=a.wav"])
def test_without_a_network_what_is_missing_is_named(
    command: str, place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Meta's weights are neither here nor to be had: one line says so, and what to do."""
    monkeypatch.chdir(place.root)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # made by the first request, with the proxies of that moment
    name, *words = command.split()
    with pytest.raises(InputError, match=r"codec=encodec_24khz: .*codec.repository=FOLDER"):
        place.task(name, [*words, "out=elsewhere", *(["embedder=encodecmae_tiny"] if name == "preprocess" else [])])


# ---- as a user starts them -------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in commands() if "pipeline/train.py " in command])
def test_deepspeed_trains_as_it_is_written(
    command: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher, *words = shlex.split(command)
    if launcher != "deepspeed":
        pytest.skip("a cluster's: tests/slurm runs it")
    if "shards=shards/mine" in words and not (place.root / "shards" / "mine").exists():
        mine = ["data=folder", "data.root=FOLDER", "data.segment_seconds=0.4", "data.shortest_seconds=0.1"]
        monkeypatch.chdir(place.root)
        place.task("preprocess", place.small("preprocess", [*mine, "out=shards/mine"]))
    at = words.index("pipeline/train.py")
    words = [*words[:at], "--master_port", str(free_port()), words[at], *place.small("train", words[at + 1 :])]
    done = subprocess.run(
        [str(Path(sys.executable).parent / launcher), *words, f"run={tmp_path / 'run'}"],
        env=fresh_env(tmp_path), cwd=place.root, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in commands() if "pipeline.demo " in command])
def test_the_page_opens_as_it_is_written(command: str, place: Place, tmp_path: Path) -> None:
    words = shlex.split(command)[1:]
    process = subprocess.Popen(
        [sys.executable, *words, "port=0"], env={**SHELL, "TMPDIR": str(tmp_path)}, cwd=place.root,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout
    try:
        said = ""
        while not (address := re.search(r"open (http://\S+)\s", said)):
            line = process.stdout.readline()
            assert line, said
            said += line
        with urllib.request.urlopen(f"{address[1]}/healthz", timeout=60) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands() if re.match(r"python -m tests\.benchmarks\.", c)])
def test_a_benchmark_starts(command: str) -> None:
    """Its own description, which takes all its imports; the figures take their minutes."""
    module = shlex.split(command)[2]
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
