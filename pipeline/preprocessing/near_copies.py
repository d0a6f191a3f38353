"""Near copies of a recording, encoded again, resampled, made louder or trimmed, are used in the split of the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from pipeline.audio import audio_io, similarity
from pipeline.common.console import print_log
from pipeline.corpora import Clip, Corpus, SkippedInput, fingerprint, printable
from pipeline.corpora.scan_cache import cache_file, cached_map
from pipeline.corpora.sound_identity import follow

_CACHED_SOUNDS = 16  # decoded, of 19 MB at most


def measure_spectrum(source: str | bytes) -> str | None:
    """The spectrum of a recording in hexadecimal digits; None if it is silent or cannot be decoded."""
    wav = _read(source)
    spectrum = None if wav is None else similarity.spectrum(wav)
    return spectrum.hex() if spectrum else None


class GroupedCorpus:
    """A corpus whose near copies are in the split of the first of them, in the order of the corpus.

    Recordings in archives are not compared.

    Args:
        corpus: The corpus.
        scan_cache: The folder that caches spectra.
        root: The corpus folder.
        spectrum: `measure_spectrum`, maybe in another process.

    Attributes:
        skipped: What the corpus skipped, and the recordings that are in another split than without this.
    """

    def __init__(self, corpus: Corpus, scan_cache: Path, root: Path, spectrum: Callable[[str], str | None]) -> None:
        self._corpus, self._cache, self._spectrum = corpus, cache_file(scan_cache, root, "spectra"), spectrum
        self._root, self.skipped = root, corpus.skipped

    def clips(self) -> Iterator[Clip]:
        """See `pipeline.corpora.Corpus`."""
        recordings = {clip.path: clip for clip in self._corpus.clips() if clip.span is None}
        print_log(f"comparing {len(recordings):,} recordings to find near copies")
        items = sorted(((path, fingerprint(clip)) for path, clip in recordings.items()), key=lambda i: i[0].split("/"))
        rows = {path: value for path, _, value in cached_map(self._cache, items, self._spectrum)}
        spectra = {path: bytes.fromhex(rows[path]) for path in recordings if rows[path]}
        first = find_near_copies(spectra)
        moved = []
        for path, original in first.items():
            before, split = recordings[path].split, recordings[original].split
            if before != split:
                first_name = printable(original.removeprefix(f"{self._root}/"))
                reason = f"near copy: of {first_name!r}, and in its split: {split} instead of {before}"
                moved.append(SkippedInput(path.removeprefix(f"{self._root}/"), recordings[path].key, reason, True))
        for clip in self._corpus.clips():
            yield replace(clip, split=recordings[first[clip.path]].split) if clip.path in first else clip
        self.skipped.extend(moved)


def find_near_copies(spectra: dict[str, bytes]) -> dict[str, str]:
    """Return {path: path of the first near copy} for every recording that is a near copy of an earlier one.

    spectra: what `similarity.spectrum` returned, by path.
    """
    paths, first = list(spectra), dict[int, int]()
    read = lru_cache(_CACHED_SOUNDS)(_read)
    for i, j in similarity.similar_spectra(list(spectra.values())):
        if follow(first, i) == follow(first, j):
            continue
        a, b = read(paths[i]), read(paths[j])
        if a is not None and b is not None and similarity.is_copy(a, b):
            low, high = sorted((follow(first, i), follow(first, j)))
            first[high] = low
    return {paths[i]: paths[follow(first, i)] for i in sorted(first)}


def _read(source: str | bytes) -> np.ndarray | None:
    try:
        return audio_io.read(source, duration=similarity.MAX_SECONDS, rate=similarity.RATE, keep_truncated=True)
    except audio_io.AudioError:
        return None
