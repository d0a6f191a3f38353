"""The manifest of a tokenized dataset: its shards, codec, embedder and corpus. Written last, it marks completion."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError, first_line
from pipeline.common.files import is_intact, with_checksum
from pipeline.data.shard import ShardInfo
from pipeline.data.storage import Storage, open_storage

FORMAT = 1
_MAX_SIZES = {"codebooks": 1024, "codebook_size": 65_536, "dim": 1 << 20}  # codes have 16 bits, a batch fits in memory
MANIFEST_NAME = "manifest.json"


@dataclass
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        codec: its identity: name, sha256 of the weights, rates, sizes.
        embedder: its identity.
        data: the settings of the corpus.
        splits: the shards of each split.
        silent: number of clips that are silent; they are in the dataset.
        skipped: inputs that are not in the dataset, as `skipped_row` returns them.
        plan: digest of the build plan, for resuming.
        adjusted: clips whose audio differs from their files, in the form of `skipped`.
        path: of the folder that the manifest was loaded from, for messages.
    """

    codec: dict[str, Any]
    embedder: dict[str, Any]
    data: dict[str, Any]
    splits: dict[str, list[ShardInfo]]
    silent: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    plan: str = ""
    adjusted: list[dict[str, Any]] = field(default_factory=list, kw_only=True)
    path: str = field(default="the dataset", compare=False)

    @property
    def codebooks(self) -> int:
        """Number of codebooks, K."""
        return int(self.codec["codebooks"])

    @property
    def prompt_dim(self) -> int:
        """Number of values of a prompt vector, D."""
        return int(self.embedder["dim"])

    @property
    def frame_rate(self) -> float:
        """Frames per second of audio."""
        rate: float = self.codec["frame_rate"]
        return rate

    def num_samples(self, split: str) -> int:
        """Return the number of clips in a split."""
        return sum(shard.samples for shard in self.splits.get(split, []))

    def num_frames(self, split: str) -> int:
        """Return the number of frames in a split."""
        return sum(shard.frames for shard in self.splits.get(split, []))

    def hours(self, split: str) -> float:
        """Return the hours of audio in a split."""
        return self.num_frames(split) / self.frame_rate / 3600

    @classmethod
    def load(cls, folder: str | Path | Storage) -> Manifest:
        """Read the manifest of a dataset. Raises InputError if it is missing, malformed, or of another format."""
        store = open_storage(folder)
        try:
            content = json.loads(store.read(MANIFEST_NAME))
            if isinstance(content, dict) and content.get("format") == FORMAT and not is_intact(content):
                raise ValueError("its sha256 differs")
        except FileNotFoundError as error:
            has_shards = any(name.endswith(".tar") for name in store.sizes())
            advice = (
                "its preprocessing has not finished: run it again"
                if has_shards
                else "create one with python -m pipeline.preprocess"
            )
            raise InputError(
                f"there is no dataset at {store.display_path()} ({MANIFEST_NAME} is missing): {advice}"
            ) from error
        except OSError as error:
            raise InputError(
                f"{store.display_path(MANIFEST_NAME)} cannot be read ({error.strerror}): give the folder of a dataset"
            ) from error
        except InputError:
            raise
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{store.display_path(MANIFEST_NAME)} is damaged ({error}): run pipeline.preprocess again"
            ) from error
        if isinstance(content, dict) and content.get("format") != FORMAT:
            version = f"{content.get('format')!r:.40}"
            raise InputError(
                f"{store.display_path(MANIFEST_NAME)} has format {version}, but this version reads {FORMAT}: "
                "run pipeline.preprocess again"
            )
        try:
            return cls._parse(content, store.display_path())
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(
                f"{store.display_path(MANIFEST_NAME)} is malformed ({reason:.200}): run pipeline.preprocess again"
            ) from error

    @classmethod
    def _parse(cls, content: dict[str, Any], path: str) -> Manifest:
        splits = {str(split): [*map(ShardInfo.parse, part["shards"])] for split, part in content["splits"].items()}
        for split, shards in splits.items():
            totals = content["splits"][split]
            if (totals["samples"], totals["frames"]) != (sum(s.samples for s in shards), sum(s.frames for s in shards)):
                raise TypeError(f"the totals of {split} do not add up")
        codec, embedder = dict(content["codec"]), dict(content["embedder"])
        _validate_identity(
            codec, "codec", ("name", "weights"), ("sample_rate", "frame_rate"), ("codebooks", "codebook_size")
        )
        _validate_identity(embedder, "embedder", ("name", "weights"), ("sample_rate",), ("dim",))
        if type(content["silent"]) is not int:
            raise TypeError(f"silent is {content['silent']!r:.40}, expected an integer")
        skipped = [parse_skipped(row) for row in content["set_aside"]]
        adjusted = [parse_skipped(row) for row in content.get("adjusted", [])]
        data, plan = dict(content["data"]), str(content.get("plan", ""))
        return cls(codec, embedder, data, splits, content["silent"], skipped, plan, path, adjusted=adjusted)

    def save(self, folder: str | Path | Storage) -> None:
        """Write the manifest atomically. The same contents give the same bytes."""
        splits = {
            split: {
                "shards": [asdict(shard) for shard in shards],
                "samples": self.num_samples(split),
                "frames": self.num_frames(split),
                "hours": round(self.hours(split), 6),
            }
            for split, shards in self.splits.items()
        }
        content = with_checksum(
            {
                "format": FORMAT,
                "codec": self.codec,
                "embedder": self.embedder,
                "data": self.data,
                "splits": splits,
                "silent": self.silent,
                "set_aside": self.skipped,
                "adjusted": self.adjusted,
                "plan": self.plan,
            }
        )
        with open_storage(folder).open_atomic(MANIFEST_NAME) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")

    def check_codec(self, codec: Mapping[str, Any], codebooks: int) -> None:
        """Check that a model of a codec can read these shards.

        Args:
            codec: the expected identity of the codec.
            codebooks: number of codebooks that the model reads.

        Raises:
            InputError: the codec differs, or the shards have fewer codebooks.
        """
        expected = {name: value for name, value in codec.items() if name not in ("codebooks", "dtype", "version")}
        self._check_identity("codec", expected)
        if codebooks > self.codebooks:
            raise InputError(
                f"codec.codebooks={codebooks}: the shards at {self.path} have {self.codebooks}; give "
                f"codec.codebooks={self.codebooks} or less, or preprocess again with codec.codebooks={codebooks}"
            )

    def check_embedder(self, embedder: Mapping[str, Any]) -> None:
        """Raise InputError unless the prompt vectors are of this embedder."""
        self._check_identity("embedder", embedder)

    def _check_identity(self, part: str, expected: Mapping[str, Any]) -> None:
        actual = self.codec if part == "codec" else self.embedder
        differ = [name for name, value in expected.items() if actual.get(name) != value]
        if differ:
            differences = ", ".join(
                f"{part}.{name} is {actual.get(name)!r}, expected {expected[name]!r}" for name in differ
            )
            raise InputError(f"the shards at {self.path} do not match: {differences}")


def skipped_row(path: str, key: str, reason: str, retry: bool = False) -> dict[str, Any]:
    """Return a skipped input as JSON. retry: whether the next run tries it again."""
    return {"path": path, "key": key, "reason": reason, **({"retry": True} if retry else {})}


def parse_skipped(row: Mapping[str, Any]) -> dict[str, Any]:
    """Validate what `skipped_row` returned. Raises KeyError or TypeError for anything else."""
    return skipped_row(str(row["path"]), str(row["key"]), str(row["reason"]), row.get("retry") is True)


def _validate_identity(
    identity: Mapping[str, Any], part: str, texts: tuple[str, ...], rates: tuple[str, ...], counts: tuple[str, ...]
) -> None:
    """Raise KeyError, TypeError or ValueError for an identity that no codec or embedder can have."""
    for name in (*texts, *rates, *counts):
        value = identity[name]
        if name in texts:
            fits = isinstance(value, str)
        elif name in rates:
            fits = type(value) in (int, float) and 0 < value < math.inf
        else:
            fits = type(value) is int and 0 < value <= _MAX_SIZES[name]
        if not fits:
            raise ValueError(f"{part}.{name} is {value!r:.40}")
