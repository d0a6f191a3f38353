"""Generation with labels as conditions: settings, guidance by each condition, sidecars, batches, the public API."""

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pipeline
from pipeline.common.errors import InputError
from pipeline.generation.engine import InferenceEngine
from pipeline.generation.generator import Generation, GenerationSpec, SlidingWindow, generate
from pipeline.generation.guidance import Guidance
from pipeline.generation.settings import sampling_settings
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.pattern import SPECIAL_TOKEN
from pipeline.models.patterns import PATTERNS
from tests.helpers.models import LABELED, tiny
from tests.helpers.trained_run import Workspace, sidecar
from tests.helpers.trained_run import generate as run_generate

NAMES = [str(condition["name"]) for condition in LABELED]
SHORT = ("seconds=0.2", "device=cpu")


def values_of(clips: int) -> dict[str, Tensor]:
    """Random values of all conditions."""
    return {
        "prompt": torch.randn(clips, 12),
        "pitch": torch.randint(3, (clips,)),
        "velocity": torch.rand(clips) * 126 + 1,
        "tags": torch.tensor([[1.0, 0.0, 1.0]]).expand(clips, 3),
    }


def sensitive(model: CodecGPT) -> CodecGPT:
    """The model with larger random weights: an untrained one hardly depends on its prefix."""
    torch.manual_seed(0)
    for name, weight in model.backbone.named_parameters():
        if name.endswith("weight") and weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def without(values: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: each for name, each in values.items() if name not in names}


@pytest.mark.parametrize("name", PATTERNS.names())
@torch.no_grad()
def test_guidance_by_each_condition_equals_full_logits(name: str) -> None:
    """logits = all + sum_i (w_i - 1) (all - all without i), where w_i = 1 changes nothing."""
    torch.manual_seed(0)
    model, values, frames = sensitive(tiny(pattern=name, conditions=LABELED)), values_of(2), 5
    scales = {"prompt": 2.0, "pitch": 3.0, "velocity": 1.0, "tags": 0.5}
    sequence = torch.zeros(2, 4, model.pattern.num_steps(frames), dtype=torch.long)
    frame = model.pattern.frame_at_step(frames)
    for s in range(sequence.shape[2]):
        for k in range(4):  # the logits of a codebook may depend on the codes of those before it
            complete = model.logits(sequence, values)[:, s, k]
            logits = complete.clone()
            for condition, scale in scales.items():
                reduced = model.logits(sequence, without(values, condition))[:, s, k]
                logits += (scale - 1) * (complete - reduced)
            logits[..., SPECIAL_TOKEN] = -math.inf
            sequence[:, k, s] = torch.where(frame[k, s] >= 0, logits.argmax(-1), SPECIAL_TOKEN)
    codes, _ = generate(
        InferenceEngine(model), values, frames, sampling_settings(temperature=0, guidance=scales), [0, 0]
    )
    assert torch.equal(codes, model.pattern.revert_sequence(sequence, frames) - 1)


@given(st.floats(-3, 6), st.sets(st.sampled_from(NAMES)), st.data())
def test_guidance_has_rows_only_where_it_changes_logits(scale: float, names: set[str], data: st.DataObject) -> None:
    """A scale of one condition alone gives the same bits as a scale of all; a scale of 1 costs nothing."""
    one = data.draw(st.sampled_from(NAMES))
    by_name = Guidance.plan({one: scale, **dict.fromkeys(set(NAMES) - {one}, 1.0)}, names)
    assert by_name.rows_per_clip == 1 + (scale != 1 and one in names)
    together, alone = Guidance.plan(scale, {one}), Guidance.plan({one: scale}, {one})
    logits = torch.randn(together.rows_per_clip * 2, 4, 9)
    assert torch.equal(together.apply(logits), alone.apply(logits))
    assert Guidance.plan(scale, ()).apply(logits) is logits


@given(st.lists(st.integers(0, 2**40), min_size=2, max_size=4), st.sampled_from([1.5, {"pitch": 3.0, "tags": 2.0}]))
@settings(max_examples=8)
def test_clips_with_conditions_do_not_depend_on_the_batch(seeds: list[int], guidance: float | dict) -> None:
    engine, values = InferenceEngine(sensitive(tiny(conditions=LABELED))), values_of(len(seeds))
    sampling = sampling_settings(temperature=0.9, guidance=guidance)
    together, _ = generate(engine, values, 6, sampling, seeds)
    for i, seed in enumerate(seeds):
        alone, _ = generate(engine, {name: each[i : i + 1] for name, each in values.items()}, 6, sampling, [seed])
        assert torch.equal(together[i], alone[0])


def test_each_condition_changes_the_sound() -> None:
    """Every subset of the conditions gives other codes, also with keyframes and a sliding window."""
    engine, values = InferenceEngine(sensitive(tiny(conditions=LABELED))), values_of(1)
    results = set()
    for count in range(len(NAMES) + 1):
        for names in combinations(NAMES, count):
            keyframes = [(0, without(values, *names)), (9, values)]
            spec = GenerationSpec(16, [0], sampling_settings(temperature=1), keyframes, None, SlidingWindow(8, 4))
            generation = Generation(engine, spec)
            assert sum(chunk.shape[2] for chunk in generation.chunks()) == 16
            results.add(str(generation.codes[0, :, :9].tolist()))
    assert len(results) == 2 ** len(NAMES)


def sensitive_run(workspace: Workspace, folder: Path, **changes: Any) -> Path:
    """An untrained run that depends on its conditions."""
    sensitive(CodecGPT.from_pretrained(workspace.run(**changes) / "export")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained run with four conditions."""
    return sensitive_run(workspace, tmp_path_factory.mktemp("labels"), conditions=LABELED)


@pytest.mark.parametrize(
    "setting",
    [
        ["conditions.pitch=62"],
        ["conditions={pitch: 60, velocity: 12.5, tags: [dark, long]}", "sampling.guidance={prompt: 2, pitch: 3}"],
        ["conditions.pitch=60", "mode=continue", "seconds=0.8", "sampling.guidance=1.5"],
        ["conditions.velocity=12", "stream=true", "chunk=0.1"],
    ],
)
def test_conditions_are_kept_in_the_sidecar(
    workspace: Workspace, run: Path, tmp_path: Path, setting: list[str]
) -> None:
    """`from=` generates the same codes, and they are not those without the condition."""
    sound, again, other = (tmp_path / f"{name}.wav" for name in ("a", "b", "c"))
    own = [f"run={run}", f"prompt={workspace.tones[0]}", *SHORT]
    assert run_generate(*own, f"out={sound}", *setting) == 0
    assert run_generate(f"from={sound.with_suffix('.json')}", f"out={again}", "device=cpu") == 0
    assert again.read_bytes() == sound.read_bytes() and sidecar(again)["settings"] == sidecar(sound)["settings"]
    assert run_generate(*own, f"out={other}", *(each for each in setting if "conditions" not in each)) == 0
    assert sidecar(other)["codes_sha256"] != sidecar(sound)["codes_sha256"]


def test_conditions_are_the_same_for_every_prompt(workspace: Workspace, run: Path, tmp_path: Path) -> None:
    """Two prompts in one batch, interpolation and the public API give what a single command gives."""
    first, second = workspace.tones[:2]
    common = (f"run={run}", "conditions.pitch=64", *SHORT)
    assert run_generate(*common, f"prompt=[{first},{second}]", f"out={tmp_path}/") == 0
    assert run_generate(*common, f"prompt={second}", "seed=1", f"out={tmp_path}/alone.wav") == 0
    assert (tmp_path / "alone.wav").read_bytes() == (tmp_path / f"{second.stem}.wav").read_bytes()
    path = ("mode=interpolate", f"prompt=[{first},{second}]", "steps=2", "crossfade_seconds=0")
    assert run_generate(*common, *path, f"out={tmp_path}/path.wav") == 0
    wav, _ = soundfile.read(tmp_path / "path.wav")
    alone, _ = soundfile.read(tmp_path / f"{first.stem}.wav")
    assert (wav[: len(alone)] == alone).all()
    audio = pipeline.load_run(run, device="cpu").generate(first, seconds=0.2, conditions={"pitch": 64})
    audio.save(tmp_path / "api.wav")
    assert (tmp_path / "api.wav").read_bytes() == (tmp_path / f"{first.stem}.wav").read_bytes()


def test_labels_alone_generate_and_morph(workspace: Workspace, tmp_path: Path) -> None:
    """A model without prompts: a morph changes its pitch at a keyframe; before it, the codes are those of the first."""
    run = sensitive_run(workspace, tmp_path / "run", conditions=[LABELED[1], LABELED[3]])
    common = (f"run={run}", *SHORT)
    moved = "keyframes=[{at: 0, conditions: {pitch: 60}}, {at: 0.1, conditions: {pitch: 64}}]"
    assert run_generate(*common, "mode=morph", moved, "conditions.tags=dark", f"out={tmp_path}/morph.wav") == 0
    assert run_generate(*common, "conditions={pitch: 60, tags: dark}", f"out={tmp_path}/still.wav") == 0
    assert sidecar(tmp_path / "morph.wav")["codes_sha256"] != sidecar(tmp_path / "still.wav")["codes_sha256"]
    assert run_generate(f"from={tmp_path}/morph.json", f"out={tmp_path}/again.wav", "device=cpu") == 0
    with pytest.raises(InputError, match=r"prompt=.*the model has no prompts, only the conditions pitch, tags"):
        run_generate(*common, f"prompt={workspace.tones[0]}", f"out={tmp_path}/prompted.wav")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("conditions.pich=60", r"conditions\.pich=60: .*did you mean 'pitch'\?"),
        ("conditions.pitch=61", r"conditions\.pitch=61: unknown value; did you mean '6[02]'\?"),
        ("conditions.tags=[dark,brigt]", r"conditions\.tags=brigt: unknown value; did you mean 'bright'\?"),
        ("conditions.velocity=loud", r"conditions\.velocity=loud: expected a number from 1 to 127"),
        ("conditions.prompt=a.wav", r"conditions\.prompt=a\.wav: a prompt is a sound"),
        ("sampling.guidance={pich: 2}", r"sampling\.guidance=pich: .*did you mean 'pitch'\?"),
        ("conditions=60", r"conditions=60: expected \{NAME: VALUE"),
    ],
)
def test_unknown_conditions_are_refused(run: Path, tmp_path: Path, setting: str, message: str) -> None:
    """Before any work, with the nearest name or value."""
    with pytest.raises(InputError, match=message):
        run_generate(f"run={run}", setting, "prompt=nowhere.wav", f"out={tmp_path}/a.wav", *SHORT)
    assert not list(tmp_path.iterdir())


def test_number_beyond_training_is_a_warning(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run_generate(f"run={run}", "conditions.velocity=200", f"out={tmp_path}/a.wav", *SHORT) == 0
    assert "conditions.velocity=200: outside the range of the training data, 1 to 127" in caplog.text


def test_model_without_labels_names_the_training_setting(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"conditions\.pitch=60: .*train one with conditions=\[prompt,pitch\]"):
        run_generate(f"run={workspace.run()}", "conditions.pitch=60", f"out={tmp_path}/a.wav", *SHORT)


def test_older_sidecars_generate_the_same_sound(workspace: Workspace, tmp_path: Path) -> None:
    """Sidecars from before conditions do not have the setting."""
    assert run_generate(f"run={workspace.run()}", f"prompt={workspace.tones[0]}", f"out={tmp_path}/a.wav", *SHORT) == 0
    file = tmp_path / "a.json"
    content = json.loads(file.read_text())
    del content["settings"]["conditions"]
    file.write_text(json.dumps(content))
    assert run_generate(f"from={file}", f"out={tmp_path}/b.wav", "device=cpu") == 0
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "a.wav").read_bytes()
