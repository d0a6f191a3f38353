"""What the publishers of NSynth and MTG-Jamendo offer for download, and where it belongs below `data.root`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError
from pipeline.corpora.base import SPLITS
from pipeline.corpora.download.http import RemoteFile

GZIP = b"\x1f\x8b"
QUALITIES = ("audio", "audio-low")


def list_remote_files(cfg: Mapping[str, Any], get: Callable[[RemoteFile], Any]) -> list[RemoteFile]:
    """The files of `conf/download.yaml`'s choice. get: fetches the lists of files, where there are any.

    Raises:
        InputError: the corpus is not one to download, or a setting names what it does not have.
    """
    name, root = cfg["data"]["name"], Path(cfg["data"]["root"])
    if name == "nsynth":
        return _nsynth(cfg, root)
    if name == "jamendo":
        return _jamendo(cfg, root, get)
    hint = "preprocess renders it" if name == "notes" else "it is a folder of yours"
    raise InputError(f"data={name} is not downloaded, {hint}: choose data=nsynth or data=jamendo")


def _nsynth(cfg: Mapping[str, Any], root: Path) -> list[RemoteFile]:
    """The archives bear no published checksum; Google's storage states an MD5 with each answer."""
    wrong = [split for split in cfg["splits"] if split not in SPLITS]
    if wrong or not cfg["splits"]:
        raise InputError(f"splits={list(cfg['splits'])}: expected some of {', '.join(SPLITS)}")
    names = [f"nsynth-{split}.jsonwav.tar.gz" for split in cfg["splits"]]
    return [RemoteFile(f"{cfg['addresses']['nsynth']}/{name}", root / name, magic=GZIP) for name in names]


def _jamendo(cfg: Mapping[str, Any], root: Path, get: Callable[[RemoteFile], Any]) -> list[RemoteFile]:
    """The metadata and a hundred tars, with the SHA-256 of each from the project's own list."""
    quality = cfg["quality"]
    if quality not in QUALITIES:
        raise InputError(f"quality={quality}: expected one of {', '.join(QUALITIES)}")
    lists = cfg["addresses"]["jamendo_lists"]
    sums = RemoteFile(
        f"{lists}/download/raw_30s_{quality}_sha256_tars.txt", root / f"raw_30s_{quality}_sha256_tars.txt"
    )
    tars = _parse_checksums(sums.path)
    if not tars:
        get(sums)
        tars = _parse_checksums(sums.path)
    if not tars:  # a page to log in, say
        sums.path.unlink(missing_ok=True)
        raise InputError(
            f"{sums.url} lists 0 tars: expected lines of SHA-256 and name; is addresses.jamendo_lists right?"
        )
    selected = {f"{folder:02d}" for folder in cfg["folders"]} if cfg["folders"] is not None else None
    unknown = (selected or set()) - {number for *_, number in tars}
    if unknown:
        raise InputError(f"folders={list(cfg['folders'])}: {sums.path.name} lists {len(tars)} tars, from 00 on")
    metadata = RemoteFile(f"{lists}/raw_30s.tsv", root / "raw_30s.tsv", magic=b"TRACK_ID\t")
    return [metadata] + [
        RemoteFile(f"{cfg['addresses']['jamendo']}/{quality}/{name}", root / quality / name, sha256)
        for sha256, name, number in tars
        if selected is None or number in selected
    ]


def _parse_checksums(sums: Path) -> list[tuple[str, str, str]]:
    """(SHA-256, name, folder) of every tar that a list names; none where there is no list."""
    told = sums.read_text(errors="replace") if sums.is_file() else ""
    return re.findall(r"^([0-9a-f]{64}) +(\w[\w.-]*-(\d\d)\.tar)$", told, re.MULTILINE | re.ASCII)
