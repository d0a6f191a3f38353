"""Audio samples of a model during training: the same validation clips each time, so that progress can be compared."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.audio.codecs import load_codec
from pipeline.audio.codecs.base import Codec
from pipeline.audio.recordings import load_source_audio
from pipeline.common.errors import InputError
from pipeline.data.dataset import ShardedDataset
from pipeline.data.random_clips import sample_clips
from pipeline.data.shard import Sample
from pipeline.generation.engine import InferenceEngine
from pipeline.generation.generator import generate
from pipeline.generation.settings import SamplingSettings, sampling_settings
from pipeline.models.codec_gpt import CodecGPT
from pipeline.tracking.base import Sounds

log = logging.getLogger(__name__)
SEED = 0


class AudioSampler:
    """Generates audio from the prompts of a few clips of a split."""

    def __init__(
        self,
        split: ShardedDataset,
        codec: Codec,
        clips: int,
        seconds: float,
        temperatures: Sequence[float],
        sampling: SamplingSettings,
        corpus_root: str | None = None,
    ) -> None:
        """Choose the clips and decode them.

        Args:
            split: the split to choose from.
            codec: decodes the codes.
            clips: number of clips.
            seconds: maximum length of a clip.
            temperatures: one sample is generated at each.
            sampling: the other sampling parameters.
            corpus_root: the folder of the corpus, to add the original recordings; None: without them.
        """
        self.codec, self.temperatures, self.sampling = codec, list(temperatures), sampling
        self.sample_rate = codec.sample_rate
        max_frames = round(seconds * codec.frame_rate)
        self.clips = [*sample_clips(split.store, split.manifest, clips, SEED, split.split)]
        self.codes = [torch.from_numpy(c.codes[: codec.codebooks, :max_frames].astype(np.int64)) for c in self.clips]
        self._references = [
            self._decode_reference(*pair, corpus_root) for pair in zip(self.clips, self.codes, strict=True)
        ]

    @torch.no_grad()
    def sample(self, model: CodecGPT) -> list[tuple[str, Sounds]]:
        """Generate from the prompt of each clip; the model's mode and the global random generator stay unchanged.

        Returns:
            For each clip its key, and wavs [S] by name: `prompt` (the original recording), `reconstruction` (by the
            codec), `temperature T`.
        """
        prompts = torch.from_numpy(np.stack([clip.prompt for clip in self.clips])).float()  # [B, P]
        prompts = prompts.to(model.null_prompt.device)
        max_frames = max(codes.shape[1] for codes in self.codes)
        seeds = list(range(SEED, SEED + len(prompts)))
        was_training = model.training
        model.eval()
        try:
            engine = InferenceEngine(model)
            generations = {
                temperature: generate(
                    engine, prompts, max_frames, self.sampling.model_copy(update={"temperature": temperature}), seeds
                )
                for temperature in self.temperatures
            }
        finally:
            model.train(was_training)
        samples: list[tuple[str, Sounds]] = []
        for i, (clip, codes, reference) in enumerate(zip(self.clips, self.codes, self._references, strict=True)):
            sounds = dict(reference)
            for temperature, (all_codes, lengths) in generations.items():  # [B, K, T], [B]
                length = min(int(lengths[i]), codes.shape[1])
                sounds[f"temperature {temperature:g}"] = self._decode(all_codes[i, :, :length].cpu())
            samples.append((clip.key, sounds))
        return samples

    def _decode_reference(self, clip: Sample, codes: torch.Tensor, corpus_root: str | None) -> Sounds:
        """The wavs that do not depend on the model: the original recording, if available, and its reconstruction."""
        reconstruction = {"reconstruction": self._decode(codes)}
        wav = load_source_audio(corpus_root, clip.metadata, self.sample_rate)
        if wav is None:
            return reconstruction
        return {"prompt": wav[: codes.shape[1] * self.codec.hop_length], **reconstruction}

    def _decode(self, codes: torch.Tensor) -> np.ndarray:
        """Codes [K, T] -> wav [S]."""
        if not codes.shape[1]:  # the clip ended immediately
            return np.zeros(self.codec.hop_length, np.float32)
        return self.codec.decode_clip(codes)


def build_audio_sampler(
    settings: Mapping[str, Any], codec: Mapping[str, Any], split: ShardedDataset, device: torch.device
) -> AudioSampler | None:
    """The audio sampler of the settings; None if they request no clips, or (logged) if the codec cannot be loaded.

    Args:
        settings: `audio_samples.*`.
        codec: `codec.*`.
        split: the validation split.
        device: where to decode.

    Raises:
        InputError: the original recordings are not in `audio_samples.corpus_root`.
    """
    if not settings["clips"] or not len(split):
        return None
    try:
        loaded = load_codec(codec["name"], codec["codebooks"], weights_dir=codec["weights_dir"], device=device)
    except InputError as error:
        log.warning("no audio samples will be generated during training: %s", error)
        return None
    sampling = sampling_settings(top_k=settings["top_k"])
    return AudioSampler(
        split, loaded, settings["clips"], settings["seconds"], settings["temperatures"], sampling,
        settings["corpus_root"],
    )  # fmt: skip
