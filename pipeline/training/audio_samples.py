"""The same few validation clips heard again and again as training goes on: prompt, reconstruction, generations."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipeline.audio.codecs import load_codec
from pipeline.audio.codecs.base import Codec
from pipeline.audio.recordings import load_source_audio
from pipeline.common.errors import InputError
from pipeline.data.dataloader import ShardedDataset
from pipeline.data.random_clips import sample_clips
from pipeline.data.shard import Sample
from pipeline.generation.engine import InferenceEngine
from pipeline.generation.generator import generate
from pipeline.generation.sampling import SamplingParams
from pipeline.models.codec_gpt import CodecGPT
from pipeline.tracking.wandb_media import Sounds

log = logging.getLogger(__name__)
SEED = 0


class AudioSampler:
    """Some clips of a split, drawn once, and how to continue from their prompts."""

    def __init__(
        self,
        split: ShardedDataset,
        codec: Codec,
        clips: int,
        seconds: float,
        temperatures: Sequence[float],
        sampling: SamplingParams,
        originals: str | None = None,
    ) -> None:
        """seconds: of each clip, at most; originals: the corpus' folder, for the recordings beside."""
        self.codec, self.temperatures, self.sampling = codec, list(temperatures), sampling
        frames = round(seconds * codec.frame_rate)
        self.samples = [*sample_clips(split.store, split.manifest, clips, SEED, split.split)]
        self.codes = [torch.from_numpy(s.codes[: codec.codebooks, :frames].astype(np.int64)) for s in self.samples]
        self.rate = codec.sample_rate
        given = zip(self.samples, self.codes, strict=True)
        self._same = [self._given(sample, codes, originals) for sample, codes in given]

    @torch.no_grad()
    def sample(self, model: CodecGPT) -> list[tuple[str, Sounds]]:
        """For each clip its name and its sounds; the model is left as it was."""
        prompts = torch.from_numpy(np.stack([sample.prompt for sample in self.samples])).float()  # [B, P]
        frames = max(codes.shape[1] for codes in self.codes)
        training = model.training
        model.eval()
        try:
            player, made = InferenceEngine(model), {}
            for t in self.temperatures:
                seeds = range(SEED, SEED + len(prompts))
                sampling = replace(self.sampling, temperature=t)
                made[t] = generate(player, prompts.to(model.null_prompt.device), frames, sampling, list(seeds))
        finally:
            model.train(training)
        found: list[tuple[str, Sounds]] = []
        for i, (sample, codes, same) in enumerate(zip(self.samples, self.codes, self._same, strict=True)):
            ends = {t: min(int(lengths[i]), codes.shape[1]) for t, (_, lengths) in made.items()}
            new = {f"temperature {t:g}": self._decode(all_[i, :, : ends[t]].cpu()) for t, (all_, _) in made.items()}
            found.append((sample.key, {**same, **new}))
        return found

    def _given(self, sample: Sample, codes: torch.Tensor, originals: str | None) -> Sounds:
        """What no training changes: the sound itself, where the corpus is at hand, and what the codec makes of it."""
        given = {"reconstruction": self._decode(codes)}
        wav = load_source_audio(originals, sample.metadata, self.rate)
        return given if wav is None else {"prompt": wav[: codes.shape[1] * self.codec.hop_length], **given}

    def _decode(self, codes: torch.Tensor) -> np.ndarray:
        """Codes [K, T] -> wav [S]."""
        if not codes.shape[1]:  # ended before it began
            return np.zeros(self.codec.hop_length, np.float32)
        device = getattr(self.codec, "device", "cpu")
        return self.codec.decode(codes[None].to(device))[0, 0].float().cpu().numpy()


def build_audio_sampler(
    listen: Mapping[str, Any], codec: Mapping[str, Any], split: ShardedDataset, device: torch.device
) -> AudioSampler | None:
    """Ears as the settings ask for; None where they ask for none, or the codec's weights are not at hand (told).

    listen: clips, seconds, temperatures, top_k, originals; codec: as `conf/codec`.
    Raises InputError where the recordings do not lie in `originals`.
    """
    if not listen["clips"] or not len(split):
        return None
    try:
        opened = load_codec(codec["name"], codec["codebooks"], repository=codec["repository"], device=device)
    except InputError as error:
        log.warning("nothing will be heard of the model while it trains: %s", error)
        return None
    sampling = SamplingParams(top_k=listen["top_k"])
    return AudioSampler(
        split, opened, listen["clips"], listen["seconds"], listen["temperatures"], sampling, listen["corpus_root"]
    )
