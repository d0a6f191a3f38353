"""Ways from one prompt to the next, and from one sound to the next.

Letters: P prompt width, S samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import InputError

BLENDS = ("linear", "slerp")


def interpolate(a: Tensor, b: Tensor, share: float, blend: str) -> Tensor:
    """The prompt [P] at a share 0..1 of the way from a to b. Raises InputError for an unknown way.

    slerp: directions along the great circle at an even speed, lengths in proportion (Shoemake 1985).
    """
    if blend not in BLENDS:
        raise InputError(f"blend={blend}: give {' or '.join(BLENDS)}")
    if blend == "linear" or share in (0, 1):
        return torch.lerp(a, b, share)
    one, other = a / a.norm().clamp_min(1e-12), b / b.norm().clamp_min(1e-12)
    angle = torch.arccos((one * other).sum().clamp(-1, 1))
    if angle < 1e-4:
        return torch.lerp(a, b, share)
    direction = (torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * other) / torch.sin(angle)
    return direction * torch.lerp(a.norm(), b.norm(), share)


def interpolation_path(prompts: Sequence[Tensor], steps: int, blend: str) -> list[Tensor]:
    """So many prompts [P], evenly from the first through all to the last. Raises InputError for fewer than two."""
    if len(prompts) < 2:
        raise InputError(f"mode=interpolate goes from prompt to prompt: {len(prompts)} given, 2 or more are needed")
    if steps < 2:
        raise InputError(f"steps={steps}: an interpolation has 2 clips or more")
    found = []
    for place in np.linspace(0, len(prompts) - 1, steps):
        i = min(int(place), len(prompts) - 2)
        found.append(interpolate(prompts[i], prompts[i + 1], float(place - i), blend))
    return found


def keyframe_schedule(
    keyframes: Sequence[tuple[float, Tensor]], interval: float, blend: str
) -> list[tuple[float, Tensor]]:
    """Prompts [P] and the seconds from which they hold, a new one `every` seconds on the way between keyframes.

    keyframes: in the order of their seconds, the first at 0.
    """
    found = []
    for (start, a), (end, b) in itertools.pairwise(keyframes):
        count = max(1, round((end - start) / interval))
        found += [(start + (end - start) * i / count, interpolate(a, b, i / count, blend)) for i in range(count)]
    return [*found, keyframes[-1]]


def parse_keyframes(given: Any) -> list[tuple[float, str]]:
    """The setting `keyframes` as seconds and prompt files. Raises InputError where it is not that."""
    try:
        found = [(float(frame["at"]), str(frame["prompt"])) for frame in given or []]
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"keyframes={given}: give [{{at: 0, prompt: a.wav}}, {{at: 4, prompt: b.wav}}]") from error
    starts = [at for at, _ in found]
    if not found or starts[0] != 0 or starts != sorted(set(starts)):
        raise InputError(f"keyframes={given}: give them in order, each at other seconds, the first at 0")
    return found


def crossfade(wavs: Sequence[np.ndarray], fade: int) -> np.ndarray:
    """Sounds [S] one after the other, each fading into the next over `fade` samples at equal power."""
    out = wavs[0]
    for wav in wavs[1:]:
        n = min(fade, len(out), len(wav))
        rise = np.sin(np.linspace(0, np.pi / 2, n, dtype=np.float32))
        out = np.concatenate([out[: len(out) - n], out[len(out) - n :] * rise[::-1] + wav[:n] * rise, wav[n:]])
    return out
