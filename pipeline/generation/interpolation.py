"""Interpolation between prompts, keyframes, and crossfades between sounds.

Letters: N prompt vectors of a clip, P prompt width, S samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import InputError
from pipeline.generation.settings import Blend

BLENDS = get_args(Blend)


def interpolate(a: Tensor, b: Tensor, fraction: float, blend: Blend) -> Tensor:
    """The prompt [N, P] at a fraction 0..1 of the way from a to b, each of its vectors interpolated.

    blend: "linear", or "slerp": the direction moves along the great circle at constant speed (Shoemake 1985) and the
    norm is interpolated linearly.
    """
    if blend == "linear" or fraction in (0, 1):
        return torch.lerp(a, b, fraction)
    return torch.stack([_slerp(*vectors, fraction) for vectors in zip(a, b, strict=True)])


def _slerp(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """The vector [P] at a fraction of the arc from a to b."""
    unit_a, unit_b = a / a.norm().clamp_min(1e-12), b / b.norm().clamp_min(1e-12)
    angle = torch.arccos((unit_a * unit_b).sum().clamp(-1, 1))
    if angle < 1e-4:
        return torch.lerp(a, b, fraction)
    direction = (torch.sin((1 - fraction) * angle) * unit_a + torch.sin(fraction * angle) * unit_b) / torch.sin(angle)
    result: Tensor = direction * torch.lerp(a.norm(), b.norm(), fraction)
    return result


def interpolation_path(prompts: Sequence[Tensor], steps: int, blend: Blend) -> list[Tensor]:
    """`steps` evenly spaced prompts [N, P] from the first prompt through all others to the last.

    Raises:
        InputError: There are fewer than two prompts or steps.
    """
    if len(prompts) < 2:
        raise InputError(f"mode=interpolate: give 2 prompts or more, not {len(prompts)}")
    if steps < 2:
        raise InputError(f"steps={steps}: give 2 or more")
    path = []
    for position in np.linspace(0, len(prompts) - 1, steps):
        i = min(int(position), len(prompts) - 2)
        path.append(interpolate(prompts[i], prompts[i + 1], float(position - i), blend))
    return path


def keyframe_schedule(
    keyframes: Sequence[tuple[float, Tensor]], interval: float, blend: Blend
) -> list[tuple[float, Tensor]]:
    """Prompts [N, P] and the times from which they apply: about one every `interval` seconds between two keyframes.

    keyframes: Times in seconds, in ascending order from 0, and prompts.
    """
    schedule = []
    for (start, a), (end, b) in itertools.pairwise(keyframes):
        count = max(1, round((end - start) / interval))
        schedule += [(start + (end - start) * i / count, interpolate(a, b, i / count, blend)) for i in range(count)]
    return [*schedule, keyframes[-1]]


def crossfade(wavs: Sequence[np.ndarray], overlap: int) -> np.ndarray:
    """Join sounds, [S] or [S, 2], with equal-power crossfades of `overlap` samples."""
    out = wavs[0]
    for wav in wavs[1:]:
        n = min(overlap, len(out), len(wav))
        rise = np.sin(np.linspace(0, np.pi / 2, n, dtype=np.float32)).reshape(-1, *[1] * (wav.ndim - 1))
        out = np.concatenate([out[: len(out) - n], out[len(out) - n :] * rise[::-1] + wav[:n] * rise, wav[n:]])
    return out
