"""Sampling: distributions, filters, and that only valid codes are sampled."""

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
from pipeline.generation.sampling import sample_token
from pipeline.generation.settings import SamplingSettings, sampling_settings
from pipeline.models.pattern import SPECIAL_TOKEN
from pipeline.models.patterns import PATTERNS
from tests.helpers.models import tiny, train_on_clips

names = st.sampled_from(PATTERNS.names())


def constant_engine(favourite: int | None, name: str = "delay", **changes: object) -> InferenceEngine:
    """A model with the same logits everywhere: uniform, except for one favourite class."""
    model = tiny(pattern=name, **changes).eval()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
        if favourite is not None:
            model.head.bias[:, favourite] = 50
    return InferenceEngine(model)


def noise_of(count: int, classes: int) -> Tensor:
    """Gumbel noise [count, C]."""
    return gumbel_noise(noise_keys([0], torch.arange(count)[None])[0, 0], classes)


def frequencies(logits: list[float], sampling: SamplingSettings, draws: int = 20_000) -> list[float]:
    """How often each class is sampled."""
    noise = noise_of(draws, len(logits))
    filters = sampling.build_filters(1, torch.device("cpu"))
    sampled = sample_token(torch.tensor(logits).expand(draws, 1, -1), noise[:, None], filters)
    return (torch.bincount(sampled.flatten(), minlength=len(logits)) / draws).tolist()


LOGITS = [2.0, 1.0, 0.0, -1.0]


def is_sampled(sampling: SamplingSettings) -> list[bool]:
    """Whether each class of LOGITS is ever sampled."""
    return [frequency > 0 for frequency in frequencies(LOGITS, sampling)]


def softmax(logits: list[float]) -> list[float]:
    return torch.tensor(logits).softmax(0).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_equal_probabilities(temperature: float) -> None:
    expected = softmax([x / temperature for x in LOGITS])
    assert frequencies(LOGITS, sampling_settings(temperature=temperature)) == pytest.approx(expected, abs=0.015)


def test_temperature_0_is_greedy() -> None:
    assert frequencies(LOGITS, sampling_settings(temperature=0)) == [1, 0, 0, 0]


def test_top_k_keeps_the_most_likely() -> None:
    expected = [*softmax(LOGITS[:2]), 0, 0]
    assert frequencies(LOGITS, sampling_settings(top_k=2)) == pytest.approx(expected, abs=0.015)


def test_top_p_keeps_the_fewest_that_reach_p() -> None:
    """Probabilities are .64 .24 .09 .03: 0.5 needs one class, 0.7 two, 0.9 three."""
    for p, kept in ((0.5, 1), (0.7, 2), (0.9, 3), (1.0, 4)):
        assert [frequency > 0 for frequency in frequencies(LOGITS, sampling_settings(top_p=p))] == [
            i < kept for i in range(4)
        ]


def test_min_p_is_relative_to_the_most_likely() -> None:
    """Relative to the top probability they are 1, .37, .14 and .05."""
    for p, kept in ((0.0, 4), (0.1, 3), (0.2, 2), (1.0, 1)):
        assert [frequency > 0 for frequency in frequencies(LOGITS, sampling_settings(min_p=p))] == [
            i < kept for i in range(4)
        ]


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=12), st.integers(0, 10_000), st.data())
def test_impossible_classes_are_never_sampled(logits: list[float], seed: int, data: st.DataObject) -> None:
    forbidden = data.draw(st.sets(st.integers(0, len(logits) - 1), max_size=len(logits) - 1))
    x = torch.tensor([-math.inf if i in forbidden else v for i, v in enumerate(logits)])
    noise = gumbel_noise(torch.tensor([[seed]], dtype=torch.int32), len(logits))
    for sampling in (
        sampling_settings(),
        sampling_settings(temperature=0),
        sampling_settings(temperature=0.1, top_k=3),
        sampling_settings(temperature=3, top_p=0.5),
        sampling_settings(min_p=0.5),
    ):
        assert int(sample_token(x[None, None], noise, sampling.build_filters(1, x.device))) not in forbidden


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    model = tiny().eval()
    with torch.no_grad():
        model.head.bias[1] = bad
    with pytest.raises(InputError, match="not finite"):
        generate(InferenceEngine(model), None, 5, sampling_settings(), [0])


def test_settings_out_of_range_are_refused_by_name() -> None:
    for setting, value in (("temperature", -1), ("top_k", -1), ("top_p", 0), ("top_p", 1.5), ("min_p", 2)):
        with pytest.raises(InputError, match=f"sampling.{setting}={value}"):
            sampling_settings(**{setting: value})


@given(names, st.integers(1, 20), st.integers(1, 3))
@settings(max_examples=25)
def test_number_of_frames_is_exact(name: str, frames: int, batch: int) -> None:
    codes, lengths = generate(constant_engine(None, name), None, frames, sampling_settings(), range(batch))
    assert codes.shape == (batch, 4, frames) and lengths.tolist() == [frames] * batch
    assert int(codes.min()) >= 0 and int(codes.max()) < 1024


@pytest.mark.parametrize("name", PATTERNS.names())
def test_uniform_logits_give_uniform_codes(name: str) -> None:
    codes, _ = generate(constant_engine(None, name), None, 30, sampling_settings(), range(40))
    counts = torch.histc(codes.float(), 8, 0, 1024)
    assert bool(((counts / counts.sum() - 1 / 8).abs() < 0.02).all())


@pytest.mark.parametrize("name", PATTERNS.names())
@pytest.mark.parametrize("temperature", [0.0, 0.01, 1.0])
def test_special_token_is_never_sampled_as_code(name: str, temperature: float) -> None:
    codes, _ = generate(
        constant_engine(SPECIAL_TOKEN, name), None, 10, sampling_settings(temperature=temperature), [0, 1]
    )
    assert int(codes.min()) >= 0


@pytest.mark.parametrize("name", PATTERNS.names())
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_cached_loop_equals_greedy_search_on_full_logits(name: str, guidance: float) -> None:
    model, prompt, frames = tiny(pattern=name).eval(), torch.randn(2, 12), 6
    sequence = torch.zeros(2, 4, model.pattern.num_steps(frames), dtype=torch.long)
    frame = model.pattern.frame_at_step(frames)
    for s in range(sequence.shape[2]):
        for k in range(4):  # the logits of a codebook may depend on the codes of those before it
            logits = model.logits(sequence, {"prompt": prompt})[:, s, k]
            if guidance != 1:
                unprompted = model.logits(sequence, None)[:, s, k]
                logits = unprompted + guidance * (logits - unprompted)
            logits[..., SPECIAL_TOKEN] = -math.inf
            sequence[:, k, s] = torch.where(frame[k, s] >= 0, logits.argmax(-1), SPECIAL_TOKEN)
    codes, _ = generate(
        InferenceEngine(model), {"prompt": prompt}, frames, sampling_settings(temperature=0, guidance=guidance), [0, 0]
    )
    assert torch.equal(codes, model.pattern.revert_sequence(sequence, frames) - 1)


@given(names, st.lists(st.integers(0, 2**40), min_size=1, max_size=5))
@settings(max_examples=15)
def test_codes_do_not_depend_on_the_batch(name: str, seeds: list[int]) -> None:
    engine, prompts = InferenceEngine(tiny(pattern=name).eval()), torch.randn(len(seeds), 12)
    together, _ = generate(engine, {"prompt": prompts}, 7, sampling_settings(temperature=0.9, top_k=50), seeds)
    for i, seed in enumerate(seeds):
        alone, _ = generate(
            engine, {"prompt": prompts[i : i + 1]}, 7, sampling_settings(temperature=0.9, top_k=50), [seed]
        )
        assert torch.equal(together[i], alone[0])


def test_prompt_that_is_not_finite_is_named() -> None:
    prompts = torch.zeros(3, 12)
    prompts[1, 4] = math.nan
    with pytest.raises(InputError, match=r"^prompts \[1\] have values that are not finite"):
        generate(InferenceEngine(tiny().eval()), {"prompt": prompts}, 5, sampling_settings(), [0, 1, 2])


def test_clip_longer_than_position_table_is_refused() -> None:
    with pytest.raises(InputError, match=r"200 frames are 203 steps under pattern=delay.*1\.\.128"):
        generate(InferenceEngine(tiny().eval()), None, 200, sampling_settings(), [0])


@pytest.mark.parametrize("name", PATTERNS.names())
def test_model_trained_to_end_ends_its_clips(name: str) -> None:
    """Three melodies of different lengths, each with its own prompt, are generated completely and then end."""
    torch.manual_seed(0)
    model = tiny(pattern=name, end_of_audio=True)
    melodies, prompts, lengths = torch.randint(0, 1024, (3, 4, 9)), torch.eye(3, 12) * 3, torch.tensor([9, 5, 2])
    train_on_clips(model, melodies, lengths, prompts, steps=120)
    engine = InferenceEngine(model.eval())
    codes, ends = generate(engine, {"prompt": prompts}, 14, sampling_settings(temperature=0), [0, 1, 2])
    assert ends.tolist() == lengths.tolist()
    for row, melody, n in zip(codes, melodies, lengths.tolist(), strict=True):
        assert torch.equal(row[:, :n], melody[:, :n]) and not row[:, n:].any()
