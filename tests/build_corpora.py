"""Small corpora of real sound, in the layouts that their publishers use."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from pipeline.config import compose
from pipeline.corpora import open_corpus


def data(name: str, root: Path, *overrides: str) -> Mapping:
    """The settings `data=name data.root=root ...`, as an entry point gets them; listings go beside the root."""
    listings = f"data.listings={root.parent / 'listings'}"
    return compose("preprocess", [f"data={name}", f"data.root='{root}'", listings, *overrides]).data


def render_notes(root: Path, *overrides: str) -> Path:
    """24 notes of 6 instruments, 4 of them to train on, in NSynth's layout."""
    small = ["data.programs=[0,16,24,40,56,73]", "data.pitches=55-70", "data.velocities=[100]", "data.clips=24"]
    open_corpus(data("notes", root, *small, *overrides))
    return root


def pack(archive: Path, files: Mapping[str, bytes | Path]) -> Path:
    """A tar of files in the given order, packed by gzip where its name says so."""
    with tarfile.open(archive, "w:gz" if archive.name.endswith("gz") else "w") as tar:
        for name, content in files.items():
            content = content if isinstance(content, bytes) else content.read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return archive
