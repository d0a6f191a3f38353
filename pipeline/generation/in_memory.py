"""Generation without files: prompts are paths or arrays, results are arrays.

Letters: K codebooks, T frames, S samples.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from torch import Tensor

from pipeline.audio import amplitude, audio_io
from pipeline.audio.codecs.base import Codec
from pipeline.common.errors import InputError
from pipeline.common.settings import parse_settings
from pipeline.generation.conditions import read_conditions
from pipeline.generation.prompts import SourceAudio, prompt_vector, read_source, text_vectors
from pipeline.generation.request import AudioRequest, ClipRequest, keyframes_of, num_samples
from pipeline.generation.runner import generate_clips
from pipeline.generation.settings import GenerateSettings, default_settings
from pipeline.generation.window import resolve_window

if TYPE_CHECKING:
    from pipeline.generation.loaded_run import LoadedRun

Prompt = str | Path | np.ndarray


@dataclass(frozen=True)
class Audio:
    """Generated audio.

    Attributes:
        samples: Float32, as soundfile has it: [S] for mono, [S, 2] for stereo.
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
    texts: Sequence[str],
    rate: int | None,
    sampling: Mapping[str, object],
    changes: Mapping[str, object],
) -> list[Audio]:
    """Generate `n` times for each prompt. See `LoadedRun.generate`.

    Args:
        run: The run that generates.
        prompts: Audio files, arrays [S] or [S, channels], or None for no prompt.
        texts: Descriptions of sounds, which are prompts after those.
        rate: The sample rate of the arrays.
        sampling: Changes of the default settings of `sampling`.
        changes: Changes of the default settings of `pipeline.generate`; None: the default.
    """
    if changes["mode"] not in ("prompt", "continue"):
        raise InputError(f"mode={changes['mode']}: expected prompt or continue")
    defaults = default_settings()
    own = {name: value for name, value in changes.items() if value is not None}
    own["sampling"] = defaults.sampling.to_dict() | dict(sampling)
    settings = parse_settings(GenerateSettings, defaults.to_dict() | own)
    named = [prompt if isinstance(prompt, (str, Path)) else "ARRAY" for prompt in prompts if prompt is not None]
    conditions = read_conditions(settings, run.model, named[0] if named else texts[0] if texts else None)
    vectors = [
        None if prompt is None else _embed_prompt(run, prompt, rate, settings.prompt_seconds) for prompt in prompts
    ]
    vectors += [text_vectors(run.embedder, text) for text in texts]
    clips = [
        ClipRequest(settings.seed + number, keyframes_of(conditions, vector))
        for number, vector in enumerate(vector for vector in vectors for _ in range(settings.n))
    ]
    samples = num_samples(settings.seconds, run)
    window = resolve_window(settings, run.codec.num_frames(samples), run)
    request = AudioRequest(Path(), clips, samples, window, settings)
    return [_decode(run, clip.seed, codes, samples) for clip, codes in generate_clips(run, request)]


def _embed_prompt(run: LoadedRun, prompt: Prompt, rate: int | None, seconds: float) -> Tensor:
    """Return the prompt [N, P] of an audio file or of an array at `rate`; only its first seconds count.

    Raises:
        InputError: An array has another shape or type, or no rate.
        AudioError: The prompt cannot be read.
    """
    if isinstance(prompt, (str, Path)):
        source = read_source(prompt, seconds, run.codec)
    else:
        source = SourceAudio(Path("prompt"), "", _read_array(prompt, rate, seconds, run.codec))
    return prompt_vector(run.embedder, source, run.codec.sample_rate)


def _read_array(array: np.ndarray, rate: int | None, seconds: float, codec: Codec) -> np.ndarray:
    """Samples [S] or [S, channels] as the same samples in a file would be read."""
    array = np.asarray(array)
    is_sound = array.ndim in (1, 2) and array.size and array.shape[-1] <= len(array)  # else channels are first
    if not is_sound or not np.issubdtype(array.dtype, np.floating):
        expected = "a path, or floating-point samples [S] or [S, channels]"
        raise InputError(f"prompt={array.dtype} {list(array.shape)}: expected {expected}")
    if rate is None:
        raise InputError("rate=None: expected the sample rate of the array, such as rate=44100")
    content = io.BytesIO()
    soundfile.write(content, array, rate, format="WAV", subtype="DOUBLE" if array.dtype == np.float64 else "FLOAT")
    wav = audio_io.read(content.getvalue(), duration=seconds, rate=codec.sample_rate, channels=codec.channels)
    scaled, note = amplitude.apply_policy(wav, "scale")
    if scaled is None:
        raise audio_io.AudioError("prompt", note)
    return scaled


def _decode(run: LoadedRun, seed: int, codes: Tensor, samples: int) -> Audio:
    """Decode a clip [K, T] alone, so that other clips of its batch do not change it."""
    wav = run.codec.decode_clip(codes)[:samples] if codes.shape[1] else run.codec.silence(0)
    return Audio(wav, run.codec.sample_rate, seed, codes.numpy())
