"""Bach's chorales, played and packed as mp3 in MTG-Jamendo's layout with broken files among them, to a proven cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipeline.audio.audio_io import read
from pipeline.audio.codecs import load_codec
from pipeline.data.manifest import Manifest
from pipeline.data.shard import read_shard
from pipeline.data.storage import LocalStorage
from pipeline.data.verify import verify
from tests.helpers.corpora import Row, write_metadata
from tests.helpers.preprocess_runs import args, command

pytestmark = pytest.mark.slow
RATE, QUARTER = 44_100, 0.6  # seconds of a quarter note


def played(score: Path, program: int) -> np.ndarray:
    """A score on one instrument: float32 [S, 2]."""
    import pretty_midi
    import tinysoundfont
    from music21 import converter

    synth = tinysoundfont.Synth(samplerate=RATE, gain=-9)
    synth.program_select(0, synth.sfload(str(Path(pretty_midi.__file__).with_name("TimGM6mb.sf2"))), 0, program)
    events: list[tuple[float, bool, int]] = []
    for note in converter.parse(score).flatten().notes:
        begins = float(note.offset)
        for pitch in note.pitches:
            events += [(begins, True, pitch.midi), (begins + float(note.quarterLength), False, pitch.midi)]
    wav, now = [], 0.0
    for at, on, pitch in sorted(events):
        samples = round((at - now) * QUARTER * RATE)
        if samples > 0:
            wav.append(np.frombuffer(bytes(synth.generate(samples)), np.float32).reshape(-1, 2))
            now = at
        if on:
            synth.noteon(0, pitch, 90)
        else:
            synth.noteoff(0, pitch)
    return np.concatenate(wav)


@pytest.fixture(scope="module")
def chorales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve tracks of six artists, and what goes wrong with such a collection."""
    corpus = pytest.importorskip("music21.corpus")
    root, rows = tmp_path_factory.mktemp("corpora") / "jamendo", []
    for number, score in enumerate(sorted(corpus.getComposer("bach"))[:12]):
        track, wav = 1_000 + 13 * number, played(score, (0, 19, 48, 52, 61, 73)[number % 6])
        path = root / f"{track % 100:02d}" / f"{track}.mp3"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wav, RATE, format="MP3")
        row: Row = (track, number // 2, f"{path.parent.name}/{path.name}", len(wav) / RATE, ["genre---chorale"])
        rows.append(row)

    def broken(track: int, content: bytes, seconds: float = 30.0) -> None:
        (root / "00" / f"{track}.mp3").write_bytes(content)
        rows.append((track, 90 + track, f"00/{track}.mp3", seconds, ["genre---broken"]))

    (root / "00").mkdir(exist_ok=True)
    whole = next(root.glob("*/1000.mp3")).read_bytes()
    broken(1, b"")
    broken(2, b"this is no sound\n" * 100)
    broken(3, whole)  # the very same sound under another artist
    damaged = bytearray(next(root.glob("*/1013.mp3")).read_bytes())
    for offset in range(40_000, len(damaged) - 2000, 40_000):
        damaged[offset : offset + 700] = b"\0" * 700
    broken(4, bytes(damaged))  # frames lost on the way
    broken(5, next(root.glob("*/1026.mp3")).read_bytes()[:60_000], 45.0)  # cut short: its row says 45 s
    rows.append((6, 96, "00/6.mp3", 30.0, ["genre---absent"]))
    shutil.copy(next(root.glob("*/1039.mp3")), root / "00" / "7.mp3")  # a file without a row
    write_metadata(root / "raw_30s.tsv", rows)
    return root


def test_collection_with_broken_files_verifies(chorales: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = args("jamendo", chorales, out, "data.segment_seconds=5", "data.valid=0.2", "data.test=0.2")
    done = command("pipeline.preprocess", *arguments)
    assert done.returncode == 0, done.stderr
    assert [*verify(LocalStorage(out))] == []
    manifest = Manifest.load(LocalStorage(out))
    skipped = {Path(row["path"]).name: row["reason"] for row in manifest.skipped}
    assert {"1.mp3", "2.mp3", "3.mp3", "6.mp3"} <= skipped.keys() <= {f"{n}.mp3" for n in range(1, 8)}, skipped
    assert "the same audio as" in skipped["3.mp3"]
    split_of: dict[str, set[str]] = {}
    hours = 0.0
    for path in sorted(out.glob("*.tar")):
        for sample in read_shard(path):
            split_of.setdefault(sample.metadata["labels"]["artist"], set()).add(sample.metadata["split"])
            hours += sample.codes.shape[1] / 75 / 3600
    assert all(len(splits) == 1 for splits in split_of.values()) and len(split_of) >= 6
    assert hours > 0.05, "some three minutes of Bach at the least"
    assert command("pipeline.preprocess", *arguments).stdout.count("nothing to do") == 1


def test_codes_match_the_played_audio(chorales: Path, tmp_path: Path) -> None:
    """A clip's codes are those of its five seconds of the mp3, decoded and encoded here."""
    out = tmp_path / "out"
    done = command("pipeline.preprocess", *args("jamendo", chorales, out, "data.segment_seconds=5", "data.valid=0"))
    assert done.returncode == 0, done.stderr
    sample = next(read_shard(sorted(out.glob("*.tar"))[0]))
    wav = read(
        chorales / sample.metadata["path"],
        start=sample.metadata["start"],
        duration=sample.metadata["duration"],
        rate=24_000,
    )
    codes = load_codec("encodec_embedded", len(sample.codes)).encode(torch.from_numpy(wav)[None, None])[0].numpy()
    assert codes.shape == sample.codes.shape and (codes == sample.codes).mean() > 0.998
