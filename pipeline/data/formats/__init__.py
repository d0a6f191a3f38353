"""Formats of other programs that a dataset is converted to, one file each.

A format writes clips in the order in which they come, in memory that does not depend on their number.

Letters: K codebooks, T frames, D prompt dimensions.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.common.errors import InputError
from pipeline.common.registry import Registry
from pipeline.data.labels import Vocabularies
from pipeline.data.manifest import Manifest


@dataclass(frozen=True, eq=False)
class ConvertedClip:
    """One clip for other programs.

    Attributes:
        key: unique in the dataset; letters, digits, `_` and `-`.
        codes: uint16 [K, T], from 0.
        prompt: float16 [D], or [N, D] where a clip has N vectors.
        seconds: duration of its audio; the last of the T frames may be longer.
        labels: every label of the dataset by its name; None where the clip has none.
        source: path of the recording.
        start: where the clip starts in the recording, in seconds.
    """

    key: str
    codes: np.ndarray
    prompt: np.ndarray
    seconds: float
    labels: dict[str, Any]
    source: str
    start: float


class DatasetFormat(ABC):
    """Writes a dataset in one format. A subclass reads nothing but its arguments.

    Attributes:
        reader: Python code that reads a split in this format; `{out}` and `{split}` are replaced.
    """

    reader: ClassVar[str]

    def __init__(self, folder: Path, manifest: Manifest, labels: Vocabularies) -> None:
        """Prepare to write; slow packages are imported here, in `optional_import`.

        Args:
            folder: an empty folder.
            manifest: of the dataset.
            labels: the vocabulary of each label.
        """
        self.folder, self.manifest, self.labels = folder, manifest, labels

    @abstractmethod
    def write(self, split: str, clips: Iterator[ConvertedClip]) -> None:
        """Write all clips of a split, which has at least one."""


@contextlib.contextmanager
def optional_import(extra: str) -> Iterator[None]:
    """In the block, packages are imported that only one format needs.

    Args:
        extra: the optional dependency of this project that has them.

    Raises:
        InputError: one is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise InputError(f"to: this format needs a package ({error}): pip install 'codec-audio-lm[{extra}]'") from error


FORMATS: Registry[type[DatasetFormat]] = Registry("dataset format", __name__)
