"""Encodes audio files and decodes them again with different numbers of codebooks, to judge a codec.

Letters: K codebooks, T frames, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audio import audio_io, metrics
from pipeline.audio.amplitude import mix_sound
from pipeline.audio.codecs.base import Codec
from pipeline.common.errors import InputError


@dataclass
class Reconstructions:
    """The result of `reconstruct_files`. clips: a row per file and number of codebooks; refused: errors of files."""

    clips: list[dict[str, Any]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def reconstruct_files(
    codec: Codec, files: Mapping[str, Path], counts: Sequence[int], out: Path | str
) -> Reconstructions:
    """Write {name}.original.wav and {name}.k{count}.wav for each file at the codec's sample rate, and measure them.

    Args:
        codec: The codec, with at least max(counts) codebooks.
        files: Audio files by name.
        counts: The numbers of codebooks to decode from.
        out: The folder for the wav files.

    Raises:
        InputError: No file can be read, or `out` cannot be written.
    """
    result = Reconstructions()
    for name, file in files.items():
        try:
            wav = audio_io.read(file, rate=codec.sample_rate, channels=codec.channels)
        except audio_io.AudioError as error:
            result.refused.append(str(error))
            continue
        audio_io.write(Path(out) / f"{name}.original.wav", wav, codec.sample_rate)
        codes = codec.encode_clip(wav)  # [K, T]
        for count in counts:
            decoded = codec.decode_clip(codes[: count * codec.streams_per_codebook])[: len(wav)]
            path = Path(out) / f"{name}.k{count}.wav"
            audio_io.write(path, decoded, codec.sample_rate)
            result.clips.append({"file": str(file), "wav": str(path), **measure(codec, wav, decoded, count)})
    if not result.clips:
        raise InputError("no file could be read: " + "; ".join(result.refused))
    return result


def measure(codec: Codec, wav: np.ndarray, decoded: np.ndarray, count: int) -> dict[str, Any]:
    """Return the bit rate and the quality of a reconstruction of `wav`, [S] or [S, 2], from `count` codebooks.

    The log-spectral distance of two channels is that of their mono mixes. snr_db is None for a silent clip and for a
    codec that does not keep phases.
    """
    ratio = metrics.snr(wav, decoded)
    return {
        "codebooks": count,
        "kbit_s": count * codec.streams_per_codebook * codec.bandwidth / 1000,
        "log_spectral_distance_db": round(metrics.log_spectral_distance(mix_sound(wav), mix_sound(decoded)), 2),
        "snr_db": round(ratio, 2) if codec.is_waveform_codec and math.isfinite(ratio) else None,
    }


def print_table(result: Reconstructions, codec: Codec, out: Path | str) -> None:
    """Print the measurements, and the files that could not be read."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{codec.name}, written to {out}")
    for heading in ("file", "codebooks", "kbit/s", "log-spectral distance (dB)", "SNR (dB)"):
        table.add_column(heading, justify="left" if heading == "file" else "right", overflow="fold")
    for row in result.clips:
        ratio = "-" if row["snr_db"] is None else f"{row['snr_db']:.1f}"
        distance = f"{row['log_spectral_distance_db']:.1f}"
        table.add_row(Path(row["file"]).name, str(row["codebooks"]), f"{row['kbit_s']:.2f}", distance, ratio)
    console = Console()
    console.print(table)
    if not codec.is_waveform_codec:
        console.print(f"{codec.name} does not keep phases: its signal-to-noise ratio says nothing about its quality.")
    for reason in result.refused:
        console.print(f"skipped: {reason}", markup=False, highlight=False)
