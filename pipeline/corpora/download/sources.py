"""Lists the files that the publishers of NSynth and MTG-Jamendo offer for download."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError
from pipeline.corpora.base import SPLITS
from pipeline.corpora.download.http import RemoteFile

GZIP = b"\x1f\x8b"
QUALITIES = ("audio", "audio-low")


@dataclass(frozen=True)
class CorpusSource:
    """The parts of a corpus to download; the fields are the settings of conf/download.yaml."""

    splits: Sequence[str]
    quality: str
    folders: Sequence[int] | None
    addresses: Mapping[str, str]


def list_remote_files(
    name: str, root: Path, source: CorpusSource, download_list: Callable[[RemoteFile], Any]
) -> list[RemoteFile]:
    """Return the files of a corpus.

    Args:
        name: The corpus, as in `data=`.
        root: The folder to download into.
        source: Which parts of the corpus to download, and from where.
        download_list: Downloads a list of files, where the publisher offers one.

    Raises:
        InputError: The corpus cannot be downloaded, or a setting has an unknown value.
    """
    if name == "nsynth":
        return _nsynth(root, source)
    if name == "jamendo":
        return _jamendo(root, source, download_list)
    hint = "preprocess renders it" if name == "notes" else "it is a local folder"
    raise InputError(f"data={name} cannot be downloaded, {hint}: choose data=nsynth or data=jamendo")


def _nsynth(root: Path, source: CorpusSource) -> list[RemoteFile]:
    """Return the archives; they have no published checksums, but Google's storage reports an MD5 in each response."""
    unknown = [split for split in source.splits if split not in SPLITS]
    if unknown or not source.splits:
        raise InputError(f"splits={list(source.splits)}: expected some of {', '.join(SPLITS)}")
    names = [f"nsynth-{split}.jsonwav.tar.gz" for split in source.splits]
    return [RemoteFile(f"{source.addresses['nsynth']}/{name}", root / name, magic=GZIP) for name in names]


def _jamendo(root: Path, source: CorpusSource, download_list: Callable[[RemoteFile], Any]) -> list[RemoteFile]:
    """Return the metadata and a hundred tars with the SHA-256 of each from the project's list."""
    quality, lists = source.quality, source.addresses["jamendo_lists"]
    if quality not in QUALITIES:
        raise InputError(f"quality={quality}: expected one of {', '.join(QUALITIES)}")
    name = f"raw_30s_{quality}_sha256_tars.txt"
    checksums = RemoteFile(f"{lists}/download/{name}", root / name)
    tars = _parse_checksums(checksums.path)
    if not tars:
        download_list(checksums)
        tars = _parse_checksums(checksums.path)
    if not tars:  # e.g. a login page
        checksums.path.unlink(missing_ok=True)
        raise InputError(
            f"{checksums.url} lists 0 tars: expected lines of SHA-256 and name; is addresses.jamendo_lists right?"
        )
    selected = {f"{folder:02d}" for folder in source.folders} if source.folders is not None else None
    unknown = (selected or set()) - {number for *_, number in tars}
    if unknown:
        raise InputError(f"folders={list(source.folders or ())}: {name} lists {len(tars)} tars, from 00 on")
    metadata = RemoteFile(f"{lists}/raw_30s.tsv", root / "raw_30s.tsv", magic=b"TRACK_ID\t")
    return [metadata] + [
        RemoteFile(f"{source.addresses['jamendo']}/{quality}/{name}", root / quality / name, sha256)
        for sha256, name, number in tars
        if selected is None or number in selected
    ]


def _parse_checksums(file: Path) -> list[tuple[str, str, str]]:
    """Return (SHA-256, name, folder number) of every tar in a list; [] if there is no list."""
    text = file.read_text(errors="replace") if file.is_file() else ""
    return re.findall(r"^([0-9a-f]{64}) +(\w[\w.-]*-(\d\d)\.tar)$", text, re.MULTILINE | re.ASCII)
