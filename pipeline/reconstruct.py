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
from typing import Annotated, ClassVar

from pipeline.audio.codecs import CODECS, CodecSettings
from pipeline.common.files import check_output_folder
from pipeline.common.setting_types import PositiveInt
from pipeline.common.settings import Choice, CommandSettings, parse_settings
from pipeline.config.cli import hydra_command


class ReconstructSettings(CommandSettings):
    """The settings of this command."""

    command: ClassVar[str] = "reconstruct"

    codec: Annotated[CodecSettings, Choice(CODECS)]
    audio: list[str]
    codebooks: list[PositiveInt]
    out: str
    device: str


@hydra_command(ReconstructSettings)
def main(settings: ReconstructSettings) -> None:
    """Reconstruct every file and report the measurements."""
    from pipeline.audio import reconstruction
    from pipeline.audio.find_files import find_audio_files
    from pipeline.audio.precision import codec_device
    from pipeline.generation.loaded_run import pick_device

    files, counts = find_audio_files("audio", settings.audio), sorted(set(settings.codebooks))
    check_output_folder("out", settings.out)
    values = {**settings.codec.to_dict(), "codebooks": max(counts)}
    codec = parse_settings(type(settings.codec), values, "codec.").open(codec_device(pick_device(settings.device)))
    result = reconstruction.reconstruct_files(codec, files, counts, settings.out)
    report = {"codec": codec.identity, "clips": result.clips, "refused": result.refused}
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (Path(settings.out) / "reconstruct.json").write_text(text)
    reconstruction.print_table(result, codec, settings.out)


if __name__ == "__main__":
    main()
