"""The clips that are most like sounds, by codes at any shift in time and by embeddings, while clips are read once.

Letters: N sounds, K codebooks, T frames of a sound, U frames of a clip, B clips of a block, C codes, P prompt width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.audio.metrics import unit_vectors

LIMIT = 32  # clips of a block whose codes are compared with one sound


def share_of_equal_codes(codes: np.ndarray, clip: np.ndarray) -> float:
    """The fraction of a sound's codes [K, T] that a clip [K, U] has at the same time, at the best shift of the clip."""
    frames, margin = codes.shape[1], codes.shape[1] - 1
    padded = np.pad(clip.astype(np.int32), ((0, 0), (margin, margin)), constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, frames, axis=1)  # [K, U + T - 1, T]
    counts = np.count_nonzero(windows == codes[:, None].astype(np.int32), axis=(0, 2))
    return float(counts.max()) / codes.size


@dataclass
class CodeMatch:
    """The clip whose codes are most like those of a sound.

    Attributes:
        key: The clip's key; empty if no clip has any of the codes.
        share: The fraction of the sound's codes that the clip has.
        has_copy: Whether a clip has as many as the ceiling of the search, above which clips are no matches.
        is_exact: Whether no other clip has more; False if there were too many candidates to compare all.
    """

    key: str = ""
    share: float = 0.0
    has_copy: bool = False
    is_exact: bool = True


@dataclass
class CodeSearch:
    """Finds the best clip for each of N sounds.

    At no shift more codes are equal than the two have in common in any order. The clips of a block are compared in
    descending order of this bound, until it is not above the best clip so far, or `LIMIT` clips were compared.

    Attributes:
        sounds: Codes [K, T] each, T >= 1.
        keys: The key of each sound, if it is a clip itself: the clip with this key is skipped.
        ceiling: Clips that have this fraction of the codes or more are no matches.
        matches: The results.
    """

    sounds: Sequence[np.ndarray]
    keys: Sequence[str] = ()
    ceiling: float = 2.0
    matches: list[CodeMatch] = field(init=False)

    def __post_init__(self) -> None:
        self.keys = self.keys or [""] * len(self.sounds)
        self.matches = [CodeMatch() for _ in self.sounds]
        self._counts = [[np.unique(row, return_counts=True) for row in codes] for codes in self.sounds]

    @property
    def shares(self) -> np.ndarray:
        """The fraction of equal codes of each sound and its best clip: [N]."""
        return np.array([match.share for match in self.matches])

    def add(self, keys: Sequence[str], clips: Sequence[np.ndarray]) -> None:
        """Compare with a block of clips, codes [K, U] each, that have these keys."""
        size = 1 + max(int(codes.max()) for codes in [*clips, *self.sounds])
        histograms = [count_codes([codes[k] for codes in clips], size) for k in range(len(clips[0]))]
        for i, (sound, counts) in enumerate(zip(self.sounds, self._counts, strict=True)):
            common = [
                np.minimum(histogram[codes], number[:, None]).sum(0)
                for histogram, (codes, number) in zip(histograms, counts, strict=True)
            ]
            self._compare(i, np.sum(common, axis=0) / sound.size, keys, clips)

    def _compare(self, i: int, bounds: np.ndarray, keys: Sequence[str], clips: Sequence[np.ndarray]) -> None:
        """Compare sound i with the clips of a block. bounds: on the fractions of equal codes, [B]."""
        match, compared = self.matches[i], 0
        for clip in np.argsort(-bounds, kind="stable").tolist():
            if bounds[clip] <= match.share:
                return
            if keys[clip] == self.keys[i]:
                continue
            if compared == LIMIT:
                match.is_exact = False
                return
            share, compared = share_of_equal_codes(self.sounds[i], clips[clip]), compared + 1
            if share >= self.ceiling:
                match.has_copy = True
            elif share > match.share:
                match.key, match.share = keys[clip], share


def count_codes(rows: Sequence[np.ndarray], size: int) -> np.ndarray:
    """How often each of `size` codes occurs in each of B rows: int32 [C, B]."""
    columns = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    cells = np.concatenate(rows).astype(np.int64) * len(rows) + columns
    return np.bincount(cells, minlength=size * len(rows)).reshape(size, len(rows)).astype(np.int32)


@dataclass
class EmbeddingSearch:
    """Finds the clip with the most similar embedding for each of N sounds, exactly.

    Attributes:
        embeddings: Of the sounds: [N, P].
        keys: The keys of the best clips.
        cosines: Their cosine similarities: [N].
    """

    embeddings: np.ndarray
    keys: list[str] = field(init=False)
    cosines: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._directions = unit_vectors(self.embeddings)
        self.keys, self.cosines = [""] * len(self.embeddings), np.full(len(self.embeddings), -1.0)

    def add(self, keys: Sequence[str], embeddings: np.ndarray) -> None:
        """Compare with a block of clips with these keys. embeddings: [B, P]."""
        cosines = self._directions @ unit_vectors(embeddings).T  # [N, B]
        best = cosines.argmax(1)
        for i, clip in enumerate(best.tolist()):
            if cosines[i, clip] > self.cosines[i]:
                self.keys[i], self.cosines[i] = keys[clip], cosines[i, clip]
