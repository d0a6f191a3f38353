"""Words as prompts of a model that was trained on sounds alone, with the embedder CLAP; and N vectors of a prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import InputError
from pipeline.generation.loaded_run import load_run
from tests.helpers.clap_folder import write_clap
from tests.helpers.demo_server import LIMITS, running_demo
from tests.helpers.preprocess_runs import make
from tests.helpers.trained_run import Workspace, count_samples, generate, run_command, sidecar

SHORT = "seconds=0.2"


@pytest.fixture(scope="module")
def reader(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A workspace whose dataset has CLAP's vectors, one for each of two stretches."""
    root = tmp_path_factory.mktemp("words")
    source, dataset = write_clap(root / "clap"), root / "dataset"
    embedder = ("embedder=clap", f"embedder.source={source}", "embedder.frames=2")
    assert make("folder", workspace.tones[0].parent, dataset, *embedder, "data.valid=0.3", "data.test=0") == 0
    yield replace(workspace, root=root, dataset=dataset)


def arguments(reader: Workspace, *overrides: str) -> list[str]:
    return [f"run={reader.run()}", f"embedder_weights={reader.root / 'clap'}", SHORT, *overrides]


def test_words_are_prompts(reader: Workspace, tmp_path: Path) -> None:
    """The sidecar stores the words and generates the sound again; the API gives the same codes."""
    texts = "prompt_text=[a muted trumpet,bell]"
    assert generate(*arguments(reader, texts, f"prompt={reader.tones[0]}", f"out={tmp_path / 'all'}/")) == 0
    names = [reader.tones[0].stem, "a-muted-trumpet", "bell"]
    assert [path.stem for path in sorted(tmp_path.glob("all/*.wav"))] == sorted(names)
    stored = [sidecar(tmp_path / "all" / f"{name}.wav") for name in names]
    assert [each["settings"]["prompt_text"] for each in stored] == [None, "a muted trumpet", "bell"]
    assert len({each["codes_sha256"] for each in stored}) == 3 and not stored[1]["sources"]
    again = (f"from={tmp_path / 'all' / 'a-muted-trumpet.json'}", f"out={tmp_path / 'again.wav'}")
    assert generate(*again, f"embedder_weights={reader.root / 'clap'}") == 0
    assert sidecar(tmp_path / "again.wav")["codes_sha256"] == stored[1]["codes_sha256"]
    run = load_run(reader.run(), embedder_weights=str(reader.root / "clap"))
    alone = run.generate(prompt_text="a muted trumpet", seconds=0.2, seed=1)
    sound, *described = run.generate(str(reader.tones[0]), prompt_text=["a muted trumpet", "bell"], seconds=0.2)
    assert np.array_equal(alone.codes, described[0].codes) and not np.array_equal(described[1].codes, sound.codes)
    assert generate(*arguments(reader, "prompt_text=bell", f"out={tmp_path / 'bell.wav'}")) == 0
    (bell,) = run.generate(prompt_text=["bell"], seconds=0.2)
    assert np.array_equal(bell.codes, run.generate(prompt_text="bell", seconds=0.2).codes)


def test_sounds_and_words_are_interpolated(reader: Workspace, tmp_path: Path) -> None:
    """Each stretch of the prompt; the ends are those of the sound and of the words alone."""
    mix = ("mode=interpolate", "steps=3", "blend=slerp", "crossfade_seconds=0", f"prompt={reader.tones[0]}")
    assert generate(*arguments(reader, *mix, "prompt_text=bell", f"out={tmp_path / 'mix.wav'}")) == 0
    assert count_samples(tmp_path / "mix.wav") == 3 * 4800
    assert sidecar(tmp_path / "mix.wav")["settings"]["prompt_text"] == "bell"
    assert generate(f"from={tmp_path / 'mix.json'}", f"out={tmp_path / 'again.wav'}", arguments(reader)[1]) == 0
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "mix.wav").read_bytes()


@pytest.mark.parametrize("mode", [["mode=continue", "window=0.1"], ["mode=extend", "audio={0}", "seconds=0.7"]])
def test_other_modes_read_words(reader: Workspace, tmp_path: Path, mode: list[str]) -> None:
    own = [override.format(reader.tones[0]) for override in mode]
    out = tmp_path / "o.wav"
    assert generate(*arguments(reader, "prompt_text=bell", *own, f"out={out}")) == 0
    assert sidecar(out)["settings"]["prompt_text"] == "bell" and sidecar(out)["settings"]["prompt"] is None


def test_prompts_of_several_vectors_in_other_modes(reader: Workspace, tmp_path: Path) -> None:
    a, b = reader.tones[:2]
    morph = ("mode=morph", f"keyframes=[{{at: 0, prompt: {a}}}, {{at: 0.1, prompt: {b}}}]", "blend=slerp")
    assert generate(*arguments(reader, *morph, f"out={tmp_path / 'm.wav'}")) == 0
    assert count_samples(tmp_path / "m.wav") == 4800


def test_a_morph_goes_from_a_sound_to_words(reader: Workspace, tmp_path: Path) -> None:
    keyframes = f"keyframes=[{{at: 0, prompt: {reader.tones[0]}}}, {{at: 0.1, prompt_text: bell}}]"
    assert generate(*arguments(reader, "mode=morph", keyframes, f"out={tmp_path / 'm.wav'}")) == 0
    recorded = sidecar(tmp_path / "m.wav")["settings"]["keyframes"]
    assert [each["prompt_text"] for each in recorded] == [None, "bell"]
    assert generate(f"from={tmp_path / 'm.json'}", f"out={tmp_path / 'again.wav'}", arguments(reader)[1]) == 0
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "m.wav").read_bytes()


def test_words_need_an_embedder_that_reads_text(workspace: Workspace, tmp_path: Path) -> None:
    message = r"^prompt_text=a bell: the embedder encodecmae_tiny reads no text: give a sound, prompt=a\.wav$"
    with pytest.raises(InputError, match=message):
        generate(f"run={workspace.run()}", "prompt_text=a bell", f"out={tmp_path / 'o.wav'}")
    with pytest.raises(InputError, match=message):
        load_run(workspace.run()).generate(prompt_text="a bell")


@pytest.mark.slow
def test_whole_way_with_words(reader: Workspace, tmp_path: Path) -> None:
    """Train on CLAP's vectors of two stretches, generate from words, evaluate; the page has a field for words."""
    run, weights = tmp_path / "run", f"embedder_weights={reader.root / 'clap'}"
    model = ("model=tiny", "trainer.micro_batch=2", "trainer.steps=2", "codec=encodec_embedded", "codec.codebooks=2")
    run_command("train", f"shards={reader.dataset}", f"run={run}", *model, "tracking=none")
    assert generate(f"run={run}", weights, SHORT, "prompt_text=bell", f"out={tmp_path / 'bell.wav'}") == 0
    run_command("evaluate", f"run={run}", f"shards={reader.dataset}", weights, "n=2", "temperatures=[0.7]")
    (tmp_path / "demo").mkdir()
    with running_demo([run], tmp_path / "demo", weights, *LIMITS) as server:
        parts = json.loads(server.get("/config")[1])["components"]
        assert [part["props"].get("label") for part in parts].count("or in words") == 1
