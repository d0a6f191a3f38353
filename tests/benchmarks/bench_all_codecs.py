"""The table of codecs, and how far each equals transformers: codes, sound, and sound that is decoded in chunks.

    python -m tests.benchmarks.bench_all_codecs               the table: about a minute on 2 cores
    python -m tests.benchmarks.bench_all_codecs --clips 16    more codes to compare

Models of each codec's own rates and codebooks, with small layers and random weights, and noise of 2 s. Codes that
differ are ties in floating point. tests/test_another_codec.py runs each codec from sounds to
results; tests/audio/test_encodec_48khz.py compares the stereo EnCodec.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import torch
import transformers

from pipeline.audio.codecs import CODECS, load_codec
from tests.helpers.decode_stream import decode_stream
from tests.helpers.small_codecs import NUMBERS, codes_and_sound, small_model

SECONDS = 2.0
COLUMNS = ("codec", "Hz", "frames/s", "codebooks", "codes", "kbit/s", "codes equal", "sound off by", "in chunks off by")


def measure(name: str, folder: Path, clips: int) -> list[str]:
    """A row of the table. Differences of sounds are relative to their largest sample."""
    numbers = NUMBERS[name]
    small_model(name).save_pretrained(folder)
    codec = load_codec(name, numbers.max_codebooks, folder)
    samples = round(SECONDS * codec.frame_rate) * codec.hop_length  # transformers' DAC drops a partial frame
    wav = 0.3 * torch.randn(clips, 1, samples, generator=torch.Generator().manual_seed(0))
    expected, sound = codes_and_sound(name, wav, codec.codebooks)
    decoded = codec.decode(expected)
    sound = torch.nn.functional.pad(sound, (0, decoded.shape[-1] - sound.shape[-1]))  # DAC's is some samples short
    chunks = torch.cat([*decode_stream(codec, expected.split(3, dim=-1))], dim=-1)
    peak = float(sound.abs().max())
    return [
        name, f"{codec.sample_rate}", f"{codec.frame_rate:.4g}", f"{codec.max_codebooks}", f"{codec.codebook_size}",
        f"{codec.codebooks * codec.frame_rate * math.log2(codec.codebook_size) / 1000:.4g}",
        f"{100 * (codec.encode(wav) == expected).double().mean():.3f} %",
        f"{float((decoded - sound).abs().max()) / peak:.0e}", f"{float((chunks - decoded).abs().max()) / peak:.0e}",
    ]  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4, help="clips of each codec")
    arguments = parser.parse_args()
    transformers.logging.disable_progress_bar()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in (name for name in sorted(NUMBERS) if CODECS.get(name).native_channels == 1):
            print(f"| {' | '.join(measure(name, Path(folder) / name, arguments.clips))} |", flush=True)


if __name__ == "__main__":
    main()
