# ruff: noqa: E501
"""Unusual but real audio files, written by common programs: ffmpeg, lame, flac, oggenc, opusenc, sox.

`python -m tests.helpers.odd_sounds DIR` writes all of them. Each is a shell command that reads s.wav (stereo) or m.wav
(mono), 3 s at 44.1 kHz, and writes OUT.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

PROGRAMS = {"ffmpeg": "ffmpeg", "lame": "lame", "flac": "flac", "oggenc": "vorbis-tools", "opusenc": "opus-tools"}
PROGRAMS["sox"] = "sox"
SECONDS = 3.0


class Odd(NamedTuple):
    """An unusual file. command: writes it; seconds: its length if ffmpeg reads less; truncated: whether it is an error."""

    name: str
    command: str
    seconds: float | None = None
    truncated: bool = False


FFMPEG = "ffmpeg -v error -y -i"
_CODED = [
    *(Odd(f"lame{n}.mp3", f"lame --quiet {how} s.wav OUT") for n, how in enumerate(
        ("-V0", "-V9", "-V2 -t", "-V9 -t", "-b 320", "-b 128 -t", "--abr 90 -t", "-m m -V5", "--resample 16 -V4 -t",
         "--resample 8 -b 16 -t", "-b 128 -p -t", "-b 128 -p", "--id3v2-only --ta a --tt b -V5 -t", "--id3v1-only --tt b -t"))),
    Odd("noxing.mp3", f"{FFMPEG} s.wav -write_xing 0 -q:a 7 OUT"),
    Odd("ff.mp3", f"{FFMPEG} s.wav -b:a 96k -id3v2_version 3 -metadata title=a OUT"),
    Odd("layer2.mp2", f"{FFMPEG} s.wav -c:a mp2 -b:a 128k OUT"),
    Odd("layer2.mp3", f"{FFMPEG} m.wav -ar 22050 -c:a mp2 -b:a 64k -f mp2 OUT"),
    Odd("in.wav", f"{FFMPEG} s.wav -c:a libmp3lame -f wav OUT"),
    Odd("tail.mp3", "lame --quiet -V5 s.wav a.mp3; (cat a.mp3; head -c 3000 /dev/zero; printf TAG; head -c 125 /dev/zero) > OUT"),
    Odd("head.mp3", "lame --quiet -V5 s.wav a.mp3; (head -c 5000 /dev/zero; cat a.mp3) > OUT"),
    Odd("concat.mp3", "lame --quiet -V5 s.wav a.mp3; lame --quiet -b 128 s.wav b.mp3; cat a.mp3 b.mp3 > OUT", 6.0),
    Odd("concat-t.mp3", "lame --quiet -V5 -t s.wav a.mp3; cat a.mp3 a.mp3 a.mp3 > OUT"),
    Odd("concat-rates.mp3", "lame --quiet -V5 s.wav a.mp3; lame --quiet -V5 --resample 22.05 -m m s.wav b.mp3; cat a.mp3 b.mp3 > OUT", 6.0),
    Odd("half.mp3", "lame --quiet -V5 s.wav a.mp3; head -c $(($(stat -c %s a.mp3) / 2)) a.mp3 > OUT", truncated=True),
    Odd("flac0.flac", "flac -s -f -0 s.wav -o OUT"),
    Odd("flac8.flac", "flac -s -f -8 --no-seektable --no-padding s.wav -o OUT"),
    Odd("pipe.flac", f"{FFMPEG} s.wav -f flac - > OUT"),
    Odd("block.flac", "flac -s -f --blocksize=16 -0 --lax m.wav -o OUT"),
    Odd("id3.flac", "flac -s -f s.wav -o a.flac; (cat a.flac; printf TAG; head -c 125 /dev/zero) > OUT"),
    Odd("24.flac", f"{FFMPEG} s.wav -sample_fmt s32 -bits_per_raw_sample 24 OUT"),
    Odd("ogg.oga", "flac -s -f --ogg s.wav -o OUT"),
    Odd("ff.oga", f"{FFMPEG} s.wav -c:a flac -f ogg OUT"),
    Odd("concat.flac", "flac -s -f s.wav -o a.flac; cat a.flac a.flac > OUT", 6.0),
    Odd("half.flac", "flac -s -f s.wav -o a.flac; head -c $(($(stat -c %s a.flac) / 2)) a.flac > OUT", truncated=True),
    Odd("q-1.ogg", "oggenc -Q -q -1 s.wav -o OUT"),
    Odd("q8.ogg", "oggenc -Q -q 8 m.wav -o OUT"),
    Odd("ff.ogg", f"{FFMPEG} s.wav -c:a libvorbis OUT"),
    Odd("sox.ogg", "sox s.wav -C 3 -r 32000 OUT"),
    Odd("chain.ogg", "oggenc -Q s.wav -o a.ogg; oggenc -Q --resample 22050 -s 7 m.wav -o b.ogg; cat a.ogg b.ogg > OUT", 6.0),
    Odd("chain.opus", "opusenc --quiet s.wav a.opus; opusenc --quiet --serial 7 m.wav b.opus; cat a.opus b.opus > OUT", 6.0),
    Odd("low.opus", "opusenc --quiet --bitrate 12 m.wav OUT"),
    Odd("frame60.opus", "opusenc --quiet --framesize 60 s.wav OUT"),
    Odd("ff.opus", f"{FFMPEG} s.wav -c:a libopus -b:a 48k OUT"),
    Odd("half.ogg", "oggenc -Q s.wav -o a.ogg; head -c $(($(stat -c %s a.ogg) / 2)) a.ogg > OUT", truncated=True),
]  # fmt: skip
_PLAIN = [
    *(Odd(f"{codec}.wav", f"{FFMPEG} s.wav -c:a {codec} OUT") for codec in (
        "pcm_u8", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_mulaw", "pcm_alaw", "adpcm_ms", "adpcm_ima_wav")),
    *(Odd(f"a.{suffix}", f"{FFMPEG} s.wav OUT") for suffix in ("aiff", "au", "caf", "w64")),
    *(Odd(f"half.{suffix}", f"{FFMPEG} s.wav a.{suffix}; head -c 300000 a.{suffix} > OUT", truncated=True)
      for suffix in ("wav", "aiff", "au", "caf", "w64")),
    Odd("gsm.wav", "sox m.wav -r 8000 -e gsm-full-rate OUT"),
    Odd("rf64.wav", f"{FFMPEG} s.wav -rf64 always OUT"),
    Odd("half-rf64.wav", f"{FFMPEG} s.wav -rf64 always a.wav; head -c 300000 a.wav > OUT", truncated=True),
    Odd("pipe-ff.wav", f"{FFMPEG} s.wav -f wav - > OUT"),
    Odd("pipe-sox.wav", "cat s.wav | sox -t wav - -t wav - > OUT"),
    Odd("pipe-sox.au", "cat s.wav | sox -t wav - -t au - > OUT"),
    Odd("pipe-ff.au", f"{FFMPEG} s.wav -f au - > OUT"),
    Odd("pipe-ff.w64", f"{FFMPEG} s.wav -f w64 - > OUT", SECONDS),
    Odd("pipe-ff.caf", f"{FFMPEG} s.wav -c:a pcm_s16be -f caf - > OUT"),
    Odd("sox.aifc", "sox s.wav OUT"),
    Odd("sowt.aiff", f"{FFMPEG} s.wav -c:a pcm_s16be OUT"),
    Odd("surround.wav", f"{FFMPEG} s.wav -ac 6 OUT"),
    Odd("rate.wav", "sox s.wav -r 11025 -c 1 OUT"),
    Odd("big-endian.wav", "sox s.wav -B OUT", SECONDS),
    Odd("concat.wav", "cat m.wav m.wav > OUT", 6.0),
    Odd("id3.wav", "(cat m.wav; printf TAGtitle; head -c 120 /dev/zero) > OUT"),
]  # fmt: skip


def edited(folder: Path) -> list[Odd]:
    """Write files with wrong headers (some of which ffmpeg trusts)."""
    wav = (folder / "m.wav").read_bytes()
    at = wav.index(b"data") + 4
    size = len(wav) - at - 4
    files = {f"{kind}.wav": wav[:at] + struct.pack("<I", wrong) + wav[at + 4 :] for kind, wrong in {
        "zero": 0, "ones": 0xFFFF_FFFF, "more": size + 2, "less": size // 3, "sox": 0x7FFF_F000}.items()}  # fmt: skip
    flac = bytearray((folder / "flac0.flac").read_bytes())
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    files["unknown.flac"] = bytes(flac)
    mp3 = (folder / "lame0.mp3").read_bytes()
    at = min(offset for tag in (b"Xing", b"Info") if (offset := mp3.find(tag)) >= 0) + 8
    files["short-xing.mp3"] = mp3[:at] + struct.pack(">I", 20) + mp3[at + 4 :]
    aiff = (folder / "a.aiff").read_bytes()
    at = aiff.index(b"SSND") + 4
    files["zero.aiff"] = aiff[:at] + bytes(4) + aiff[at + 4 :]
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [Odd(name, "", SECONDS) for name in files]


SOUNDS = [*_CODED, *_PLAIN]
FEW = ("lame3.mp3", "concat.mp3", "half.mp3", "pipe.flac", "ogg.oga", "half.flac", "chain.ogg", "chain.opus", "half.au")


def missing() -> str:
    """Install the Debian packages if apt is available; return those that are missing."""
    packages = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    if packages and shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages], capture_output=True)
        packages = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    return " ".join(packages)


def make(folder: Path, sounds: list[Odd]) -> None:
    """Write the files to a folder."""
    tone = "0.4*sin(2*PI*(200+300*t)*t)+0.05*random(0)|0.3*sin(2*PI*(900-100*t)*t)"
    run = f'ffmpeg -v error -y -f lavfi -i "aevalsrc={tone}:s=44100:d={SECONDS}" s.wav; {FFMPEG} s.wav -ac 1 m.wav'
    run += "".join(f"; {sound.command.replace('OUT', sound.name)}" for sound in sounds)
    subprocess.run(["bash", "-c", run], cwd=folder, check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    make(Path(sys.argv[1]), SOUNDS)
