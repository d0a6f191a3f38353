"""Small corpora of real audio, in the published layouts."""

from __future__ import annotations

import csv
import io
import random
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

from pipeline.config.cli import load_settings
from pipeline.corpora import CorpusSettings
from pipeline.corpora.download.settings import DownloadSettings


def data(name: str, root: Path, *overrides: str) -> CorpusSettings:
    """The settings of `data=name data.root=root ...`; the scan cache is next to the root."""
    scan_cache = f"data.scan_cache_dir={root.parent / 'scan_cache'}"
    return load_settings(DownloadSettings, [f"data={name}", f"data.root='{root}'", scan_cache, *overrides]).data


def render_notes(root: Path, *overrides: str) -> Path:
    """Render 24 notes of 6 instruments, 4 of them in train, in NSynth's layout."""
    small = ["data.programs=[0,16,24,40,56,73]", "data.pitches=55-70", "data.velocities=[100]", "data.clips=24"]
    data("notes", root, *small, *overrides).open()
    return root


def pack(archive: Path, files: Mapping[str, bytes | Path]) -> Path:
    """Write a tar of files in this order, compressed if its name ends with .gz."""
    with tarfile.open(archive, "w:gz" if archive.name.endswith("gz") else "w") as tar:
        for name, content in files.items():
            content = content if isinstance(content, bytes) else content.read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return archive


def music(seed: int, seconds: float, rate: int = 44_100) -> np.ndarray:
    """A chord every half second by a random instrument: float32 [S, 2]."""
    import pretty_midi
    import tinysoundfont

    synth = tinysoundfont.Synth(samplerate=rate, gain=-6)
    font = synth.sfload(str(Path(pretty_midi.__file__).with_name("TimGM6mb.sf2")))
    draw = random.Random(seed)
    synth.program_select(0, font, 0, draw.choice([0, 6, 19, 24, 40, 46, 61, 73]))
    parts = []
    for _ in range(int(np.ceil(2 * seconds))):
        root = draw.randrange(48, 60)
        for pitch in (root, root + draw.choice([3, 4]), root + 7):
            synth.noteon(0, pitch, draw.randrange(60, 110))
        parts.append(np.frombuffer(bytes(synth.generate(rate // 2)), np.float32).reshape(-1, 2))
        synth.notes_off(0)
    return np.concatenate(parts)[: round(seconds * rate)]


def mp3(seed: int, seconds: float) -> bytes:
    """Encode music as the bytes of an mp3 file."""
    file = io.BytesIO()
    soundfile.write(file, music(seed, seconds), 44_100, format="MP3")
    return file.getvalue()


def tagged(content: bytes, title: str) -> bytes:
    """An mp3 with ID3v2 and ID3v1 tags around its frames."""
    body = b"TIT2" + (len(title) + 1).to_bytes(4, "big") + b"\0\0\0" + title.encode("latin-1") + bytes(1000)
    size = len(body)
    head = b"ID3\x03\0\0" + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127])
    return head + body + content + b"TAG" + title.encode("latin-1")[:30].ljust(125, b"\0")


Row = tuple[int, int, str, float | str, list[str]]  # track, artist, PATH, DURATION, tags


def write_metadata(file: Path, rows: Iterable[Row]) -> Path:
    """Write MTG-Jamendo's TSV; the last columns are tags."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as out:
        write = csv.writer(out, delimiter="\t", lineterminator="\n").writerow
        write(["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"])
        for track, artist, path, seconds, tags in rows:
            write([f"track_{track:07d}", f"artist_{artist:06d}", f"album_{artist + 5000:06d}", path, seconds, *tags])
    return file


def build_jamendo(root: Path, seconds: Sequence[float] = (3.3, 4.0, 5.2, 2.5, 3.0, 6.1, 4.4, 3.7)) -> Path:
    """Write a track of each length, two by each artist, as `{last two digits of id}/{id}.mp3`, and raw_30s.tsv."""
    rows: list[Row] = []
    for number, length in enumerate(seconds):
        track, artist = 565_800 + 37 * number, 700 + number // 2
        path = root / f"{track % 100:02d}" / f"{track}.mp3"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mp3(number, length))
        tags = ["genre---chamber", f"mood/theme---mood{number % 3}", "instrument---soundfont"][: 1 + number % 3]
        rows.append((track, artist, f"{path.parent.name}/{path.name}", length, tags))
    write_metadata(root / "raw_30s.tsv", rows)
    return root
