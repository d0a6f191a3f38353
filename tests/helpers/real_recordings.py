"""Sixty real recordings from a Debian package, as a musician's folder: tests/helpers/real_recordings.py FOLDER."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import soundfile

PACKAGE = "sonic-pi-samples"  # CC0 recordings of drums, basses, guitars, tablas, voices and rooms
KINDS = {"ambi": "ambient", "bass": "bass", "bd": "drum", "drum": "drum", "elec": "electronic", "glitch": "electronic",
         "guit": "guitar", "loop": "loop", "mehackit": "electronic", "misc": "ambient", "perc": "percussion",
         "sn": "drum", "tabla": "tabla", "vinyl": "ambient"}  # fmt: skip
COUNT = 60
SHORTEST = 0.3  # seconds


class NoRecordings(Exception):
    """The package cannot be downloaded or unpacked here; the message says why."""


def download_recordings(folder: Path, work: Path) -> Path:
    """Download the package and copy 60 of its recordings to KIND/NAME.flac in a folder, the longest of each kind first.

    Raises:
        NoRecordings: This machine has no apt or dpkg, or the package cannot be downloaded.
    """
    work.mkdir(parents=True, exist_ok=True)
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise NoRecordings(f"needs {tool}, of Debian")
    try:
        run = {"cwd": work, "check": True, "capture_output": True, "timeout": 120}
        subprocess.run(["apt-get", "download", PACKAGE], **run)
        (package,) = work.glob(f"{PACKAGE}_*.deb")
        subprocess.run(["dpkg-deb", "-x", package.name, "unpacked"], **run)
    except (subprocess.SubprocessError, ValueError) as error:
        raise NoRecordings(f"apt-get download {PACKAGE} failed: {error}") from None
    by_kind: dict[str, list[tuple[float, Path]]] = {}
    for file in sorted((work / "unpacked").rglob("*.flac")):
        seconds = soundfile.info(file).duration
        if seconds >= SHORTEST:
            by_kind.setdefault(KINDS[file.stem.split("_")[0]], []).append((-seconds, file))
    turns = [(turn, kind, file) for kind, files in by_kind.items() for turn, (_, file) in enumerate(sorted(files))]
    for _, kind, file in sorted(turns)[:COUNT]:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / kind / file.name)
    return folder


if __name__ == "__main__":
    out = Path(sys.argv[1])
    print(download_recordings(out, out.with_name(f"{out.name}-package")))
