"""Codes generated from the prompts and labels of clips.

Letters: N clips, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pipeline.evaluation.reference_clips import ReferenceClip, clip_values
from pipeline.generation.generator import SlidingWindow, generate
from pipeline.generation.guidance import Guidance, Values
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.settings import SamplingSettings


def generate_all(
    run: LoadedRun,
    clips: Sequence[ReferenceClip],
    temperatures: Sequence[float],
    sampling: SamplingSettings,
    seed: int,
    batch: int | None = None,
    values: Values | None = None,
    frames: int | None = None,
    window: SlidingWindow | None = None,
) -> dict[float, list[Tensor]]:
    """Generate from each clip's prompt and labels at each temperature.

    Args:
        run: The model.
        clips: The clips.
        temperatures: The temperatures.
        sampling: The other settings of sampling.
        seed: The seed of the first clip at each temperature; the following clips use the following seeds.
        batch: Clips generated at once; None: as many as fit into memory.
        values: Other values of conditions [N, ...] than those of the clips.
        frames: The length of all sounds; None: that of each clip.
        window: The sliding window of long sounds.

    Returns:
        By temperature, the codes [K, T] for each clip.
    """
    values = clip_values(run, clips) if values is None else values
    lengths = [frames or clip.codes.shape[1] for clip in clips]
    read = window.frames if window else max(lengths)
    batch = batch or run.best_batch(read, Guidance.plan(sampling.guidance, values).rows_per_clip)
    order = sorted(range(len(clips)), key=lambda i: -lengths[i])  # so that a batch has clips of similar length
    codes_by_temperature = {}
    for temperature in temperatures:
        own_sampling, codes_by_clip = sampling.model_copy(update={"temperature": temperature}), dict[int, Tensor]()
        for first in range(0, len(order), batch):
            part = order[first : first + batch]
            seeds, longest = [seed + i for i in part], max(lengths[i] for i in part)
            own_values = {name: each[part] for name, each in values.items()}
            codes, ends = generate(run.engine, own_values, longest, own_sampling, seeds, window)
            for i, row, end in zip(part, codes.cpu(), ends.tolist(), strict=True):
                codes_by_clip[i] = row[:, : max(1, min(end, lengths[i]))]
        codes_by_temperature[temperature] = [codes_by_clip[i] for i in range(len(clips))]
    return codes_by_temperature
