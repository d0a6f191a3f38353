"""Hear what the codec keeps: encode sound files and decode them again from 1, 2, 4, 8... codebooks.

  python -m pipeline.reconstruct audio=a.wav
  python -m pipeline.reconstruct audio=[a.wav,b.mp3] codebooks=[1,2,4,8,16,32] out=DIR
  python -m pipeline.reconstruct audio=FOLDER codec=encodec_embedded device=cuda:0

Writes {name}.k{codebooks}.wav and {name}.original.wav at 24 kHz, a table, and the same figures in reconstruct.json:
bit rate, log-spectral distance (dB) and signal-to-noise ratio (dB). encodec_embedded keeps no phases, so its
signal-to-noise ratio says nothing about it.

What people change: audio=, codebooks=, codec=, out=, device=.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from pipeline.common.errors import InputError
from pipeline.common.files import check_output_folder
from pipeline.config.cli import hydra_command

if TYPE_CHECKING:
    import numpy as np

    from pipeline.audio.codecs.base import Codec


@hydra_command("reconstruct")
def main(cfg: DictConfig) -> None:
    """Write every file's reconstructions, their table and reconstruct.json."""
    import torch

    from pipeline.audio import audio_io
    from pipeline.audio.codecs import load_codec
    from pipeline.audio.find_files import find_audio_files
    from pipeline.generation.loaded_run import pick_device

    files, counts = find_audio_files("audio", cfg.audio), sorted(set(cfg.codebooks))
    if min(counts) < 1:
        raise InputError(f"codebooks={cfg.codebooks}: give numbers from 1 on, e.g. codebooks=[1,2,4,8]")
    check_output_folder("out", cfg.out)
    codec = load_codec(**{**cfg.codec, "codebooks": max(counts)}, device=pick_device(cfg.device))
    out, rows, refused = Path(cfg.out), [], []
    for name, file in files.items():
        try:
            wav = audio_io.read(file, rate=codec.sample_rate)
        except audio_io.AudioError as error:
            refused.append(str(error))
            continue
        audio_io.write(out / f"{name}.original.wav", wav, codec.sample_rate)
        codes = codec.encode(torch.from_numpy(wav)[None, None])  # [1, K, T]
        for count in counts:
            heard = codec.decode(codes[:, :count])[0, 0, : len(wav)].cpu().numpy()
            written = out / f"{name}.k{count}.wav"
            audio_io.write(written, heard, codec.sample_rate)
            rows.append({"file": str(file), "wav": str(written), **figures(wav, heard, count, codec)})
    if not rows:
        raise InputError("no file could be read: " + "; ".join(refused))
    report = {"codec": codec.identity, "clips": rows, "refused": refused}
    (out / "reconstruct.json").write_text(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    show(rows, refused, out, codec)


def figures(wav: np.ndarray, heard: np.ndarray, count: int, codec: Codec) -> dict[str, Any]:
    """What `count` codebooks cost and keep; snr_db is None for a codec without phases, and of silence."""
    from pipeline.audio import metrics

    ratio = metrics.snr(wav, heard)
    return {
        "codebooks": count,
        "kbit_s": count * codec.bandwidth / 1000,
        "log_spectral_distance_db": round(metrics.log_spectral_distance(wav, heard), 2),
        "snr_db": round(ratio, 2) if codec.is_waveform_codec and math.isfinite(ratio) else None,
    }


def show(rows: list[dict[str, Any]], refused: list[str], out: Path, codec: Codec) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{codec.name}, written to {out}")
    for heading in ("file", "codebooks", "kbit/s", "log-spectral distance (dB)", "SNR (dB)"):
        table.add_column(heading, justify="left" if heading == "file" else "right", overflow="fold")
    for row in rows:
        ratio = "-" if row["snr_db"] is None else f"{row['snr_db']:.1f}"
        distance = f"{row['log_spectral_distance_db']:.1f}"
        table.add_row(Path(row["file"]).name, str(row["codebooks"]), f"{row['kbit_s']:.2f}", distance, ratio)
    console = Console()
    console.print(table)
    if not codec.is_waveform_codec:
        console.print(f"{codec.name} keeps no phases: a signal-to-noise ratio says nothing about it.")
    for reason in refused:
        console.print(f"left out: {reason}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
