"""From logits to codes: what is chosen, how often, and that nothing else gets in."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.common.errors import InputError
from pipeline.generation.engine import InferenceEngine
from pipeline.generation.generator import generate
from pipeline.generation.gumbel_noise import gumbel_noise, noise_keys
from pipeline.generation.sampling import SamplingParams, sample_token
from pipeline.models.patterns import NAMES, SPECIAL_TOKEN
from tests.helpers.models import tiny

names = st.sampled_from(NAMES)


def loving(loved: int | None, name: str = "delay", **changes: object) -> InferenceEngine:
    """A model whose logits are the same everywhere: uniform, but for one class that it loves."""
    model = tiny(pattern=name, **changes).eval()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
        if loved is not None:
            model.head.bias[:, loved] = 50
    return InferenceEngine(model)


def drawn(count: int, classes: int) -> Tensor:
    """Gumbel noise of so many choices: [count, C]."""
    return gumbel_noise(noise_keys([0], torch.arange(count)[None])[0, 0], classes)


def shares(logits: list[float], sampling: SamplingParams, draws: int = 20_000) -> list[float]:
    """How often each class is chosen."""
    noise = drawn(draws, len(logits))
    chosen = sample_token(torch.tensor(logits).expand(draws, -1), noise, sampling.temperature, sampling)
    return (torch.bincount(chosen, minlength=len(logits)) / draws).tolist()


LOGITS = [2.0, 1.0, 0.0, -1.0]


def softmax(logits: list[float]) -> list[float]:
    return torch.tensor(logits).softmax(0).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_classes_come_as_often_as_their_probability(temperature: float) -> None:
    expected = softmax([x / temperature for x in LOGITS])
    assert shares(LOGITS, SamplingParams(temperature)) == pytest.approx(expected, abs=0.015)


def test_temperature_0_is_greedy() -> None:
    assert shares(LOGITS, SamplingParams(0)) == [1, 0, 0, 0]


def test_top_k_keeps_the_likeliest_and_shares_out_the_rest() -> None:
    expected = [*softmax(LOGITS[:2]), 0, 0]
    assert shares(LOGITS, SamplingParams(top_k=2)) == pytest.approx(expected, abs=0.015)


def test_top_p_keeps_the_fewest_that_reach_p() -> None:
    """Probabilities are .64 .24 .09 .03: 0.5 needs one class, 0.7 two, 0.9 three."""
    for p, kept in ((0.5, 1), (0.7, 2), (0.9, 3), (1.0, 4)):
        assert [share > 0 for share in shares(LOGITS, SamplingParams(top_p=p))] == [i < kept for i in range(4)]


def test_min_p_keeps_those_at_least_so_likely_as_a_share_of_the_likeliest() -> None:
    """The shares of the likeliest are 1, .37, .14 and .05."""
    for p, kept in ((0.0, 4), (0.1, 3), (0.2, 2), (1.0, 1)):
        assert [share > 0 for share in shares(LOGITS, SamplingParams(min_p=p))] == [i < kept for i in range(4)]


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=12), st.integers(0, 10_000), st.data())
def test_nothing_impossible_is_ever_chosen(logits: list[float], seed: int, data: st.DataObject) -> None:
    forbidden = data.draw(st.sets(st.integers(0, len(logits) - 1), max_size=len(logits) - 1))
    x = torch.tensor([-math.inf if i in forbidden else v for i, v in enumerate(logits)])
    noise = gumbel_noise(torch.tensor(seed, dtype=torch.int32), len(logits))
    for sampling in (
        SamplingParams(),
        SamplingParams(0),
        SamplingParams(0.1, top_k=3),
        SamplingParams(3, top_p=0.5),
        SamplingParams(min_p=0.5),
    ):
        assert int(sample_token(x, noise, sampling.temperature, sampling)) not in forbidden


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    model = tiny().eval()
    with torch.no_grad():
        model.head.bias[1] = bad
    with pytest.raises(InputError, match="not finite"):
        generate(InferenceEngine(model), None, 5, SamplingParams(), [0])


def test_settings_that_make_no_sense_are_refused_by_name() -> None:
    for setting, value in (("temperature", -1), ("top_k", -1), ("top_p", 0), ("top_p", 1.5), ("min_p", 2)):
        with pytest.raises(InputError, match=f"sampling.{setting}={value}"):
            SamplingParams(**{setting: value})


@given(names, st.integers(1, 20), st.integers(1, 3))
@settings(max_examples=25)
def test_f_frames_are_exactly_f_frames_of_codes(name: str, frames: int, batch: int) -> None:
    codes, lengths = generate(loving(None, name), None, frames, SamplingParams(), range(batch))
    assert codes.shape == (batch, 4, frames) and lengths.tolist() == [frames] * batch
    assert int(codes.min()) >= 0 and int(codes.max()) < 1024


@pytest.mark.parametrize("name", NAMES)
def test_uniform_logits_give_uniform_codes(name: str) -> None:
    codes, _ = generate(loving(None, name), None, 30, SamplingParams(), range(40))
    counts = torch.histc(codes.float(), 8, 0, 1024)
    assert bool(((counts / counts.sum() - 1 / 8).abs() < 0.02).all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [0.0, 0.01, 1.0])
def test_a_model_that_loves_empty_still_gives_codes(name: str, temperature: float) -> None:
    codes, _ = generate(loving(SPECIAL_TOKEN, name), None, 10, SamplingParams(temperature), [0, 1])
    assert int(codes.min()) >= 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_cached_loop_is_greedy_search_on_full_logits(name: str, guidance: float) -> None:
    model, prompt, frames = tiny(pattern=name).eval(), torch.randn(2, 12), 6
    laid = torch.zeros(2, 4, model.pattern.num_steps(frames), dtype=torch.long)
    held = model.pattern.frame_at_step(frames)
    for s in range(laid.shape[2]):
        logits = model.logits(laid, prompt)[:, s]
        if guidance != 1:
            without = model.logits(laid, None)[:, s]
            logits = without + guidance * (logits - without)
        logits[..., SPECIAL_TOKEN] = -math.inf
        laid[:, :, s] = torch.where(held[:, s] >= 0, logits.argmax(-1), SPECIAL_TOKEN)
    codes, _ = generate(InferenceEngine(model), prompt, frames, SamplingParams(0, guidance=guidance), [0, 0])
    assert torch.equal(codes, model.pattern.revert_sequence(laid, frames) - 1)


@given(names, st.lists(st.integers(0, 2**40), min_size=1, max_size=5))
@settings(max_examples=15)
def test_a_row_gives_the_same_codes_in_a_batch_as_alone(name: str, seeds: list[int]) -> None:
    model, prompts = InferenceEngine(tiny(pattern=name).eval()), torch.randn(len(seeds), 12)
    together, _ = generate(model, prompts, 7, SamplingParams(0.9, top_k=50), seeds)
    for i, seed in enumerate(seeds):
        alone, _ = generate(model, prompts[i : i + 1], 7, SamplingParams(0.9, top_k=50), [seed])
        assert torch.equal(together[i], alone[0])


def test_a_prompt_that_is_not_finite_is_named_and_the_weights_are_not() -> None:
    prompts = torch.zeros(3, 12)
    prompts[1, 4] = math.nan
    with pytest.raises(InputError, match=r"^prompts \[1\] have values that are not finite"):
        generate(InferenceEngine(tiny().eval()), prompts, 5, SamplingParams(), [0, 1, 2])


def test_a_clip_longer_than_the_position_table_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(InputError, match=r"200 frames are 203 steps under pattern=delay.*1\.\.128"):
        generate(InferenceEngine(tiny().eval()), None, 200, SamplingParams(), [0])


@pytest.mark.parametrize("name", NAMES)
def test_a_model_trained_to_end_ends_its_clips(name: str) -> None:
    """Three melodies of different lengths, each named by its prompt: each is generated whole, and ends by itself."""
    torch.manual_seed(0)
    model = tiny(pattern=name, end_of_audio=True)
    melodies, prompts, lengths = torch.randint(0, 1024, (3, 4, 9)), torch.eye(3, 12) * 3, torch.tensor([9, 5, 2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        nats, cells = model(melodies, lengths, prompts)
        loss = nats.sum() / cells.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    codes, ends = generate(InferenceEngine(model.eval()), prompts, 14, SamplingParams(0), [0, 1, 2])
    assert ends.tolist() == lengths.tolist()
    for found, melody, n in zip(codes, melodies, lengths.tolist(), strict=True):
        assert torch.equal(found[:, :n], melody[:, :n]) and not found[:, n:].any()
