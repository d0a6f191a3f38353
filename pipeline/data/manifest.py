"""The manifest of a cache: what its shards hold, made by what, from what. Written last, so that it says *done*."""

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
_MAX_SIZES = {"codebooks": 1024, "codebook_size": 65_536, "dim": 1 << 20}  # what codes of 16 bits and a batch can hold
MANIFEST_NAME = "manifest.json"


@dataclass
class Manifest:
    """All that `manifest.json` says.

    codec, embedder: their identities (name, weights' sha256, rates, sizes); data: the settings of the corpus;
    splits: the shards of each split; silent: clips that are silence, kept; set_aside: inputs that are not in the cache,
    as `skipped_row` gives them; plan: a digest of the plan it fulfils, for resuming; where: the folder it was
    loaded from.
    adjusted: clips whose sound is not as their files have it, as dicts of the same.
    """

    codec: dict[str, Any]
    embedder: dict[str, Any]
    data: dict[str, Any]
    splits: dict[str, list[ShardInfo]]
    silent: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    plan: str = ""
    adjusted: list[dict[str, Any]] = field(default_factory=list, kw_only=True)
    path: str = field(default="the cache", compare=False)

    @property
    def codebooks(self) -> int:
        """K."""
        return int(self.codec["codebooks"])

    @property
    def prompt_dim(self) -> int:
        """D."""
        return int(self.embedder["dim"])

    @property
    def frame_rate(self) -> float:
        """Frames a second of audio."""
        return self.codec["frame_rate"]

    def num_samples(self, split: str) -> int:
        """Clips in a split."""
        return sum(shard.samples for shard in self.splits.get(split, []))

    def num_frames(self, split: str) -> int:
        """Frames in a split."""
        return sum(shard.frames for shard in self.splits.get(split, []))

    def hours(self, split: str) -> float:
        """Hours of audio in a split."""
        return self.num_frames(split) / self.frame_rate / 3600

    @classmethod
    def load(cls, folder: str | Path | Storage) -> Manifest:
        """Read the manifest of a cache. Raises InputError for a missing or malformed one, or a later format."""
        store = open_storage(folder)
        try:
            found = json.loads(store.read(MANIFEST_NAME))
            if isinstance(found, dict) and found.get("format") == FORMAT and not is_intact(found):
                raise ValueError("its sha256 differs")
        except FileNotFoundError as error:
            some = any(name.endswith(".tar") for name in store.sizes())
            why = (
                "its preprocessing has not finished: run it again" if some else "make it: python -m pipeline.preprocess"
            )
            raise InputError(
                f"there is no cache at {store.display_path()} ({MANIFEST_NAME} is missing): {why}"
            ) from error
        except OSError as error:
            raise InputError(
                f"{store.display_path(MANIFEST_NAME)} cannot be read ({error.strerror}): give a cache's folder"
            ) from error
        except InputError:
            raise
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{store.display_path(MANIFEST_NAME)} is damaged ({error}): run pipeline.preprocess again"
            ) from error
        if isinstance(found, dict) and found.get("format") != FORMAT:
            told = f"{found.get('format')!r:.40}"
            raise InputError(f"{store.display_path(MANIFEST_NAME)} has format {told}, and this program reads {FORMAT}")
        try:
            return cls._parse(found, store.display_path())
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            why = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(
                f"{store.display_path(MANIFEST_NAME)} is malformed ({why:.200}): run pipeline.preprocess again"
            ) from error

    @classmethod
    def _parse(cls, found: dict[str, Any], where: str) -> Manifest:
        splits = {str(split): [*map(ShardInfo.parse, part["shards"])] for split, part in found["splits"].items()}
        for split, shards in splits.items():
            told = found["splits"][split]
            if (told["samples"], told["frames"]) != (sum(s.samples for s in shards), sum(s.frames for s in shards)):
                raise TypeError(f"the totals of {split} do not add up")
        codec, embedder = dict(found["codec"]), dict(found["embedder"])
        _validate_identity(
            codec, "codec", ("name", "weights"), ("sample_rate", "frame_rate"), ("codebooks", "codebook_size")
        )
        _validate_identity(embedder, "embedder", ("name", "weights"), ("sample_rate",), ("dim",))
        if type(found["silent"]) is not int:
            raise TypeError(f"silent is {found['silent']!r:.40}, no count")
        aside = [parse_skipped(row) for row in found["set_aside"]]
        adjusted = [parse_skipped(row) for row in found.get("adjusted", [])]
        data, plan = dict(found["data"]), str(found.get("plan", ""))
        return cls(codec, embedder, data, splits, found["silent"], aside, plan, where, adjusted=adjusted)

    def save(self, folder: str | Path | Storage) -> None:
        """Write it, whole or not at all; the same contents give the same bytes."""
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
        """Raises InputError, naming what differs, unless a model of this codec and K <= ours can read these shards."""
        wanted = {name: value for name, value in codec.items() if name not in ("codebooks", "dtype", "version")}
        self._check_identity("codec", wanted)
        if codebooks > self.codebooks:
            raise InputError(
                f"the model reads codec.codebooks={codebooks}, and the shards at {self.path} hold {self.codebooks}: "
                f"preprocess again with codec.codebooks={codebooks}, or ask the model for fewer"
            )

    def check_embedder(self, embedder: Mapping[str, Any]) -> None:
        """Raises InputError, naming what differs, unless the prompts are of this embedder."""
        self._check_identity("embedder", embedder)

    def _check_identity(self, part: str, wanted: Mapping[str, Any]) -> None:
        ours = self.codec if part == "codec" else self.embedder
        differ = [name for name, value in wanted.items() if ours.get(name) != value]
        if differ:
            told = ", ".join(f"{part}.{name}={ours.get(name)!r} where {wanted[name]!r} is wanted" for name in differ)
            raise InputError(f"the shards at {self.path} do not fit: they have {told}")


def skipped_row(path: str, key: str, reason: str, retry: bool = False) -> dict[str, Any]:
    """An input that is not in a cache, as JSON; `retry` only where the next run tries it again."""
    return {"path": path, "key": key, "reason": reason, **({"retry": True} if retry else {})}


def parse_skipped(row: Mapping[str, Any]) -> dict[str, Any]:
    """What `skipped_row` gave. Raises KeyError or TypeError for something else."""
    return skipped_row(str(row["path"]), str(row["key"]), str(row["reason"]), row.get("retry") is True)


def _validate_identity(
    identity: Mapping[str, Any], part: str, texts: tuple[str, ...], rates: tuple[str, ...], counts: tuple[str, ...]
) -> None:
    """Raises KeyError, TypeError or ValueError for an identity that no codec or embedder can have."""
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
