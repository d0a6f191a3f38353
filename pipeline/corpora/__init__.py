"""What there is to encode: lists clips, decodes nothing.

`open_corpus(settings).clips()` is the plan. `load(clips)` fills in the bytes of those that lie in archives, and
`fingerprint(clip)` says cheaply whether an input is still the same.
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
    """The corpus that `data` (a choice of conf/data) describes, found and ready to list.

    digest: a hash of the decoded sound of a file (its path or its bytes), or None where it cannot be decoded. Jamendo
    and folders ask it whether files that differ in their bytes are the same sound; without it, they are not.
    durations: measures the files that a folder cuts into segments; without it, their headers are trusted.

    Raises:
        InputError: there is no such corpus, or its folder is missing.
    """
    data = dict(data)  # a plain one: looking into a DictConfig for every clip of a million takes a minute
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
    raise InputError(f"data.name={name} is no corpus: choose nsynth, notes, folder or jamendo")
