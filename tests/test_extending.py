"""docs/extending.md: every example runs from outside the package, as a plug-in of the real commands."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pipeline.common.metrics_file import read_metrics
from pipeline.common.registry import ENTRY_POINTS
from tests.helpers.documented_folder import write_tone
from tests.helpers.warm_python import run_python

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text()
BLOCK = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)  # its first line is its file name
KINDS = re.findall(r"^\| an? (.+?) \|", TEXT, re.MULTILINE)
SECTIONS = {
    title.lower().removeprefix("an ").removeprefix("a "): dict(BLOCK.findall(body))
    for title, body in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
}
EXTENSIONS = {kind: files for kind, files in SECTIONS.items() if files}


def modules(files: Mapping[str, str]) -> list[str]:
    """The names of the modules among files, tests excluded."""
    return [Path(name).stem for name in files if name.endswith(".py") and not name.startswith("test_")]


def name_of(kind: str) -> str:
    """The name of the example of a kind, which is also that of its module and its yaml."""
    (name,) = modules(EXTENSIONS[kind])
    return name


def choice_of(kind: str) -> str:
    """The name of the yaml of a kind's example."""
    (file,) = (name for name in EXTENSIONS[kind] if name.startswith("conf/"))
    return Path(file).stem


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the package with the files of all examples, three recordings and a table that lists them."""
    root = tmp_path_factory.mktemp("extensions")
    for files in EXTENSIONS.values():
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)
    rows = [("a.wav", "train"), ("b.wav", "train"), ("c.wav", "valid"), ("d.wav", "valid")]
    for number, (name, _) in enumerate(rows):
        write_tone(root / "sounds" / name, 220 * 2 ** (number / 4), 1.0)
    (root / "sounds" / "clips.csv").write_text("path,split,label\n" + "".join(f"{a},{b},tone\n" for a, b in rows))
    return root


RUNNER = """
import json, runpy, sys
for command, *arguments in json.load(sys.stdin):
    sys.argv = [command, *arguments]
    try:
        runpy.run_module(command, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, (command, end.code)
"""


def run(folder: Path, *commands: Sequence[str]) -> None:
    """Run modules one after another in one program in the folder; each has to succeed."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    done = run_python(["-c", RUNNER], cwd=folder, env=environment, stdin=json.dumps(commands))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_kind_has_an_example_of_one_file() -> None:
    """A new extension is one module, one yaml where it is a choice, and one test."""
    for kind, files in EXTENSIONS.items():
        assert len(modules(files)) == 1, kind
        assert sum(name.startswith("test_") for name in files) == 1, kind
        assert sum(name.startswith("conf/") for name in files) == len(files) - 2 <= 1, kind


def test_the_tests_of_the_examples_pass(folder: Path) -> None:
    run(folder, ["pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)])


@pytest.fixture(scope="module")
def plugins() -> str:
    """The setting that adds all examples to a command."""
    return f"plugins=[{','.join(name for files in EXTENSIONS.values() for name in modules(files))}]"


@pytest.fixture(scope="module")
def trained(folder: Path, plugins: str) -> Path:
    """A run of the examples: its dataset and its model are made by the real commands."""
    codec, embedder = f"codec={name_of('codec')}", f"embedder={name_of('embedder')}"
    corpus = [f"data={name_of('corpus')}", "data.root=sounds", "out=shards"]
    prepare = ["pipeline.preprocess", plugins, *corpus, codec, embedder, "encoder_workers=1"]
    train = ["pipeline.train", plugins, "shards=shards", "audio_samples.clips=0", codec, "model=tiny", "model.width=32"]
    train += ["model.layers=2", "trainer.steps=4", "trainer.micro_batch=2", "trainer.log_every=1"]
    extended = [f"pattern={name_of('pattern')}", f"optim={name_of('optimizer')}", f"tracking={name_of('tracker')}"]
    extended += [f"conditions=[prompt,{{label: {name_of('condition')}}}]"]
    scheduled = [f"optim={choice_of('learning-rate schedule')}", "tracking=none"]
    run(folder, prepare, [*train, "run=run", *extended], [*train, "run=scheduled", *scheduled])
    return folder / "run"


def test_commands_use_the_examples(trained: Path) -> None:
    """Those of corpus, codec, embedder, condition, pattern, optimizer, schedule, tracker, from outside the package."""
    manifest = json.loads((trained.parent / "shards" / "manifest.json").read_text())
    assert manifest["codec"]["name"] == name_of("codec") and manifest["embedder"]["name"] == name_of("embedder")
    assert manifest["data"]["name"] == name_of("corpus")
    model = json.loads((trained / "export" / "config.json").read_text())
    assert model["pattern"] == name_of("pattern")
    assert [each["kind"] for each in model["conditions"]] == ["prompt", name_of("condition")]
    rates = [row["train/lr"] for row in read_metrics(trained.parent / "scheduled") if "train/lr" in row]
    assert len(set(rates)) > 1


def test_a_dataset_format_writes_every_split(trained: Path, plugins: str) -> None:
    name = name_of("dataset format")
    run(trained.parent, ["pipeline.shards", "action=convert", "shards=shards", plugins, f"to={name}", "out=converted"])
    assert {"train.csv", "valid.csv", "dataset.json"} == {
        path.name for path in (trained.parent / "converted").iterdir()
    }


def test_a_sampling_filter_changes_the_sound(trained: Path, plugins: str) -> None:
    name = name_of("sampling filter")
    command = ["pipeline.generate", plugins, "run=run", "seconds=0.5", f"sampling={name}"]
    run(trained.parent, [*command, "out=on.wav"], [*command, "out=off.wav", f"sampling.{name}=0"])
    assert (trained.parent / "on.wav").read_bytes() != (trained.parent / "off.wav").read_bytes()


def test_an_installed_plugin_needs_no_setting(trained: Path) -> None:
    """An entry point of an installed distribution names the module."""
    folder, name = trained.parent, name_of("sampling filter")
    (folder / "mine-1.dist-info").mkdir()
    (folder / "mine-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    entries = "".join(f"{module} = {module}\n" for files in EXTENSIONS.values() for module in modules(files))
    (folder / "mine-1.dist-info" / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n{entries}")
    run(folder, ["pipeline.generate", "run=run", "seconds=0.5", f"sampling={name}", "out=installed.wav"])
    assert (folder / "installed.wav").read_bytes() == (folder / "on.wav").read_bytes()
