"""The manifest of a tokenized dataset: its shards, codec, embedder and corpus. Written last, it marks completion."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    Field,
    InstanceOf,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from pipeline.common.errors import InputError, first_problem
from pipeline.common.files import is_intact, with_checksum
from pipeline.data.labels import Vocabularies, dump_vocabularies
from pipeline.data.shard import ShardInfo
from pipeline.data.storage import Storage, open_storage

FORMAT = 1
MANIFEST_NAME = "manifest.json"
_File = TypeVar("_File", bound=BaseModel)
_Rate = Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)]


class _Identity(BaseModel):
    name: StrictStr
    weights: StrictStr
    sample_rate: _Rate


class _CodecIdentity(_Identity):
    frame_rate: _Rate
    codebooks: Annotated[StrictInt, Field(ge=1, le=1024)]
    codebook_size: Annotated[StrictInt, Field(ge=1, le=65_536)]  # codes have 16 bits
    channels: Annotated[StrictInt, Field(ge=1, le=2)] = 1


class _EmbedderIdentity(_Identity):
    dim: Annotated[StrictInt, Field(ge=1, le=1 << 20)]  # a batch fits in memory
    frames: Annotated[StrictInt, Field(ge=1, le=256)] = 1


class _Split(BaseModel):
    shards: list[ShardInfo]
    samples: StrictInt
    frames: StrictInt

    @model_validator(mode="after")
    def _totals_add_up(self) -> _Split:
        totals = (sum(shard.samples for shard in self.shards), sum(shard.frames for shard in self.shards))
        if (self.samples, self.frames) != totals:
            raise ValueError("its totals do not add up")
        return self


class Skipped(BaseModel):
    """What `skipped_row` returns, in a file."""

    path: InstanceOf[str]  # names of files may have surrogates
    key: InstanceOf[str]
    reason: InstanceOf[str]
    retry: StrictBool = False


class _ManifestFile(BaseModel):
    """The content of the file."""

    codec: _CodecIdentity
    embedder: _EmbedderIdentity
    data: dict[str, Any]
    splits: dict[str, _Split]
    silent: StrictInt
    skipped: list[Skipped] = Field(alias="set_aside")
    adjusted: list[Skipped] = []
    labels: Vocabularies = {}
    plan: StrictStr = ""


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
        adjusted: inputs that differ from their files or have no labels, in the form of `skipped`.
        labels: the vocabulary of each label that clips have.
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
    labels: Vocabularies = field(default_factory=dict, kw_only=True)
    path: str = field(default="the dataset", compare=False)

    @property
    def codebooks(self) -> int:
        """Number of streams of codes, K: one for each codebook, or for each codebook and channel."""
        return int(self.codec["codebooks"])

    @property
    def channels(self) -> int:
        """1 for mono, 2 for stereo."""
        return int(self.codec.get("channels", 1))

    @property
    def prompt_dim(self) -> int:
        """Number of values of a prompt vector, D."""
        return int(self.embedder["dim"])

    @property
    def prompt_frames(self) -> int:
        """Number of prompt vectors of a clip, N."""
        return int(self.embedder.get("frames", 1))

    @property
    def frame_rate(self) -> float:
        """Frames per second of audio."""
        rate: float = self.codec["frame_rate"]
        return rate

    @property
    def hop_length(self) -> int:
        """Samples of a frame, at the codec's sample rate."""
        rate: float = self.codec["sample_rate"]
        return round(rate / self.frame_rate)

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
            content, file = read_json(store, MANIFEST_NAME, _ManifestFile, "run pipeline.preprocess again")
        except FileNotFoundError as error:
            advice = "create one with python -m pipeline.preprocess"
            if any(name.endswith(".tar") for name in store.sizes()):
                advice = "its preprocessing has not finished: run it again"
            raise InputError(
                f"there is no dataset at {store.display_path()} ({MANIFEST_NAME} is missing): {advice}"
            ) from error
        splits = {split: part.shards for split, part in file.splits.items()}
        return cls(
            content["codec"], content["embedder"], file.data, splits, file.silent, skipped_rows(file.skipped),
            file.plan, store.display_path(), adjusted=skipped_rows(file.adjusted), labels=file.labels,
        )  # fmt: skip

    def save(self, folder: str | Path | Storage) -> None:
        """Write the manifest atomically. The same contents give the same bytes."""
        splits = {
            split: {
                "shards": [shard.model_dump() for shard in shards],
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
                **({"labels": dump_vocabularies(self.labels)} if self.labels else {}),
                "plan": self.plan,
            }
        )
        with open_storage(folder).open_atomic(MANIFEST_NAME) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")

    def check_codec(self, codec: Mapping[str, Any], codebooks: int) -> None:
        """Check that a model of a codec can read these shards.

        Args:
            codec: the expected identity of the codec; one channel where it names none.
            codebooks: number of streams of codes that the model reads, K.

        Raises:
            InputError: the codec differs, or the shards have fewer codebooks.
        """
        expected = {name: value for name, value in codec.items() if name not in ("codebooks", "dtype", "version")}
        self._check_identity("codec", {"channels": 1, **expected})
        if codebooks > self.codebooks and self.channels > 1:
            raise InputError(
                f"codec.codebooks: {codebooks} streams of codes are expected, but the shards at {self.path} have "
                f"{self.codebooks}; give fewer codebooks, or preprocess again with more"
            )
        if codebooks > self.codebooks:
            raise InputError(
                f"codec.codebooks={codebooks}: the shards at {self.path} have {self.codebooks}; give "
                f"codec.codebooks={self.codebooks} or less, or preprocess again with codec.codebooks={codebooks}"
            )

    def check_embedder(self, embedder: Mapping[str, Any]) -> None:
        """Raise InputError unless the prompt vectors are of this embedder."""
        self._check_identity("embedder", {"frames": 1, **embedder})

    def _check_identity(self, part: str, expected: Mapping[str, Any]) -> None:
        is_codec = part == "codec"
        actual = {"channels": self.channels, **self.codec} if is_codec else {"frames": 1, **self.embedder}
        differ = [name for name, value in expected.items() if actual.get(name) != value]
        if differ:
            differences = ", ".join(
                f"{part}.{name} is {actual.get(name)!r}, expected {expected[name]!r}" for name in differ
            )
            raise InputError(f"the shards at {self.path} do not match: {differences}")


def read_json(store: Storage, name: str, model: type[_File], remedy: str) -> tuple[dict[str, Any], _File]:
    """Read a JSON file of a dataset: its content as it is, and as a model.

    Args:
        store: of the dataset.
        name: of the file.
        model: what the file must contain, besides its format.
        remedy: what to do about a file that cannot be used, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it cannot be read, is damaged or malformed, or has another format.
    """
    path = store.display_path(name)
    try:
        content = json.loads(store.read(name))
        if isinstance(content, dict) and content.get("format") != FORMAT:
            version = f"{content.get('format')!r:.40}"
            raise InputError(f"{path} has format {version}, but this version reads {FORMAT}: {remedy}")
        if isinstance(content, dict) and not is_intact(content):
            raise ValueError("its sha256 differs")
        return content, model.model_validate(content)
    except (FileNotFoundError, InputError):
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give the folder of a dataset") from error
    except ValidationError as error:
        raise InputError(f"{path} is malformed ({first_problem(error):.200}): {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): {remedy}") from error


def skipped_row(path: str, key: str, reason: str, retry: bool = False) -> dict[str, Any]:
    """Return a skipped input as JSON. retry: whether the next run tries it again."""
    return {"path": path, "key": key, "reason": reason, **({"retry": True} if retry else {})}


def skipped_rows(rows: Iterable[Skipped]) -> list[dict[str, Any]]:
    """Return the skipped inputs of a file as `skipped_row` does."""
    return [skipped_row(row.path, row.key, row.reason, row.retry) for row in rows]
