"""What metrics read: a set of sounds, one for each reference clip, and what they are compared with.

Letters: N clips, K codebooks, T frames, S samples, P prompt width.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from pipeline.audio import audio_io, metrics
from pipeline.audio.amplitude import mix_sound
from pipeline.audio.recordings import load_source_audio
from pipeline.common.errors import InputError, one_line
from pipeline.common.machine import num_cores
from pipeline.data.shard import stack_prompts
from pipeline.evaluation.reference_clips import ReferenceClip
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.prompts import decode_codes, embed_audio


@dataclass(frozen=True)
class AudioSet:
    """One sound for each of N clips: generations at one temperature, the codec's reconstructions, or the originals.

    Attributes:
        name: "codec", "original", or "t" and the temperature.
        codes: [K, T] each; of the originals, those of the clips.
        wavs: [S] or [S, 2] each.
        embeddings: float32 [N, P].
        rate: The sample rate in Hz.
    """

    name: str
    codes: Sequence[Tensor]
    wavs: Sequence[np.ndarray]
    embeddings: np.ndarray
    rate: int

    @classmethod
    def decode(cls, name: str, codes: Sequence[Tensor], run: LoadedRun) -> AudioSet:
        """Decode codes and embed the sounds."""
        wavs, rate = decode_codes(run.codec, codes), run.codec.sample_rate
        return cls(name, codes, wavs, embed_audio(run.embedder, wavs, rate).numpy(), rate)

    @classmethod
    def read(cls, root: str, clips: Sequence[ReferenceClip], run: LoadedRun) -> AudioSet:
        """The recordings from which the clips were encoded, as long as the clips.

        Args:
            root: The corpus folder.
            clips: The clips.
            run: The model, whose codec has the sample rate and the channels.

        Raises:
            InputError: Recordings cannot be read.
        """
        codec, wavs, faults = run.codec, [], []
        for clip in clips:
            try:
                wav = load_source_audio(root, clip.sample.metadata, codec.sample_rate, codec.channels)
            except audio_io.AudioError as error:
                faults.append(one_line(error))
            else:
                assert wav is not None
                wavs.append(wav[: round(clip.codes.shape[1] * codec.sample_rate / codec.frame_rate)])
        if faults:
            raise InputError(
                f"corpus_root={root}: {len(faults)} of {len(clips)} recordings cannot be read ({faults[0]}): give the "
                "folder from which the dataset was preprocessed, or corpus_root=null"
            )
        embeddings = embed_audio(run.embedder, wavs, codec.sample_rate).numpy()
        return cls("original", [clip.codes for clip in clips], wavs, embeddings, codec.sample_rate)

    def file_name(self, clip: ReferenceClip) -> str:
        """The name of the file with the sound of a clip, beside evaluate.json."""
        return f"{clip.sample.key}.{self.name}.wav"

    @cached_property
    def pitches(self) -> np.ndarray:
        """The pitch of each sound as a fractional MIDI note number, NaN if it has none: [N]; tracked when first read.

        Raises:
            InputError: The pitch tracker is not installed.
        """
        return track_pitches(self.wavs, self.rate)


def track_pitches(wavs: Sequence[np.ndarray], rate: int) -> np.ndarray:
    """The pitch of each sound, [S] or [S, 2], as a fractional MIDI note number, NaN if it has none: [N].

    Raises:
        InputError: The pitch tracker is not installed.
    """
    metrics.pitch(mix_sound(wavs[0]), rate)  # creates the shared pitch tracker before there are threads
    with ThreadPoolExecutor(num_cores()) as pool:
        return np.array(list(pool.map(lambda wav: metrics.pitch(mix_sound(wav), rate), wavs)))


@dataclass(frozen=True, eq=False)
class References:
    """What sounds are compared with; equal only to itself, so that metrics may cache what they derive from it.

    Attributes:
        clips: The N clips whose prompts the sounds have.
        reconstructions: The codec's reconstructions of these clips.
        embeddings: Embeddings of clips of the split, of many more than N if there are: float32 [M, P].
        use_pitch: Whether pitch labels are used.
        originals: The recordings from which the clips were encoded; None where the corpus is not available.
        bad_labels: The keys of the clips whose pitch labels are known to be wrong, and not used.
    """

    clips: Sequence[ReferenceClip]
    reconstructions: AudioSet
    embeddings: np.ndarray
    use_pitch: bool = True
    originals: AudioSet | None = None
    bad_labels: Set[str] = frozenset()

    @cached_property
    def prompts(self) -> np.ndarray:
        """The prompts of the clips, the mean vector of each: float32 [N, P]."""
        means: np.ndarray = stack_prompts(clip.sample for clip in self.clips).mean(1)
        return means

    @cached_property
    def pitch_labels(self) -> np.ndarray:
        """The pitch labels of the clips as MIDI note numbers, NaN where a clip has none that is used: [N]."""
        is_used = [self.use_pitch and clip.sample.key not in self.bad_labels for clip in self.clips]
        return np.array([clip.pitch if used else np.nan for clip, used in zip(self.clips, is_used, strict=True)])
