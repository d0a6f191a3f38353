"""The sounds of a listening test: reference, codec, models and a low anchor, of equal loudness and length.

Letters: S samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audio.loudness import amplify, check_meter, loudness_gain, measure_loudness
from pipeline.audio.recordings import load_source_audio
from pipeline.common.errors import InputError
from pipeline.data.dataset import ShardedDataset
from pipeline.evaluation.generations import generate_all
from pipeline.evaluation.listening.key import Role
from pipeline.evaluation.reference_clips import ReferenceClip, check_dataset, max_frames, sample_reference_clips
from pipeline.evaluation.settings import ReportSettings
from pipeline.generation.loaded_run import LoadedRun, load_run
from pipeline.generation.prompts import decode_codes

ANCHOR_HZ = (3_500, 4_000)  # BS.1534's low anchor: passes up to the first, and nothing above the second
MAX_SOUNDS = 12  # of a trial, as BS.1534 recommends
LOUDNESS, LOWEST_LOUDNESS = -23.0, -33.0  # LUFS
MAX_PEAK, MAX_GAIN = -1.0, 20.0  # dB; a sound that is nearly silent stays quiet
REFERENCE, CODEC, ANCHOR = "hidden reference", "codec (ceiling)", "anchor (3.5 kHz)"


@dataclass(frozen=True)
class Stimuli:
    """The sounds of a listening test.

    Attributes:
        roles: The role of each kind of sound by its title.
        trials: The clip of each trial, and its sounds, [S] or [S, 2], by title; the first trial is for practice.
        rate: The sample rate in Hz.
        details: How the sounds were generated.
    """

    roles: Mapping[str, Role]
    trials: Sequence[tuple[str, Mapping[str, np.ndarray]]]
    rate: int
    details: Mapping[str, Any]


def make_stimuli(settings: ReportSettings, shards: str, on_status: Callable[[str], None]) -> Stimuli:
    """Generate the sounds of `n` trials and of one for practice.

    Args:
        settings: The models, the clips, and how sounds are sampled.
        shards: The dataset that supplies the clips.
        on_status: Gets a line about each model.

    Raises:
        InputError: A run or the dataset cannot be used, there are too many models, or loudness cannot be measured.
    """
    check_meter()
    folders = list(dict.fromkeys([settings.run, *settings.other_runs]))
    most = MAX_SOUNDS - (3 if settings.corpus_root else 2)
    if len(folders) > most:
        others = ", ".join(settings.other_runs)
        raise InputError(f"other_runs=[{others}]: a trial has at most {MAX_SOUNDS} sounds; give at most {most - 1}")
    models = []
    for folder in folders:
        on_status(f"generating with {folder}")
        models.append(_generate(settings, shards, Path(folder)))
        if len(models[0].clips) < 2:
            raise InputError(f"shards={shards}: {settings.split} has 1 clip; one more is needed, for practice")
    best = max(models, key=lambda model: model.codebooks)
    recordings, rate = _read_recordings(settings.corpus_root, best), best.run.codec.sample_rate
    roles: dict[str, Role] = {REFERENCE: "reference", **({CODEC: "ceiling"} if recordings else {})}
    roles |= {**dict.fromkeys(folders, "model"), ANCHOR: "anchor"}
    trials = []
    for i, clip in enumerate(best.clips):
        size = min(len(model.codec[i]) for model in models)  # of the model with the fewest positions
        reference = (recordings or best.codec)[i][:size]
        sounds = [reference, *([best.codec[i]] if recordings else []), *(model.sounds[i] for model in models)]
        wavs = [wav[:size] for wav in (*sounds, low_pass(reference, rate))]
        trials.append((clip.sample.key, dict(zip(roles, equalize(wavs, rate), strict=True))))
    details = {
        "runs": {folder: model.run.sha256 for folder, model in zip(folders, models, strict=True)},
        "split": settings.split,
        "seed": settings.seed,
        "sampling": settings.sampling.to_dict(),
        "loudness": LOUDNESS,
    }
    return Stimuli(roles, trials, rate, details)


@dataclass(frozen=True)
class _Model:
    """A model with its sounds for each clip: its generations, and the codec's reconstructions with its codebooks."""

    run: LoadedRun
    clips: Sequence[ReferenceClip]
    sounds: Sequence[np.ndarray]
    codec: Sequence[np.ndarray]

    @property
    def codebooks(self) -> int:
        return self.run.model.config.codebooks


def _generate(settings: ReportSettings, shards: str, folder: Path) -> _Model:
    temperature = settings.sampling.to_dict()["temperature"]
    if not isinstance(temperature, (int, float)):
        raise InputError(f"sampling.temperature={temperature}: a listening test has one temperature; give a number")
    run = load_run(folder, settings.device, settings.codec_weights, settings.embedder_weights)
    split = ShardedDataset(shards, settings.split)
    check_dataset(split, run)
    clips = sample_reference_clips(split, settings.n + 1, settings.seed, run, max_frames(run))
    codes = generate_all(run, clips, [temperature], settings.sampling, settings.seed)[temperature]
    return _Model(run, clips, decode_codes(run.codec, codes), decode_codes(run.codec, [clip.codes for clip in clips]))


def _read_recordings(root: str | None, model: _Model) -> list[np.ndarray]:
    """The recording of each clip; none without `root`."""
    codec, metadata = model.run.codec, [clip.sample.metadata for clip in model.clips]
    wavs = [load_source_audio(root, each, codec.sample_rate, codec.channels) for each in metadata]
    return [wav for wav in wavs if wav is not None]


def low_pass(wav: np.ndarray, rate: int) -> np.ndarray:
    """A sound, [S] or [S, 2], without what is above 4 kHz, and unchanged below 3.5 kHz; its phase is kept."""
    spectrum = np.fft.rfft(wav, 2 * len(wav), axis=0)  # twice as long, so that the end does not ring into the start
    gains = np.interp(np.fft.rfftfreq(2 * len(wav), 1 / rate), ANCHOR_HZ, (1, 0))
    filtered = np.fft.irfft((spectrum.T * gains).T, 2 * len(wav), axis=0)
    return np.asarray(filtered[: len(wav)], np.float32)


def equalize(wavs: Sequence[np.ndarray], rate: int) -> list[np.ndarray]:
    """Sounds, [S] or [S, 2], with the same loudness and, by silence at their ends, with the same length.

    The loudness is lower where a peak would be above `MAX_PEAK`, but by at most 10 dB: then the one sound is quieter.
    """
    levels = [measure_loudness(wav, rate) + loudness_gain(wav, rate, LOUDNESS, MAX_PEAK)[0] for wav in wavs]
    target = max(LOWEST_LOUDNESS, min([LOUDNESS, *(level for level in levels if level > -math.inf)]))
    gains = [min(MAX_GAIN, loudness_gain(wav, rate, target, MAX_PEAK)[0]) for wav in wavs]
    size = max(map(len, wavs))
    return [
        np.pad(amplify(wav, gain), [(0, size - len(wav))] + [(0, 0)] * (wav.ndim - 1))
        for wav, gain in zip(wavs, gains, strict=True)
    ]
