"""The public API: `import pipeline`."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import pipeline
from pipeline.common.errors import InputError
from pipeline.config.cli import compose, load_settings
from pipeline.data import open_dataset
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.settings import GenerateSettings, default_settings
from pipeline.models.pattern import build_pattern
from tests.helpers.models import LABELED
from tests.helpers.trained_run import Workspace, run_command

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name: a run that reads 4 s, a dataset and an audio file."""
    root = tmp_path_factory.mktemp("api")
    for parent in ("runs", "shards"):
        (root / parent).mkdir()
    (root / "runs" / "delay_gpt2").symlink_to(workspace.run(positions=build_pattern("delay", 2).num_steps(300)))
    (root / "runs" / "labeled").symlink_to(workspace.run(conditions=LABELED))
    (root / "shards" / "nsynth").symlink_to(workspace.dataset)
    (root / "a.wav").symlink_to(workspace.tones[0])
    return root


EXAMPLES = [pipeline.load_run, LoadedRun.generate, pipeline.open_dataset, pipeline.load_codec, pipeline.load_embedder]


@pytest.mark.parametrize("function", EXAMPLES, ids=lambda function: function.__name__)
def test_example_of_the_docstring_runs(function: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (test,) = doctest.DocTestFinder(recurse=False).find(function, "example")
    assert test.examples
    failures: list[str] = []
    doctest.DocTestRunner().run(test, out=failures.append)
    assert not failures, "".join(failures)


API = ("load_codec", "load_embedder", "load_run", "open_dataset")


def test_import_is_lazy() -> None:
    """Commands import the package, and start without torch."""
    code = (
        "import pipeline, sys; assert not {'torch', 'numpy', 'transformers'} & set(sys.modules); print(dir(pipeline))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and all(f"'{name}'" in done.stdout for name in API), done.stderr
    with pytest.raises(AttributeError, match="load_nothing"):
        pipeline.load_nothing  # type: ignore[attr-defined]  # noqa: B018


@pytest.fixture(scope="module")
def run(workspace: Workspace) -> LoadedRun:
    return pipeline.load_run(workspace.run(), device="cpu")


def test_audio_equals_that_of_the_command(run: LoadedRun, workspace: Workspace, tmp_path: Path) -> None:
    """The same settings and seed give the same samples, of several prompts in one batch too."""
    prompts = [str(path) for path in workspace.tones[:2]]
    arguments = ["sampling.top_k=40", "sampling.guidance=1.5", "seconds=0.3", "seed=5", "n=2"]
    run_command(
        "generate", f"run={workspace.run()}", f"prompt=[{','.join(prompts)}]", f"out={tmp_path}/out", *arguments
    )
    results = run.generate(prompts, n=2, seconds=0.3, seed=5, top_k=40, guidance=1.5)
    files = sorted((tmp_path / "out").glob("*.wav"))
    assert [audio.seed for audio in results] == [5, 6, 7, 8] and len(files) == 4
    for audio, file in zip(results, files, strict=True):
        audio.save(tmp_path / "b.wav")
        assert (tmp_path / "b.wav").read_bytes() == file.read_bytes()
        assert audio.samples.dtype == np.float32 and audio.seconds == 0.3


def test_long_audio_equals_that_of_the_command(run: LoadedRun, workspace: Workspace, tmp_path: Path) -> None:
    """mode=continue generates more than the model reads."""
    arguments = ["mode=continue", "seconds=1.2", "sampling.temperature=[0.5,1.0]"]
    run_command(
        "generate", f"run={workspace.run()}", f"prompt={workspace.tones[0]}", f"out={tmp_path}/a.wav", *arguments
    )
    run.generate(workspace.tones[0], mode="continue", seconds=1.2, temperature=[0.5, 1.0]).save(tmp_path / "b.wav")
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "a.wav").read_bytes()


@pytest.mark.parametrize("rate", [24_000, 44_100])
def test_array_is_a_prompt_like_its_file(rate: int, run: LoadedRun, tmp_path: Path) -> None:
    """An array at any rate gives the codes of a file with the same samples."""
    tone = (0.3 * np.sin(np.arange(rate // 2) / 20)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", tone, rate, subtype="FLOAT")
    by_file, by_array = (run.generate(prompt, rate=rate, seconds=0.2) for prompt in (tmp_path / "a.wav", tone))
    np.testing.assert_array_equal(by_file.codes, by_array.codes)
    assert by_file.codes.shape == (2, 15) and not np.array_equal(by_file.codes, run.generate(seconds=0.2).codes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": np.zeros((2, 100), np.float32), "rate": 24_000}, r"prompt=float32 \[2, 100\]: expected a path"),
        ({"prompt": np.zeros(100, np.int16), "rate": 24_000}, "prompt=int16"),
        ({"prompt": np.zeros(100, np.float32)}, "rate=None: expected the sample rate"),
        ({"n": 0}, "n=0"),
        ({"mode": "morph"}, "mode=morph: expected prompt or continue"),
        ({"temperature": -1}, "temperature=-1"),
        ({"seconds": 100}, "seconds=100"),
    ],
)
def test_generate_refuses_what_it_cannot_use(changes: dict[str, object], message: str, run: LoadedRun) -> None:
    with pytest.raises(InputError, match=message):
        run.generate(**changes)  # type: ignore[call-overload]


def test_defaults_are_those_of_the_commands() -> None:
    generate, train = load_settings(GenerateSettings), compose("train")
    assert generate == default_settings()
    assert (generate.seconds, generate.n, generate.seed, generate.mode) == ("auto", 1, 0, "prompt")
    assert train.data.shuffle_shards == open_dataset.SHUFFLE_SHARDS and train.data.cache_gib == open_dataset.CACHE_GIB


# ---- datasets --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def dataset(workspace: Workspace) -> open_dataset.Dataset:
    return pipeline.open_dataset(workspace.dataset)


def clips(batches: object) -> list[int]:
    """Positions of all clips of some batches."""
    return [int(clip) for batch in batches for clip in batch.clip_positions]  # type: ignore[attr-defined]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("ranks", [1, 3])
def test_every_clip_comes_once_an_epoch(shuffle: bool, ranks: int, dataset: open_dataset.Dataset) -> None:
    """All ranks together read each clip once in each epoch, in batches [B, K, T]."""
    loaders = [
        dataset.loader(
            batch_size=5, epochs=2, shuffle=shuffle, rank=rank, world_size=ranks, drop_last=False, num_threads=0
        )
        for rank in range(ranks)
    ]
    batches = [batch for loader in loaders for batch in loader]
    counts: dict[bytes, int] = {}
    for batch in batches:
        assert batch.codes.shape == (len(batch.frames), dataset.codebooks, int(batch.frames.max()))
        assert batch.prompts.shape == (len(batch.frames), 1, dataset.manifest.prompt_dim)
        for codes, prompt in zip(batch.codes, batch.prompts, strict=True):
            key = codes.numpy().tobytes() + prompt.numpy().tobytes()
            counts[key] = counts.get(key, 0) + 1
    assert len(counts) == len(dataset) and set(counts.values()) == {2}


def test_loader_resumes_at_a_position(dataset: open_dataset.Dataset) -> None:
    """First k batches + the batches after position k == all batches."""
    everything = list(dataset.loader(batch_size=4, epochs=3, seed=1))
    for k in (1, 3, len(everything) - 1):
        rest = list(dataset.loader(batch_size=4, epochs=3, seed=1, position=everything[k - 1].position))
        assert len(rest) == len(everything) - k
        for one, other in zip(rest, everything[k:], strict=True):
            assert torch.equal(one.codes, other.codes) and one.position == other.position


def test_ranks_get_equal_numbers_of_batches(dataset: open_dataset.Dataset) -> None:
    for shuffle in (True, False):
        loaders = [dataset.loader(3, shuffle=shuffle, rank=rank, world_size=2) for rank in range(2)]
        batches = [list(loader) for loader in loaders]
        assert len(batches[0]) == len(batches[1]) == len(dataset) // 6
        assert all(len(batch.frames) == 3 for some in batches for batch in some)
        assert not set(clips(batches[0])) & set(clips(batches[1]))


def test_seed_decides_the_order(dataset: open_dataset.Dataset) -> None:
    one, same, other = (next(iter(dataset.loader(8, epochs=None, seed=seed))).codes for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_clips_are_cropped(dataset: open_dataset.Dataset) -> None:
    for shuffle in (True, False):
        assert {batch.codes.shape[2] for batch in dataset.loader(8, max_frames=10, shuffle=shuffle)} == {10}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 1, "rank": 2, "world_size": 2}, "rank=2"),
        ({"batch_size": 1, "epochs": 0}, "epochs=0"),
        ({"batch_size": 1, "position": 5, "shuffle": False}, "position=5"),
        ({"batch_size": 100, "world_size": 2}, "fewer than the 2 x 100 of a step"),
    ],
)
def test_loader_refuses_values_that_do_not_fit(
    arguments: dict[str, int], message: str, dataset: open_dataset.Dataset
) -> None:
    with pytest.raises(InputError, match=message):
        dataset.loader(**arguments)  # type: ignore[arg-type]


def test_unknown_split_is_refused(workspace: Workspace) -> None:
    with pytest.raises(InputError, match="split=dev: .* has .*train"):
        pipeline.open_dataset(workspace.dataset, "dev")
