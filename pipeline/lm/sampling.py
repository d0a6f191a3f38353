"""Codes from a model: choose among logits, and step through a pattern with a key-value cache.

Every row of a batch has random numbers of its own, drawn from its own seed: row i gives the same codes alone.

Letters: B clips, K codebooks, T frames, S steps, C = 1025 classes, P prompt width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from pipeline.errors import InputError
from pipeline.lm.model import CodecGPT
from pipeline.lm.patterns import EMPTY


@dataclass(frozen=True)
class Sampling:
    """How to choose among the classes of a codebook.

    temperature: 0 is greedy; above 0 it divides the logits; one for all codebooks, or one each. top_k: only the k
    likeliest (0: all). top_p: only the likeliest whose probabilities first reach p (1: all). guidance: 1 follows the
    prompt as trained; above 1 pushes away from what the model would do without it (Ho & Salimans 2022,
    arXiv:2207.12598).
    """

    temperature: float | tuple[float, ...] = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        each = self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)
        if not each or not all(0 <= one < math.inf for one in each):
            raise InputError(f"sampling.temperature={self.temperature}: give 0 (greedy) or more")
        if self.top_k < 0:
            raise InputError(f"sampling.top_k={self.top_k}: give 0 (all classes) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"sampling.top_p={self.top_p}: give more than 0 and at most 1")


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling, temperature: Tensor | None = None) -> Tensor:
    """Logits [..., C], numbers in [0, 1) [...] -> classes [...], by inverting the cumulated probabilities.

    temperature: one for each [...], instead of the sampling's own. Raises ValueError for logits that are not numbers,
    or leave nothing to choose.
    """
    if not bool((logits.amax(-1).isfinite()).all()) or bool(logits.isnan().any()):
        raise ValueError("the model's logits are not finite: its weights are damaged, or training diverged")
    if temperature is None:
        temperature = torch.tensor(sampling.temperature, device=logits.device).expand(logits.shape[:-1])
    likeliest = logits.argmax(-1)
    if not bool(temperature.any()):
        return likeliest
    logits = logits / torch.where(temperature == 0, 1, temperature)[..., None]
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1:
        ranked, order = probabilities.sort(-1, descending=True)
        before = ranked.cumsum(-1) - ranked
        kept = torch.zeros_like(ranked, dtype=torch.bool).scatter(-1, order, before < sampling.top_p)
        probabilities = probabilities * kept
    edges = probabilities.cumsum(-1)
    drawn = torch.searchsorted(edges, (uniform * edges[..., -1])[..., None], right=True)[..., 0]
    # rounding may point behind the last class that has any probability
    last = probabilities.shape[-1] - 1 - (probabilities > 0).flip(-1).int().argmax(-1)
    return torch.where(temperature == 0, likeliest, torch.minimum(drawn, last))


def temperatures(samplings: Sequence[Sampling], codebooks: int) -> Tensor:
    """The temperature of each row and codebook: float32 [B, K]. Raises InputError where they are not K."""
    rows = []
    for each in (sampling.temperature for sampling in samplings):
        if isinstance(each, tuple) and len(each) != codebooks:
            raise InputError(f"sampling.temperature={list(each)}: the model has {codebooks} codebooks; give one each")
        rows.append(each if isinstance(each, tuple) else (each,) * codebooks)
    return torch.tensor(rows, dtype=torch.float32)


def uniforms(seeds: Sequence[int], steps: int, codebooks: int) -> Tensor:
    """The random numbers of each row, from its own seed: float32 [B, S, K]."""
    draw = [torch.rand(steps, codebooks, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draw)


@torch.inference_mode()
def generate(
    model: CodecGPT,
    prompts: Tensor | None,
    frames: int,
    sampling: Sampling | Sequence[Sampling],
    seeds: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Generate codes under the model's pattern.

    prompts: [B, P], or None for the null prompt; frames: how many at most; sampling: one for all rows, or one a row,
    which may differ in temperature; seeds: one a row.
    Returns codes [B, K, T] in 0..1023 and the true frames [B]: fewer than asked for only where the model was trained
    to end its clips; codes behind the end are 0. Raises InputError for more steps than the model has positions.
    """
    pattern, ends, device = model.pattern, model.config.end_of_audio, model.null.device
    laid_frames = frames + ends  # a model that knows ends was trained with a frame of EMPTY after the last
    steps, B = pattern.length(laid_frames), len(seeds)
    if not 0 < steps <= model.config.positions or frames < 1:
        raise InputError(
            f"{frames} frames are {steps} steps under pattern={pattern.name}, and the model reads "
            f"1..{model.config.positions}: ask for other seconds=, or train with a larger model.positions"
        )
    samplings = [sampling] * B if isinstance(sampling, Sampling) else list(sampling)
    sampling = samplings[0]
    assert len(samplings) == B and all(replace(s, temperature=sampling.temperature) == sampling for s in samplings)
    temperature = temperatures(samplings, model.config.codebooks).to(device)
    guided = sampling.guidance != 1 and prompts is not None
    random = uniforms(seeds, steps, model.config.codebooks).to(device)
    laid = torch.full((B, model.config.codebooks, steps), EMPTY, device=device)
    lengths = torch.full((B,), frames, device=device)
    held = pattern.frames(laid_frames, lengths + ends)  # [B, K, S]
    cache, inputs = DynamicCache(config=model.trunk.config), _start(model, prompts, B, guided)
    for s in range(steps):
        logits = model.predict(model.read(inputs, cache)[:, -1:])[:, 0]  # [B or 2 B, K, C]
        if guided:
            with_prompt, without = logits.chunk(2)
            logits = without + sampling.guidance * (with_prompt - without)
        active = (held[:, :, s] >= 0) & (held[:, :, s] < lengths[:, None])
        tokens = _choose_step(model, logits, random[:, s], active, sampling, temperature)
        if ends:
            ended = active[:, 0] & (tokens[:, 0] == EMPTY)
            if bool(ended.any()):
                lengths = torch.where(ended, held[:, 0, s], lengths)
                held = pattern.frames(laid_frames, lengths + 1)
                tokens = torch.where(held[:, :, s] < lengths[:, None], tokens, EMPTY)
            if not bool(((held >= 0) & (held < lengths[:, None, None]))[:, :, s + 1 :].any()):
                laid[:, :, s] = tokens
                break
        laid[:, :, s] = tokens
        inputs = model.embed(tokens[:, :, None])
        if guided:
            inputs = inputs.repeat(2, 1, 1)
    codes = pattern.revert(laid, laid_frames, lengths + ends)[:, :, :frames] - 1
    behind = torch.arange(frames, device=device) >= lengths[:, None, None]
    codes = codes.masked_fill(behind, 0)
    assert bool((codes >= 0).all()), "a cell that holds a code was left empty"
    return codes, lengths


def _start(model: CodecGPT, prompts: Tensor | None, rows: int, guided: bool) -> Tensor:
    """Position 0: [B, 1, D], or with guidance [2 B, 1, D], the second half without a prompt."""
    vector = model.condition(None if prompts is None else prompts.to(model.null.device), rows)
    return torch.cat([vector, model.condition(None, rows)]) if guided else vector


def _choose_step(
    model: CodecGPT, logits: Tensor, uniform: Tensor, active: Tensor, sampling: Sampling, temperature: Tensor
) -> Tensor:
    """Logits [B, K, C], temperatures [B, K] -> tokens [B, K]: a code in active cells [B, K], EMPTY elsewhere.

    EMPTY in an active cell would be a hole in the sound: it is impossible, unless it is the first codebook's way to
    say that the clip has ended.
    """
    forbidden = torch.zeros_like(logits, dtype=torch.bool)
    forbidden[:, int(model.config.end_of_audio) :, EMPTY] = True
    tokens = choose(logits.masked_fill(forbidden, -torch.inf), uniform, sampling, temperature)
    return torch.where(active, tokens, EMPTY)
