"""Clips of a dataset on which a model is evaluated.

Letters: K codebooks, T frames.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import InputError
from pipeline.data.dataloader import Batch, iter_once
from pipeline.data.dataset import ShardedDataset
from pipeline.data.random_clips import sample_clips
from pipeline.data.shard import Sample, stack_prompts
from pipeline.data.stats import labels_of
from pipeline.generation.loaded_run import LoadedRun

PITCH = "pitch"  # the label with the pitch of a note, as a MIDI note number
MAX_REFERENCE_CLIPS = 10_000  # to which distances are measured
_BATCH = 256


@dataclass(frozen=True)
class ReferenceClip:
    """A clip of a dataset.

    Attributes:
        sample: The clip as stored in its shard.
        codes: Its codes [K, T], with the model's number of codebooks and at most its number of frames.
    """

    sample: Sample
    codes: Tensor

    @property
    def pitch(self) -> float:
        """The clip's pitch label, or NaN if it has none."""
        pitch = labels_of(self.sample).get(PITCH)
        return float("nan") if pitch is None else float(pitch)


def check_dataset(split: ShardedDataset, run: LoadedRun) -> None:
    """Check that a split has clips with the model's codec and embedder, and select the model's codebooks.

    Raises:
        InputError: The split is empty, or was encoded with another codec or embedder; names what differs.
    """
    config, manifest = run.model.config, split.manifest
    if not len(split):
        raise InputError(f"{manifest.path} has no clips in {split.split}: it has {', '.join(manifest.splits)}")
    manifest.check_codec(config.codec, config.codebooks)
    manifest.check_embedder(config.embedder)
    split.codebooks = config.codebooks


def max_frames(run: LoadedRun) -> int:
    """The frames of the longest clip for which the model has positions, or of the longest training clip if known."""
    config, num_steps = run.model.config, run.model.pattern.num_steps
    lengths = range(1, config.positions + 1)
    longest = bisect.bisect_right(lengths, config.positions, key=lambda frames: num_steps(frames + config.end_of_audio))
    return min(longest, run.trained_frames or longest)


def sample_reference_clips(
    split: ShardedDataset, n: int, seed: int, run: LoadedRun, frames: int
) -> list[ReferenceClip]:
    """n random clips of a split, cropped to `frames`; fewer if the split is smaller."""
    K = run.model.config.codebooks
    samples = sample_clips(split.store, split.manifest, n, seed, split.split)
    return [ReferenceClip(sample, torch.from_numpy(sample.codes[:K, :frames].astype(np.int64))) for sample in samples]


def iter_reference_batches(split: ShardedDataset, max_frames: int | None = None) -> Iterator[Batch]:
    """The clips of a split to which distances are measured: the first `MAX_REFERENCE_CLIPS`, up to a full batch."""
    return islice(iter_once(split, _BATCH, max_frames=max_frames), -(-MAX_REFERENCE_CLIPS // _BATCH))


def clip_values(run: LoadedRun, clips: Sequence[ReferenceClip]) -> dict[str, Tensor]:
    """The values of the model's conditions that clips have, [N, ...] by the condition's name: prompts and labels."""
    prompts = torch.from_numpy(stack_prompts(clip.sample for clip in clips))
    names = run.model.label_conditions
    labels = {name: [labels_of(clip.sample).get(name) for clip in clips] for name in names}
    return run.model.condition_values(prompts, labels)
