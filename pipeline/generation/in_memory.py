"""Generation without files: prompts are paths or arrays, results are arrays.

Letters: K codebooks, T frames, S samples.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
from torch import Tensor

from pipeline.audio import amplitude, audio_io
from pipeline.common.errors import InputError
from pipeline.generation.prompts import SourceAudio, prompt_vector, read_source
from pipeline.generation.request import ClipRequest, num_samples, resolve_window
from pipeline.generation.runner import start_generation
from pipeline.generation.settings import sampling_settings

if TYPE_CHECKING:
    from pipeline.generation.loaded_run import LoadedRun

Prompt = str | Path | np.ndarray
PROMPT_SECONDS, TEMPERATURE = 30.0, 0.7  # as in conf/generate.yaml and conf/sampling/default.yaml


@dataclass(frozen=True)
class Audio:
    """Generated audio.

    Attributes:
        samples: Float32 [S], mono.
        rate: Samples per second.
        seed: The seed that generates it again.
        codes: Int64 [K, T], the codes that were decoded.
    """

    samples: np.ndarray
    rate: int
    seed: int
    codes: np.ndarray

    @property
    def seconds(self) -> float:
        """The duration."""
        return len(self.samples) / self.rate

    def save(self, path: str | Path) -> None:
        """Write an audio file; the suffix decides the format. Raises InputError for a format that is not supported."""
        audio_io.write(path, self.samples, self.rate)


def generate_audio(
    run: LoadedRun,
    prompts: Sequence[Prompt | None],
    sampling: Mapping[str, Any],
    *,
    rate: int | None,
    seconds: float | None,
    n: int,
    seed: int,
    mode: str,
    batch: int | None,
) -> list[Audio]:
    """Generate `n` times for each prompt. See `LoadedRun.generate`."""
    if n < 1 or (batch is not None and batch < 1):
        raise InputError(f"n={n}, batch={batch}: expected at least 1")
    if mode not in ("prompt", "continue"):
        raise InputError(f"mode={mode}: expected prompt or continue")
    params = sampling_settings(**{"temperature": TEMPERATURE, **sampling})
    settings: dict[str, Any] = {"seconds": "auto" if seconds is None else seconds, "mode": mode}
    samples = num_samples(settings, run)
    frames = run.codec.num_frames(samples)
    window = resolve_window({**settings, "window": "auto", "window_stride": "auto"}, frames, run)
    vectors = [None if prompt is None else _embed_prompt(run, prompt, rate) for prompt in prompts]
    clips = [
        ClipRequest(seed + number, () if vector is None else ((0, vector),))
        for number, vector in enumerate(vector for vector in vectors for _ in range(n))
    ]
    batch = batch or run.best_batch(window.frames if window else frames)
    results = []
    for first in range(0, len(clips), batch):
        part = clips[first : first + batch]
        if len({len(clip.prompts) for clip in part}) > 1:  # with and without a prompt
            raise InputError("prompt=[...]: expected a prompt in each place, or None in each")
        generation = start_generation(run, part, samples, params, window)
        for _ in generation.chunks():
            pass
        rows = zip(part, generation.codes.cpu(), generation.lengths.tolist(), strict=True)
        results += [_decode(run, clip.seed, codes[:, :length], samples) for clip, codes, length in rows]
    return results


def _embed_prompt(run: LoadedRun, prompt: Prompt, rate: int | None) -> Tensor:
    """Return the prompt vector [P] of an audio file or of an array [S] at `rate`; only its first 30 s count.

    Raises:
        InputError: An array has another shape or type, or no rate.
        AudioError: The prompt cannot be read.
    """
    if isinstance(prompt, (str, Path)):
        source = read_source(prompt, PROMPT_SECONDS, run.codec.sample_rate)
    else:
        source = SourceAudio(Path("prompt"), "", _read_array(prompt, rate, run.codec.sample_rate))
    return prompt_vector(run.embedder, source, run.codec.sample_rate)


def _read_array(array: np.ndarray, rate: int | None, target: int) -> np.ndarray:
    """Samples [S] as the same samples in a file would be read."""
    array = np.asarray(array)
    if array.ndim != 1 or not len(array) or not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"prompt={array.dtype} {list(array.shape)}: expected a path, or floating-point samples [S]")
    if rate is None:
        raise InputError("rate=None: expected the sample rate of the array, such as rate=44100")
    content = io.BytesIO()
    soundfile.write(content, array, rate, format="WAV", subtype="DOUBLE" if array.dtype == np.float64 else "FLOAT")
    wav = audio_io.read(content.getvalue(), duration=PROMPT_SECONDS, rate=target)
    scaled, note = amplitude.apply_policy(wav, "scale")
    if scaled is None:
        raise audio_io.AudioError("prompt", note)
    return scaled


def _decode(run: LoadedRun, seed: int, codes: Tensor, samples: int) -> Audio:
    """Decode a clip [K, T] alone, so that other clips of its batch do not change it."""
    wav = np.zeros(0, np.float32)
    if codes.shape[1]:
        wav = run.codec.decode_clip(codes)[:samples]
    return Audio(wav, run.codec.sample_rate, seed, codes.numpy())
