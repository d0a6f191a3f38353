"""Prompts to sound files, each with a JSON sidecar that says all it was made from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.errors import InputError
from pipeline.listen.instrument import Instrument
from pipeline.listen.prompts import Prompt, decode
from pipeline.lm.choice import Sampling
from pipeline.lm.sampling import generate
from pipeline.sound import audio


@dataclass(frozen=True)
class Order:
    """One clip to make: prompt is None without one; vector [P] is its embedding."""

    out: Path
    prompt: Prompt | None
    vector: Tensor | None
    seed: int


def sampling_of(settings: Any) -> Sampling:
    """The `sampling` group of a config. Raises InputError for values that make no sense."""
    found = {str(key): value for key, value in settings.items()}
    if not isinstance(found["temperature"], (int, float)):
        found["temperature"] = tuple(found["temperature"])
    return Sampling(**found)


def frames_of(instrument: Instrument, seconds: float) -> tuple[int, int]:
    """How many samples and frames so many seconds are. Raises InputError for none."""
    samples = round(seconds * instrument.codec.sample_rate)
    if not samples > 0:
        raise InputError(f"seconds={seconds}: give more than 0")
    return samples, instrument.codec.frames(samples)


def make(
    instrument: Instrument, orders: list[Order], seconds: float, sampling: Sampling, batch: int
) -> Iterator[tuple[Path, np.ndarray]]:
    """Generate clips, `batch` at a time, and write each as soon as its batch is done; yields path and sound [S]."""
    import torch

    samples, frames = frames_of(instrument, seconds)
    for first in range(0, len(orders), batch):
        part = orders[first : first + batch]
        vectors = [order.vector for order in part if order.vector is not None]
        prompts = torch.stack(vectors) if vectors else None
        codes, lengths = generate(instrument.player, prompts, frames, sampling, [order.seed for order in part])
        sounds = decode(instrument.codec, [row[:, :n] for row, n in zip(codes, lengths.tolist(), strict=True)])
        for order, sound in zip(part, sounds, strict=True):
            wav = sound[:samples]
            audio.write(order.out, wav, instrument.codec.sample_rate)
            write_sidecar(order, instrument, seconds, sampling)
            yield order.out, wav


def write_sidecar(order: Order, instrument: Instrument, seconds: float, sampling: Sampling) -> None:
    """Write {name}.json beside {name}.wav."""
    prompt = None if order.prompt is None else {"path": str(order.prompt.path), "sha256": order.prompt.sha256}
    if order.prompt is not None and prompt is not None:
        prompt["seconds"] = len(order.prompt.wav) / instrument.codec.sample_rate
    told = {
        "wav": order.out.name,
        "seed": order.seed,
        "seconds": seconds,
        "prompt": prompt,
        "sampling": asdict(sampling),
        "pattern": instrument.model.config.pattern,
        **instrument.identity,
    }
    order.out.with_suffix(".json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
