"""Every command of README.md, CONTRIBUTING.md and docs/ is run as it is written, in a folder that has what it names.

ENTRIES says how each command is run. A command that is not run for real has a reason there: it is too large for a test,
or needs a hub, a cluster, a GPU or a registry. Its settings are then composed or parsed. A command without an entry
fails, and so does an entry that no document needs.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from pipeline.check import check_settings
from pipeline.common.errors import InputError
from pipeline.config.cli import CONF, compose, load_settings
from pipeline.generation.settings import GenerateSettings
from pipeline.preprocessing.settings import PreprocessSettings
from pipeline.shards import positional_to_overrides
from tests.helpers.documented_folder import ENVIRONMENT, Sandbox, build_sandbox
from tests.helpers.documents import COMMAND_DOCUMENTS, ROOT, all_commands, blocks_of
from tests.helpers.listening import rate, save_answers
from tests.helpers.ranks import free_port, fresh_env

COMMANDS = all_commands()
SWITCHES = ("--growth", "--music", "--again")
SMALLEST = {  # each benchmark at its smallest size, for settings that the command does not give itself
    "bench_all_codecs": "--clips 1",
    "bench_codec": "--clips 1 --rounds 1",
    "bench_loader": "--clips 64 --rounds 1 --shards 2 4",
    "bench_memory": "--micro-batch 1 --deepspeed zero0",
    "bench_preprocess": f"--files {16 * (os.cpu_count() or 1) + 32}",  # batches of 8 on each core, after two to start
    "bench_prompt_frames": "notes --clips 60 --steps 2 --n 4",
    "bench_sampling": "--steps 8 --rounds 1 --batches 1",
    "bench_train": "--steps 2 --batch 1",
}


EVENING = r"python -m pipeline\.\w+ .*(shards/sounds|runs/scratch|runs/finetuned|=sounds\b)"


def _smallest(command: str) -> str:
    """A benchmark's command at its smallest size, with its switches."""
    arguments = command.split()
    switches = [argument for argument in arguments if argument in SWITCHES]
    return " ".join([*arguments[:3], *switches, SMALLEST[arguments[2].rpartition(".")[2]]])


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, nsynth_folder: Path) -> Iterator[Sandbox]:
    """A folder with everything that the documents name: corpora, a dataset, runs, a codec, sounds."""
    with build_sandbox(tmp_path_factory.mktemp("docs"), nsynth_folder) as sandbox:
        yield sandbox


# ---- ways to run a command -------------------------------------------------------------------------------------------
def run_command(sandbox: Sandbox, arguments: list[str]) -> None:
    """`python -m pipeline.NAME settings`, shrunk, in this process; the file or folder of out= exists afterwards."""
    name, settings = arguments[2].rpartition(".")[2], arguments[3:]
    sandbox.run(name, sandbox.shrink(name, positional_to_overrides(settings) if name == "shards" else settings))
    for setting in settings:
        assert not setting.startswith("out=") or Path(setting.removeprefix("out=")).exists()


def reembed(sandbox: Sandbox, arguments: list[str]) -> None:
    """The settings compose; with the embedder that ships instead, the prompts of the dataset are computed again."""
    compose("preprocess", arguments[3:])
    run_command(
        sandbox,
        [*(argument for argument in arguments if not argument.startswith("embedder=")), "embedder=encodecmae_tiny"],
    )


def compose_preprocess(sandbox: Sandbox, arguments: list[str]) -> None:
    """The settings are right."""
    load_settings(PreprocessSettings, arguments[3:])


def train_briefly(sandbox: Sandbox, arguments: list[str]) -> None:
    """The command runs, with two steps."""
    run_command(sandbox, [*(each for each in arguments if not each.startswith("trainer.steps=")), "trainer.steps=2"])


def compose_generate(sandbox: Sandbox, arguments: list[str]) -> None:
    """The settings are right."""
    load_settings(GenerateSettings, arguments[3:])


def run_help(sandbox: Sandbox, arguments: list[str]) -> None:
    """The command prints its help, or the list of commands, and exits with 0."""
    done = subprocess.run([sys.executable, *arguments[1:]], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0 and "python -m pipeline" in done.stdout, done.stderr


def run_download(sandbox: Sandbox, arguments: list[str]) -> None:
    """NSynth comes from a server on this machine; a publisher that refuses connections ends with exit code 1."""
    settings = [*arguments[3:], "pause=0.01", "data.root=downloaded"]
    if "data=nsynth" in settings:
        sandbox.run("download", [*settings, f"addresses.nsynth={sandbox.site.url}/nsynth"])
        assert (sandbox.root / "downloaded" / "nsynth-valid.jsonwav.tar.gz").is_file()
    closed = [f"addresses.{key}=http://127.0.0.1:9" for key in compose("download", settings).addresses]
    assert importlib.import_module("pipeline.download").main.task([*settings, *closed]) == 1


def run_export(sandbox: Sandbox, arguments: list[str]) -> None:
    """The push is refused without a network, in one line that names it; the export itself is done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(InputError, match="push=OWNER/NAME"):
            sandbox.run("export", arguments[3:])
    sandbox.run("export", [argument for argument in arguments[3:] if not argument.startswith("push=")])


def compose_demo(sandbox: Sandbox, arguments: list[str]) -> None:
    """The settings compose, and the examples that they name exist."""
    cfg = compose("demo", arguments[3:])
    assert cfg.run and (cfg.examples == "auto" or any((sandbox.root / cfg.examples).iterdir()))


def run_ratings(sandbox: Sandbox, arguments: list[str]) -> None:
    """The answers of a listener to the page of a listening test are read."""
    sandbox.run("report", ["run=RUN", "listening_test=true", "n=1"])
    save_answers(sandbox.root, rate(sandbox.root / "RUN" / "listening_test.html", "Ann", lambda *_: 100))
    run_command(sandbox, arguments)


def find_example(sandbox: Sandbox, arguments: list[str]) -> None:
    """The plug-in is an example of docs/extending.md."""
    (module,) = re.findall(r"plugins=\[(\w+)\]", " ".join(arguments))
    assert f"\n# {module}.py\n" in (ROOT / "docs" / "extending.md").read_text()


def check_command(sandbox: Sandbox, arguments: list[str]) -> None:
    """The settings that `pipeline.check` is given are right."""
    assert check_settings(arguments[3], arguments[4:]) is None


def check_evening(sandbox: Sandbox, arguments: list[str]) -> None:
    """The settings of a command of docs/your-own-sounds.md are right."""
    name, settings = arguments[2].rpartition(".")[2], arguments[3:]
    assert check_settings(name, positional_to_overrides(settings) if name == "shards" else settings) is None


def compose_sweep(sandbox: Sandbox, arguments: list[str]) -> None:
    """The first combination composes, with a launcher that is installed and a run folder of its own."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    settings = arguments[4:]
    on_slurm = "hydra/launcher=slurm" in settings
    if on_slurm:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install hydra-submitit-launcher")
    first = [re.sub(r"^(\w[\w.]*=)([^,\[]+),.*", r"\1\2", setting) for setting in settings]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = hydra_compose("train", first, return_hydra_config=True)
    assert not on_slurm or (cfg.hydra.launcher.partition == "gpu" and cfg.run == f"runs/lr-{cfg.optim.lr}")
    assert on_slurm or cfg.run == f"runs/study/{cfg.pattern.name}"


def parse_arguments(sandbox: Sandbox, arguments: list[str]) -> None:
    """The arguments of a program with argparse are parsed by its own parser, and nothing more is run."""
    module = importlib.import_module(arguments[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", arguments[2:])
        patch.setattr("argparse.ArgumentParser.parse_args", _parse_and_stop)
        with pytest.raises(_Parsed):
            module.main()


class _Parsed(Exception):
    """Raised after arguments were parsed."""


def _parse_and_stop(parser: Any, arguments: list[str] | None = None) -> None:
    _, unknown = parser.parse_known_args(arguments)
    assert not unknown
    raise _Parsed


def run_memory_table(sandbox: Sandbox, arguments: list[str]) -> None:
    """The tool prints the table of 8 GPUs that the benchmarks show."""
    with contextlib.redirect_stdout(io.StringIO()) as output, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", arguments[2:])
        importlib.import_module(arguments[2]).main()
    table = output.getvalue().partition("8 GPUs")[2].partition("\n\n")[2].strip()
    assert table.startswith("| model |") and table in (ROOT / "docs" / "benchmarks.md").read_text()


def find_tests(sandbox: Sandbox, arguments: list[str]) -> None:
    """The paths that pytest is given hold tests."""
    for argument in arguments[3:]:
        path = ROOT / argument
        assert path.name.startswith("test_") or list(path.glob("test_*.py")), argument


def compose_deepspeed(sandbox: Sandbox, arguments: list[str]) -> None:
    """The settings of a training that the launcher starts compose."""
    compose("train", arguments[arguments.index("pipeline/train.py") + 1 :])


def check_requirements(sandbox: Sandbox, arguments: list[str]) -> None:
    """What pip installs is this package with extras that it has, or a package that one of its extras names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    known = {Requirement(line).name for lines in [project["dependencies"], *extras.values()] for line in lines}
    known.add("tinysoundfont")  # not in its extra, as pyproject.toml explains
    requirements = [argument for argument in arguments[2:] if not argument.startswith("-")]
    assert requirements and arguments[1] == "install"
    for requirement in requirements:
        package, _, chosen = requirement.partition("[")
        if package == ".":
            assert {name for name in chosen.rstrip("]").split(",") if name} <= set(extras)
        else:
            assert Requirement(requirement).name in known


def check_hub_name(sandbox: Sandbox, arguments: list[str]) -> None:
    """The hub's client is installed, and the repository is one that the settings name."""
    assert arguments[1] == "download" and importlib.util.find_spec("huggingface_hub.cli")
    assert arguments[2] in [compose("train", []).model.pretrained, compose("preprocess", []).embedder.source]


def dry_run_make(sandbox: Sandbox, arguments: list[str]) -> None:
    """Make knows the target, and the settings of the commands in it compose."""
    done = subprocess.run(["make", "-n", *arguments[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, rest in re.findall(r"python -m pipeline\.(\w+) (.*)", done.stdout):
        compose(name, shlex.split(rest))
    for rest in re.findall(r"pipeline/train\.py (.*)", done.stdout):
        compose("train", shlex.split(rest))


def check_image(sandbox: Sandbox, arguments: list[str]) -> None:
    """The recipe of the image exists."""
    assert (ROOT / arguments[-1]).is_file()


def dry_run_submit(sandbox: Sandbox, arguments: list[str]) -> None:
    """`jobs/submit.sh --dry-run` prints five jobs, whose settings compose."""
    arguments = ["delay_gpt2" if argument == "EXPERIMENT" else argument for argument in arguments]
    script = next(i for i, argument in enumerate(arguments) if argument.endswith(".sh"))
    variables = dict(argument.split("=", 1) for argument in arguments[:script] if "CONTAINER" not in argument)
    output = run_script(sandbox, [*arguments[script:], "--dry-run"], **variables)
    steps = [shlex.split(line) for line in output.splitlines() if line.startswith("sbatch")]
    assert len(steps) == (3 if "--from" in arguments else 5)
    assert all(f"--{name.lower()}={value}" in steps[0] for name, value in variables.items() if name == "QOS")
    for step in steps:
        compose_job(sandbox, step)


def run_script(sandbox: Sandbox, arguments: list[str], **variables: str) -> str:
    """A script of jobs/, as it is; returns what it prints."""
    site = sandbox.root / "site.env"  # names this environment: another command makes an empty .venv
    site.write_text((ROOT / "jobs" / "site.env").read_text() + f"VENV={shlex.quote(sys.prefix)}\n")
    environment = {**os.environ, "SITE": str(site), **variables}
    done = subprocess.run(["bash", *arguments], cwd=sandbox.root, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def compose_job(sandbox: Sandbox, arguments: list[str]) -> None:
    """The job script exists, and the settings after it compose."""
    script = next(argument for argument in arguments if argument.endswith(".sbatch"))
    assert (sandbox.root / script).is_file()
    if (CONF / f"{Path(script).stem}.yaml").is_file():
        compose(Path(script).stem, arguments[arguments.index(script) + 1 :])


def make_environment(sandbox: Sandbox, arguments: list[str]) -> None:
    """A virtual environment is made (without pip, which takes its time) and activated."""
    if "venv" in arguments:
        subprocess.run([sys.executable, *arguments[1:], "--without-pip"], cwd=sandbox.root, check=True)
    subprocess.run(["bash", "-ec", ". .venv/bin/activate && [ $VIRTUAL_ENV ]"], cwd=sandbox.root, check=True)


@dataclass(frozen=True)
class Entry:
    """How commands whose beginning matches a pattern are run; not_run_because: why not for real, if they are not."""

    pattern: str
    run: Callable[[Sandbox, list[str]], Any]
    not_run_because: str = ""


ENTRIES = (
    Entry(r"python -m pipeline$|python -m pipeline\.\w+ --help$", run_help),
    Entry(r"python -m pipeline\.(NAME|train)$", lambda *_: None, "a part of a command"),
    Entry(r"python -m pipeline\.download data=nsynth", run_download),
    Entry(r"python -m pipeline\.download data=jamendo", run_download, "156 GB that only its publisher has"),
    Entry(r"python -m pipeline\.export .*push=", run_export, "a hub: tests/hub pushes to a server of its own"),
    Entry(r"python -m pipeline\.\w+ .*plugins=", find_example, "an example: test_extending.py runs all of them"),
    Entry(r"python -m pipeline\.demo ", compose_demo, "serves until it is stopped: a slow test below opens the page"),
    Entry(r"python -m pipeline\.check ", check_command),
    Entry(r"python -m pipeline\.train -m ", compose_sweep, "one training per combination; Slurm for some"),
    Entry(r"python -m pipeline\.preprocess .*data\.dataset=", compose_preprocess, "a hub: local datasets are read"),
    Entry(r"python -m pipeline\.preprocess .*codec=mimi", compose_preprocess, "the hub: tests have a small Mimi"),
    Entry(r"python -m pipeline\.preprocess .*embedder=clap", compose_preprocess, "the hub: tests have a small CLAP"),
    Entry(r"python -m pipeline\.generate .*prompt_text=", compose_generate, "the hub: tests have a small CLAP"),
    Entry(r"python -m pipeline\.preprocess .*reembed=", reembed, "weights from the hub: the small embedder runs"),
    Entry(r"python -m pipeline\.compare .*ratings=", run_ratings),
    Entry(EVENING, check_evening, "minutes each: tests/test_your_own_sounds.py runs them on real recordings"),
    Entry(r"python -m pipeline\.compare .*protocol=notes", check_evening, "the rendered notes of the quickstart"),
    Entry(r"python -m pipeline\.train .*trainer\.steps=1200", train_briefly),
    Entry(r"python -m pipeline\.\w+ ", run_command),
    Entry(r"python -m pipeline\.tools\.memory_table", run_memory_table),
    Entry(r"python -m pipeline\.tools\.fit_codec ", parse_arguments, "minutes: tests/audio/test_fit_codec.py fits one"),
    Entry(r"python -m tests\.benchmarks\.\w+", parse_arguments, "minutes: a slow test runs it at its smallest size"),
    Entry(r"python -m pytest ", find_tests, "these are tests themselves"),
    Entry(r"deepspeed .*pipeline/train\.py\b", compose_deepspeed, "a slow test trains by the launcher"),
    Entry(r"DS_ACCELERATOR=cpu deepspeed --num_gpus N \.\.\.$", lambda *_: None, "a part of a command"),
    Entry(r"pip install ", check_requirements, "changes the environment, and needs a registry"),
    Entry(r"hf download ", check_hub_name, "needs the hub"),
    Entry(r"make [\w-]+$", dry_run_make, "minutes each"),
    Entry(r"apptainer build ", check_image, "needs apptainer"),
    Entry(r"([A-Z_]+=\S+ )*jobs/submit\.sh ", dry_run_submit, "needs a cluster: tests/slurm starts one and runs it"),
    Entry(r"jobs/sync_wandb\.sh ", run_script),
    Entry(r"sbatch .*\.sbatch\b", compose_job, "needs a cluster: tests/slurm starts one and runs it"),
    Entry(r"python3 -m venv \.venv$|\. \.venv/bin/activate$", make_environment),
)


def entry_of(command: str) -> Entry | None:
    """The first entry whose pattern matches."""
    return next((entry for entry in ENTRIES if re.match(entry.pattern, command)), None)


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_command_works(command: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is run, or its settings are composed and the reason is printed."""
    entry = entry_of(command)
    assert entry, f"say in ENTRIES of {__file__} how `{command}` is run"
    monkeypatch.chdir(sandbox.root)
    if entry.not_run_because:
        print(f"not run for real: {entry.not_run_because}")
    entry.run(sandbox, shlex.split(command))


def test_every_entry_is_needed() -> None:
    """Each entry matches a command of the documents."""
    used = {entry_of(command) for command in COMMANDS}
    assert not [entry.pattern for entry in ENTRIES if entry not in used]
    assert len(COMMANDS) > 60


_PYTHON = [text for document in COMMAND_DOCUMENTS for language, text in blocks_of(document) if language == "python"]


@pytest.mark.parametrize("block", _PYTHON)
def test_documented_python_works(
    block: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Python block runs as it is written, and prints something."""
    monkeypatch.chdir(sandbox.root)
    exec(compile(block, "docs", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("command", ["preprocess data=nsynth", "reconstruct audio=a.wav"])
def test_missing_weights_are_named_without_network(
    command: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where Meta's weights are neither on disk nor reachable, one line names the setting that takes a folder."""
    monkeypatch.chdir(sandbox.root)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # the next request makes one, with these proxies
    name, *settings = command.split()
    with pytest.raises(InputError, match=r"codec=encodec_24khz: .*codec.weights_dir=FOLDER"):
        tiny = ["embedder=encodecmae_tiny"] if name == "preprocess" else []
        sandbox.run(name, [*settings, "out=elsewhere", *tiny])


# ---- as a user starts them -------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("deepspeed ") and "+exp=" in c])
def test_deepspeed_trains(command: str, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher starts a shrunk training, which writes an export."""
    launcher, *arguments = shlex.split(command)
    monkeypatch.chdir(sandbox.root)
    if "shards=shards/mine" in arguments and not (sandbox.root / "shards" / "mine").exists():
        folder = ["data=folder", "data.root=FOLDER", "data.segment_seconds=0.4", "data.min_seconds=0.1"]
        sandbox.run("preprocess", sandbox.shrink("preprocess", [*folder, "out=shards/mine"]))
    at = arguments.index("pipeline/train.py")
    arguments = [
        *arguments[:at],
        "--master_port",
        str(free_port()),
        arguments[at],
        *sandbox.shrink("train", arguments[at + 1 :]),
    ]
    done = subprocess.run(
        [str(Path(sys.executable).parent / launcher), *arguments, f"run={tmp_path / 'run'}"],
        env=fresh_env(tmp_path), cwd=sandbox.root, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if "pipeline.demo " in c and "plugins=" not in c])
def test_demo_page_opens(command: str, sandbox: Sandbox, tmp_path: Path) -> None:
    """The page is served, answers GET /healthz, and ends with 0 on Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, *shlex.split(command)[1:], "port=0"], env={**ENVIRONMENT, "TMPDIR": str(tmp_path)},
        cwd=sandbox.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout
    try:
        output = ""
        while not (address := re.search(r"open (http://\S+)\s", output)):
            line = process.stdout.readline()
            assert line, output
            output += line
        with urllib.request.urlopen(f"{address[1]}/healthz", timeout=60) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", sorted({_smallest(c) for c in COMMANDS if "tests.benchmarks." in c}))
def test_benchmark_runs_at_its_smallest_size(benchmark: str) -> None:
    """The benchmark prints its table, with the switches of the documented command and the smallest numbers."""
    command = [sys.executable, *benchmark.split()[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 2, done.stdout
