"""Conditions on labels: their values, their null vectors, their dropout, and the prefix that they form."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.common.errors import InputError
from pipeline.generation.engine import InferenceEngine
from pipeline.models import model_stats
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.conditions import CONDITIONS
from pipeline.models.conditions.base import LabelValues
from pipeline.models.model_config import ModelConfig, prompt_alone
from tests.helpers.models import TINY, step_logits, tiny

NOTES = LabelValues("number", ["21", "60", "108"], 21, 108)
FAMILIES = LabelValues("category", ["bass", "organ", "reed"], None, None)
MOODS = LabelValues("tags", ["calm", "dark", "happy"], None, None)


def conditions(dropout: float = 0.0) -> list[dict[str, Any]]:
    """The prompt, and a condition of each kind."""
    labels = {"pitch": NOTES, "family": FAMILIES, "mood": MOODS}
    settings = [
        CONDITIONS.get(label.kind).from_label(label.kind, name, dropout, label) for name, label in labels.items()
    ]
    return [*prompt_alone(), *(each.to_dict() for each in settings)]


@pytest.fixture(scope="module")
def model() -> CodecGPT:
    """A model with four conditions, whose prompt has three vectors."""
    return tiny(conditions=conditions(), embedder={"frames": 3}).eval()


def values(model: CodecGPT, *clips: tuple[Any, Any, Any]) -> dict[str, torch.Tensor]:
    """Values of clips with labels (pitch, family, mood)."""
    torch.manual_seed(0)
    columns = dict(zip(("pitch", "family", "mood"), zip(*clips, strict=True), strict=True))
    return model.condition_values(torch.randn(len(clips), 3, 12), columns)


def test_prefix_has_a_position_for_each_vector(model: CodecGPT) -> None:
    assert model.config.prefix_length == 6
    batch = values(model, (60, "bass", ["calm", "dark"]), (61.5, None, []))
    prefix, nulls = model.prefix(batch, 2), model.prefix(None, 2)
    assert prefix.shape == nulls.shape == (2, 6, 32)
    same = [(i, s) for i in range(2) for s in range(6) if torch.equal(prefix[i, s], nulls[i, s])]
    assert same == [(1, 4), (1, 5)]  # a category and tags that the second clip does not have
    drop = {"pitch": torch.tensor([True, False]), "prompt": torch.tensor([False, True])}
    dropped = model.prefix(batch, 2, drop)
    changed = [(i, s) for i in range(2) for s in range(6) if not torch.equal(dropped[i, s], prefix[i, s])]
    assert changed == [(0, 3), (1, 0), (1, 1), (1, 2)]


def test_values_of_tags_have_no_order(model: CodecGPT) -> None:
    mood = model.label_conditions["mood"]
    one, other = (mood.embed(mood.encode(tags)[None]) for tags in (["calm", "happy"], ["happy", "calm", "calm"]))
    parts = [mood.embed(mood.encode(tag)[None]) for tag in ("calm", "happy")]
    assert torch.equal(one, other) and torch.allclose(one, torch.stack(parts).mean(0), atol=1e-6)


def test_unseen_numbers_have_vectors_of_their_own(model: CodecGPT) -> None:
    """Within the range: between those of their neighbours, and different for each step of 1/128 of the range."""
    pitch = model.label_conditions["pitch"]
    vectors = pitch.embed(torch.linspace(21, 108, 129))[:, 0]
    distances = torch.cdist(vectors, vectors) + torch.eye(129) * 9
    assert float(distances.min().detach()) > 0.1 * float(distances[0].median().detach())
    assert torch.allclose(pitch.embed(torch.tensor([60.0, 60.001]))[0], pitch.embed(torch.tensor([60.001])), atol=0.01)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pitch", "inf", r"conditions\.pitch=inf: expected a number from 21 to 108"),
        ("pitch", "loud", r"conditions\.pitch=loud: expected a number"),
        ("pitch", math.nan, r"expected a number from 21"),
        ("family", "bas", r"conditions\.family=bas: unknown value; did you mean 'bass'\? values are bass, organ, reed"),
        ("mood", ["calm", "hapy"], r"conditions\.mood=hapy: unknown value; did you mean 'happy'"),
    ],
)
def test_unknown_values_are_refused_with_the_nearest(model: CodecGPT, name: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.label_conditions[name].encode(value)
    encoded = model.label_conditions[name].encode_all([value, None])
    assert torch.equal(model.label_conditions[name].is_missing(encoded), torch.tensor([True, True]))


def test_numbers_can_be_a_category() -> None:
    category = CONDITIONS.get("category").from_label("category", "pitch", 0.0, NOTES)
    notes = tiny(conditions=[category.to_dict()]).label_conditions["pitch"]
    assert [int(notes.encode(value)) for value in (21, 60.0, "108", None)] == [0, 1, 2, -1]
    with pytest.raises(InputError, match="did you mean '60'"):
        notes.encode(62)


@pytest.mark.parametrize("kind", ["category", "number", "tags"])
def test_labels_of_another_kind_are_refused(kind: str) -> None:
    too_many = LabelValues("tags", None, None, None)
    with pytest.raises(InputError, match="conditions=name: "):
        CONDITIONS.get(kind).from_label(kind, "name", 0.0, too_many)


def test_each_condition_is_dropped_alone_and_with_the_others() -> None:
    """Independently with its own probability, and all together with `prompt_dropout`."""
    model = tiny(conditions=conditions(0.25), prompt_dropout=0.5)
    batch = values(model, (60, "bass", ["calm"]))
    drops = model.draw_drops(batch, 20_000)
    rates = {name: float(drop.float().mean()) for name, drop in drops.items()}
    assert rates == pytest.approx({"prompt": 0.5, "pitch": 0.625, "family": 0.625, "mood": 0.625}, abs=0.02)
    together = torch.stack([*drops.values()]).all(0).float().mean()
    assert float(together) == pytest.approx(0.5, abs=0.02)
    kept = ~drops["prompt"]
    both = (drops["pitch"] & drops["family"])[kept].float().mean()
    assert float(both) == pytest.approx(0.25**2, abs=0.01)


@torch.no_grad()
def test_cached_logits_equal_full_logits(model: CodecGPT) -> None:
    batch = values(model, (60, "bass", ["calm"]), (21, "reed", []))
    sequence = model.pattern.build_sequence(torch.randint(1, 1025, (2, 4, 6)))
    expected, engine = model.logits(sequence, batch), InferenceEngine(model)
    cache, inputs = engine.new_cache(2, sequence.shape[2] + 5), engine.prefix(batch, 2)
    for s in range(sequence.shape[2]):
        logits = step_logits(engine, engine.forward(inputs, cache, s + 5 if s else 0), sequence[:, :, s])
        assert torch.allclose(logits, expected[:, s], atol=1e-5)
        inputs = model.embed(sequence[:, :, s : s + 1])


def test_saved_model_needs_no_dataset(model: CodecGPT, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = CodecGPT.from_pretrained(tmp_path)
    assert loaded.config == model.config
    batch = values(loaded, (33, "organ", ["dark"]))
    assert torch.equal(loaded.prefix(batch, 1), model.prefix(batch, 1))
    assert model_stats.num_parameters(model.config) == sum(p.numel() for p in model.parameters())
    assert len(model.backbone.wpe.weight) == model.config.positions + 5


def test_config_of_older_versions_is_the_prompt_alone() -> None:
    content = {name: value for name, value in vars(TINY).items() if name != "conditions"}
    assert ModelConfig.parse(content).condition_settings == TINY.condition_settings
    assert TINY.prefix_length == 1 and TINY.backbone_positions == TINY.positions
    names = {name.partition(".")[0] for name in tiny().state_dict()}
    assert names == {"null_prompt", "prompt_mean", "prompt_std", "backbone", "codes", "head", "prompt"}


@pytest.mark.parametrize(
    "content",
    [[], [3], [{"kind": "none"}], [{"kind": "number", "name": "pitch", "dropout": 0}], prompt_alone() * 2,
     [{"kind": "prompt", "name": "prompt", "dropout": 2.0}]],
)  # fmt: skip
def test_invalid_conditions_are_refused(content: list[Any]) -> None:
    with pytest.raises(InputError, match="condition"):
        replace(TINY, conditions=content)
