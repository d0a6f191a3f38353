"""Corpora: list the clips to encode, without decoding them.

`open_corpus(settings).clips()` lists the clips. `load(clips)` reads the bytes of those in archives, and
`fingerprint(clip)` detects cheaply whether an input has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError
from pipeline.corpora.base import UNREADABLE as UNREADABLE
from pipeline.corpora.base import Corpus
from pipeline.corpora.base import Durations as Durations
from pipeline.corpora.base import SkippedInput as SkippedInput
from pipeline.corpora.clip import Clip as Clip
from pipeline.corpora.dedup import AudioDigest
from pipeline.corpora.tar_archive import fingerprint as fingerprint
from pipeline.corpora.tar_archive import load as load


def open_corpus(
    data: Mapping[str, Any], digest: AudioDigest | None = None, durations: Durations | None = None
) -> Corpus:
    """Open a corpus.

    Args:
        data: The settings of one of conf/data.
        digest: Returns a hash of the decoded audio of a file, given by its path or its bytes; None if it cannot be
            decoded. Jamendo and folders use it to find files with the same audio; by default only equal bytes count.
        durations: Measures the files that a folder cuts into segments; by default their headers are trusted.

    Raises:
        InputError: The corpus is unknown, or its folder is missing.
    """
    data = dict(data)  # a plain dict: a million look-ups in a DictConfig take a minute
    name = data["name"]
    if name == "nsynth":
        from pipeline.corpora.nsynth import NSynth

        return NSynth(Path(data["root"]), Path(data["scan_cache_dir"]), seconds=data["seconds"])
    if name == "notes":
        from pipeline.corpora.midi_notes import open_notes

        return open_notes(data)
    if name == "folder":
        from pipeline.corpora.folder import Folder

        return Folder(data, digest, durations)
    if name == "jamendo":
        from pipeline.corpora.jamendo import Jamendo

        return Jamendo(data, digest)
    raise InputError(f"data.name={name} is not a corpus: choose nsynth, notes, folder or jamendo")
