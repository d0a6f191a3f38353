"""Encode audio files and decode them again from 1, 2, 4, 8... codebooks, to hear and measure what a codec keeps.

  python -m pipeline.reconstruct audio=a.wav
  python -m pipeline.reconstruct audio=[a.wav,b.mp3] codebooks=[1,2,4,8,16,32] out=DIR
  python -m pipeline.reconstruct audio=FOLDER codec=encodec_embedded device=cuda:0

Writes {name}.k{codebooks}.wav and {name}.original.wav at the codec's sample rate. Prints a table of bit rate,
log-spectral distance (dB) and signal-to-noise ratio (dB), and writes it to reconstruct.json. encodec_embedded does not
keep phases, so its signal-to-noise ratio says nothing about its quality.

What people change: audio=, codebooks=, codec=, out=, device=.
"""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig

from pipeline.common.errors import InputError
from pipeline.common.files import check_output_folder
from pipeline.config.cli import hydra_command


@hydra_command("reconstruct")
def main(cfg: DictConfig) -> None:
    """Reconstruct every file and report the measurements."""
    from pipeline.audio import reconstruction
    from pipeline.audio.codecs import load_codec
    from pipeline.audio.find_files import find_audio_files
    from pipeline.generation.loaded_run import pick_device

    files, counts = find_audio_files("audio", cfg.audio), sorted(set(cfg.codebooks))
    if min(counts) < 1:
        raise InputError(f"codebooks={cfg.codebooks}: expected numbers from 1 on, e.g. codebooks=[1,2,4,8]")
    check_output_folder("out", cfg.out)
    codec = load_codec(**{**cfg.codec, "codebooks": max(counts)}, device=pick_device(cfg.device))
    result = reconstruction.reconstruct_files(codec, files, counts, cfg.out)
    report = {"codec": codec.identity, "clips": result.clips, "refused": result.refused}
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (Path(cfg.out) / "reconstruct.json").write_text(text)
    reconstruction.print_table(result, codec, cfg.out)


if __name__ == "__main__":
    main()
