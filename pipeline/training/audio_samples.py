"""Audio samples of a model during training: the same validation clips each time, so that progress can be compared."""

from __future__ import annotations

import logging

import numpy as np
import torch

from pipeline.audio.codecs import CodecSettings
from pipeline.audio.codecs.base import Codec
from pipeline.audio.precision import codec_device
from pipeline.audio.recordings import load_source_audio
from pipeline.common.errors import InputError
from pipeline.common.frames import count_frames
from pipeline.data.dataset import ShardedDataset
from pipeline.data.random_clips import sample_clips
from pipeline.data.shard import Sample, stack_prompts
from pipeline.data.stats import labels_of
from pipeline.generation.engine import InferenceEngine
from pipeline.generation.generator import generate
from pipeline.generation.settings import sampling_settings
from pipeline.models.codec_gpt import CodecGPT
from pipeline.tracking.base import Sounds
from pipeline.training.settings import AudioSamplesSettings

log = logging.getLogger(__name__)
SEED = 0


class AudioSampler:
    """Generates audio from the prompts of a few clips of a split."""

    def __init__(self, split: ShardedDataset, codec: Codec, settings: AudioSamplesSettings) -> None:
        """Choose the clips and decode them.

        Args:
            split: the split to choose from.
            codec: decodes the codes.
            settings: how many clips, how long, and at which temperatures.
        """
        self.codec, self.settings, self.sample_rate = codec, settings, codec.sample_rate
        max_frames = count_frames(settings.seconds, codec.sample_rate, codec.hop_length)
        self.clips = [*sample_clips(split.store, split.manifest, settings.clips, SEED, split.split)]
        self.codes = [torch.from_numpy(c.codes[: codec.codebooks, :max_frames].astype(np.int64)) for c in self.clips]
        self._references = [*map(self._decode_reference, self.clips, self.codes)]

    @torch.no_grad()
    def sample(self, model: CodecGPT) -> list[tuple[str, Sounds]]:
        """Generate from the prompt and labels of each clip; the model's mode and the global generator stay unchanged.

        Returns:
            For each clip its key, and wavs, [S] or [S, 2], by name: `prompt` (the original recording),
            `reconstruction` (by the codec), `temperature T`.
        """
        prompts = torch.from_numpy(stack_prompts(self.clips))  # [B, N, P]
        labels = {name: [labels_of(clip).get(name) for clip in self.clips] for name in model.label_conditions}
        values = model.condition_values(prompts.to(model.device), labels)
        max_frames = max(codes.shape[1] for codes in self.codes)
        seeds = list(range(SEED, SEED + len(prompts)))
        was_training = model.training
        model.eval()
        try:
            engine = InferenceEngine(model)
            generations = {}
            for temperature in self.settings.temperatures:
                sampling = sampling_settings(temperature=temperature, top_k=self.settings.top_k)
                generations[temperature] = generate(engine, values, max_frames, sampling, seeds)
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

    def _decode_reference(self, clip: Sample, codes: torch.Tensor) -> Sounds:
        """The wavs that do not depend on the model: the original recording, if available, and its reconstruction."""
        reconstruction = {"reconstruction": self._decode(codes)}
        wav = load_source_audio(self.settings.corpus_root, clip.metadata, self.sample_rate, self.codec.channels)
        if wav is None:
            return reconstruction
        return {"prompt": wav[: codes.shape[1] * self.codec.hop_length], **reconstruction}

    def _decode(self, codes: torch.Tensor) -> np.ndarray:
        """Codes [K, T] -> wav [S] or [S, 2]."""
        if not codes.shape[1]:  # the clip ended immediately
            return self.codec.silence(self.codec.hop_length)
        return self.codec.decode_clip(codes)


def build_audio_sampler(
    settings: AudioSamplesSettings, codec: CodecSettings, split: ShardedDataset, device: torch.device
) -> AudioSampler | None:
    """The audio sampler of the settings; None if they request no clips, or (logged) if the codec cannot be loaded.

    Args:
        settings: the settings of the samples.
        codec: the settings of the codec.
        split: the validation split.
        device: where to decode.

    Raises:
        InputError: the original recordings are not in `audio_samples.corpus_root`.
    """
    if not settings.clips or not len(split):
        return None
    try:
        loaded = codec.open(codec_device(device))
    except InputError as error:
        log.warning("no audio samples will be generated during training: %s", error)
        return None
    return AudioSampler(split, loaded, settings)
