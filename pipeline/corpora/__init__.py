"""Corpora: list the clips to encode, without decoding them. One file for each corpus.

The settings of a corpus are its class in `CORPORA`; their `open` returns the corpus, whose `clips()` lists the clips.
`load(clips)` reads the bytes of those in archives. `fingerprint(clip)` detects cheaply whether an input has changed.
"""

from __future__ import annotations

from pipeline.common.registry import Registry
from pipeline.corpora.base import UNREADABLE as UNREADABLE
from pipeline.corpora.base import Corpus as Corpus
from pipeline.corpora.base import CorpusSettings as CorpusSettings
from pipeline.corpora.base import Durations as Durations
from pipeline.corpora.base import RemoteFile as RemoteFile
from pipeline.corpora.base import SkippedInput as SkippedInput
from pipeline.corpora.base import printable as printable
from pipeline.corpora.clip import Clip as Clip
from pipeline.corpora.tar_archive import fingerprint as fingerprint
from pipeline.corpora.tar_archive import load as load

CORPORA: Registry[type[CorpusSettings]] = Registry("corpus", __name__)
