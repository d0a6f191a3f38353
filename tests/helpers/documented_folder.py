"""A folder that has everything the documents' commands name, and settings that make these commands small."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.audio.codecs.encodec_embedded import EMBEDDED_FILE
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.patterns import PATTERNS
from tests.helpers.corpora import pack
from tests.helpers.documents import ROOT
from tests.helpers.download_server import Site, serve

SMALL = {  # added to a command, except for settings that it gives itself
    "preprocess": "codec=encodec_embedded codec.codebooks=2 embedder=encodecmae_tiny samples_per_shard=6 "
    "encoder_workers=1 decode_workers=0 devices=cpu examine_clips=0",
    "train": "codec=encodec_embedded codec.codebooks=2 model=tiny model.width=32 model.layers=2 tracking=none "
    "trainer.steps=2 trainer.micro_batch=4 audio_samples.clips=0",
    "evaluate": "n=4 resamples=10 temperatures=[1.0]",
    "compare": "n=4 resamples=10 benchmark_batch=2",
    "learning_curve": "n=2 resamples=10 shares=[0.4,0.7,1] train={model.width:32,model.heads:2,model.layers:1,"
    "trainer.steps:2,trainer.micro_batch:2,codec.codebooks:2}",
    "report": "n=2 temperatures=[1.0] codebooks=[1,2] num_interpolations=1 steps=3",
    "reconstruct": "codec=encodec_embedded codebooks=[1,2]",
    "dashboard": "dry_run=true",
}
GANSYNTH = "nsynth-gansynth_splits.csv"
# environment variables for a process of its own
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Sandbox:
    """The folder in which commands are run, and the server that has NSynth."""

    root: Path
    site: Site

    def shrink(self, command: str, settings: list[str]) -> list[str]:
        """The settings, and those that make the command small where they are not among them."""
        names = {setting.lstrip("+").split("=", 1)[0] for setting in settings}
        small = [*SMALL.get(command, "").split(), *(["data.seconds=0.4"] if "data=nsynth" in settings else [])]
        return [*settings, *(setting for setting in small if setting.split("=", 1)[0] not in names)]

    def run(self, command: str, settings: list[str]) -> None:
        """Run a command in this process; it has to succeed."""
        module = importlib.import_module(f"pipeline.{command}")
        assert module.main.task(list(settings)) in (0, None)


@contextmanager
def build_sandbox(root: Path, nsynth_folder: Path) -> Iterator[Sandbox]:
    """Make the folder: the repository's folders, sounds, a codec, NSynth, its dataset (DIR), runs on it (RUN)."""
    for name in ("pipeline", "conf", "jobs", "tests", "Makefile", "pyproject.toml"):
        (root / name).symlink_to(ROOT / name)
    for number, name in enumerate(("a.wav", "FOLDER/d.wav", "FOLDER/e.wav")):
        write_tone(root / name, 220 * 2 ** (number / 5), 1.5)
    (root / "labels.csv").write_text("file,mood\nd.wav,calm\ne.wav,wild\n")
    (root / "FOLDER" / "d.json").write_text('{"mood": "calm"}')
    (root / "CODEC").mkdir()
    (root / "CODEC" / EMBEDDED_FILE).symlink_to(ROOT / "pipeline" / "assets" / EMBEDDED_FILE)
    (root / "data" / "nsynth").mkdir(parents=True)
    for folder in nsynth_folder.iterdir():
        (root / "data" / "nsynth" / folder.name).symlink_to(folder)
    (root / "data" / "nsynth" / GANSYNTH).write_bytes(_split_as_gansynth(nsynth_folder))
    with pytest.MonkeyPatch.context() as patch, serve(Site(_pack_nsynth(root, nsynth_folder))) as site:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            patch.setenv(name, "")  # so that what training sets is restored
            patch.delenv(name)
        patch.chdir(root)
        handlers = logging.getLogger().handlers[:]
        sandbox = Sandbox(root, site)
        sandbox.run("preprocess", sandbox.shrink("preprocess", ["data=nsynth"]))
        sandbox.run("train", sandbox.shrink("train", ["+exp=delay_gpt2"]))
        logging.getLogger().handlers[:] = handlers
        _link_names(root)
        _write_labeled_run(root)
        sandbox.run("generate", ["run=RUN", "prompt=a.wav", "out=b.wav", "seconds=0.4"])
        yield sandbox


def write_tone(file: Path, pitch: float, seconds: float = 0.5) -> None:
    """Write a tone that fades."""
    time = np.arange(round(24_000 * seconds)) / 24_000
    file.parent.mkdir(exist_ok=True)
    soundfile.write(file, 0.4 * np.sin(2 * np.pi * pitch * time) * np.exp(-3 * time), 24_000)


def _pack_nsynth(root: Path, nsynth_folder: Path) -> dict[str, bytes]:
    """NSynth's archives by their path on the server."""
    files = {}
    for split in ("train", "valid", "test"):
        members = [file for file in sorted((nsynth_folder / f"nsynth-{split}").rglob("*.*")) if file.is_file()]
        contents: dict[str, bytes | Path] = {str(file.relative_to(nsynth_folder)): file for file in members}
        archive = pack(root / f"nsynth-{split}.jsonwav.tar.gz", contents)
        files[f"/nsynth/{archive.name}"] = archive.read_bytes()
    return files | {f"/nsynth/{GANSYNTH}": _split_as_gansynth(nsynth_folder)}


def _split_as_gansynth(nsynth_folder: Path) -> bytes:
    """A table that puts NSynth's notes into other splits."""
    notes = sorted(path.stem for path in nsynth_folder.rglob("*.wav"))
    return "".join(
        ["id,split\n", *(f"{note},{('train', 'test', 'valid')[i % 3]}\n" for i, note in enumerate(notes))]
    ).encode()


def _write_labeled_run(root: Path) -> None:
    """Write runs/labels: like RUN, but untrained, with labels of NSynth as conditions."""
    config = CodecGPT.from_pretrained(root / "RUN" / "export").config
    pitches, families = [str(pitch) for pitch in range(128)], ["brass", "keyboard"]
    labels = [
        {"kind": "category", "name": name, "dropout": 0.1, "values": values}
        for name, values in {"pitch": pitches, "instrument_family": families}.items()
    ]
    CodecGPT(replace(config, conditions=[*config.conditions, *labels])).save_pretrained(root / "runs/labels/export")


def _link_names(root: Path) -> None:
    """The names that the documents use for the dataset and the run."""
    (root / "DIR").symlink_to("shards/nsynth")
    (root / "RUN").symlink_to("runs/delay_gpt2")
    (root / "runs" / "flatten_gpt2").symlink_to("delay_gpt2")
    (root / "quickstart").mkdir()
    (root / "quickstart" / "run").symlink_to(root / "RUN")
    (root / "quickstart" / "shards").symlink_to(root / "DIR")
    (root / "runs" / "study").mkdir()
    for pattern in PATTERNS.names():
        (root / "runs" / "study" / pattern).symlink_to(root / "RUN")
