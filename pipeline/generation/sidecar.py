"""The .json beside a sound: all that it was made from, and all that makes it again."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import InputError, redact_all
from pipeline.common.files import sha256_file, write_atomic
from pipeline.generation.loaded_run import LoadedRun
from pipeline.generation.request import AudioRequest

log = logging.getLogger("pipeline")
FORMAT = 2
MAX_ROWS = 65_536  # of a batch
_HEX = re.compile("[0-9a-f]*")
UNSTORED_SETTINGS = (
    "run",
    "out",
    "from",
    "device",
    "batch",
    "codec_weights",
    "embedder_weights",
)  # told by `identity`, or no matter


def write(
    piece: AudioRequest,
    instrument: LoadedRun,
    codes: Sequence[Tensor],
    place: Mapping[str, int],
    seconds: float,
    whole: bool,
) -> None:
    """Write {name}.json beside {name}.wav, which has so many seconds.

    codes: [K, T] of each clip; place: rows of the batch, and which was its.
    """
    told = {
        "format": FORMAT,
        "sound": piece.out.name,
        "whole": whole,
        "seconds": seconds,
        **({} if whole else {"frames": [clip.shape[1] for clip in codes]}),
        "codes_sha256": hash_codes(codes),
        "sound_sha256": sha256_file(piece.out),
        "settings": {key: value for key, value in piece.settings.items() if key not in UNSTORED_SETTINGS},
        "sources": [source.to_dict() for source in piece.sources],
        "batch": dict(place),
        "pattern": instrument.model.config.pattern,
        **instrument.identity,
    }
    write_atomic(piece.out.with_suffix(".json"), json.dumps(redact_all(told), indent=1, ensure_ascii=False) + "\n")


def hash_codes(codes: Sequence[Tensor]) -> str:
    """sha256 over codes [K, T] of each clip, as int16."""
    found = hashlib.sha256()
    for clip in codes:
        found.update(clip.to(torch.int16).contiguous().cpu().numpy().tobytes())
    return found.hexdigest()


def read(path: str | Path) -> dict[str, Any]:
    """A sidecar, with its sources where they are now: where it says, seen from its own folder too, or beside it.

    Raises InputError for what is none, and where a source is gone or has changed since.
    """
    path = Path(path)
    if path.suffix != ".json" and path.is_file():
        raise InputError(f"from={path}: give the .json beside the sound: from={path.with_suffix('.json')}")
    try:
        told = json.loads(path.read_text())
        if told["format"] != FORMAT:
            raise InputError(f"from={path}: it has format {told['format']!r}, and this program reads {FORMAT}")
        sources = [(str(source["path"]), str(source["sha256"])) for source in told["sources"]]
        _check_types(told)
    except FileNotFoundError:
        raise InputError(f"from={path}: there is no such file") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"from={path}: not the .json that pipeline.generate writes ({error!r:.200})") from error
    found = {source: str(_source(path, Path(source), sha256).absolute()) for source, sha256 in sources}
    settings = {name: value for name, value in told["settings"].items() if name not in UNSTORED_SETTINGS}
    return {**told, "settings": _moved(settings, found)}


def _source(path: Path, source: Path, sha256: str) -> Path:
    """Where a source is now. Raises InputError where it is not, or is another file."""
    name, changed = str(source).replace("\n", "\\n"), False
    for place in dict.fromkeys((path.parent / source, source, path.parent / source.name)):
        try:
            if place.is_file():
                if sha256_file(place) == sha256:
                    return place
                changed = True
        except OSError as error:
            raise InputError(f"from={path}: {name} cannot be read ({error.strerror})") from error
    if changed:
        raise InputError(f"from={path}: {name} has changed since: put back the file with sha256 {sha256!r:.70}")
    raise InputError(f"from={path}: {name}, which it was made from, is gone: put it back, or beside the .json")


def _moved(settings: Any, found: Mapping[str, str]) -> Any:
    """Settings with the names of sources replaced by where these are."""
    if isinstance(settings, dict):
        return {key: _moved(value, found) for key, value in settings.items()}
    if isinstance(settings, list):
        return [_moved(value, found) for value in settings]
    return found.get(settings, settings) if isinstance(settings, str) else settings


def check_overrides(path: str | Path, typed: Iterable[str]) -> None:
    """Raises InputError where settings were typed that the sidecar tells: it makes that very sound."""
    told = sorted(name for name in typed if name.partition(".")[0] not in (*UNSTORED_SETTINGS, "hydra"))
    if told:
        names = ", ".join(f"{name}=" for name in told)
        raise InputError(
            f"from={path} makes that very sound again, and itself tells {names}: leave out these, or from="
        )


def find_run(path: str | Path, told: Mapping[str, Any]) -> Path:
    """The export that made the sound, as the sidecar in a folder names it. Raises InputError where it is not there."""
    folder = Path(told["export"]["folder"])
    for place in (folder, Path(path).parent / folder):
        if place.is_dir():
            return place
    raise InputError(f"from={path}: it was made by {folder}, which is not there: give run=RUN, where that run is now")


def _check_types(told: Mapping[str, Any]) -> None:
    """Raises KeyError or TypeError where that is missing which regeneration reads, or is something else."""
    texts = (told["settings"]["mode"], told["export"]["folder"], told["export"]["sha256"], told["codes_sha256"])
    rows, row = told["batch"]["rows"], told["batch"]["row"]
    if not all(isinstance(text, str) for text in texts) or not (type(rows) is type(row) is int and 0 <= row < rows):
        raise TypeError(f"{texts} or row {row!r} of {rows!r} is of another kind")
    if rows > MAX_ROWS:
        raise TypeError(f"{rows} rows are more than one batch has")
    if not all(_HEX.fullmatch(text) for text in texts[2:]):
        raise TypeError(f"{texts[2]!r:.70} or {texts[3]!r:.70} is no sha256")
    told["versions"], told["device"]
    if not told.get("whole", True) and "frames" in told:
        kinds = {type(frames) for frames in told["frames"]}
        if kinds != {int} or min(told["frames"]) < 0 or not 0 < float(told["seconds"]) < math.inf:
            raise TypeError(f"{told['frames']!r:.70} frames in {told['seconds']!r:.70} s were not made")


def check_run(path: str | Path, told: Mapping[str, Any], instrument: LoadedRun) -> None:
    """Raises InputError unless the instrument is the one it was made with; other versions are only told."""
    now = instrument.identity
    if told["export"]["sha256"] != now["export"]["sha256"]:
        raise InputError(
            f"from={path}: made with weights of sha256 {told['export']['sha256']}, but {instrument.folder} has "
            f"{now['export']['sha256']}; give run=RUN that has the former"
        )
    for part in ("versions", "device"):
        if told[part] != now[part]:
            log.warning("%s: made with %s %s, now %s; the last bits may differ", path, part, told[part], now[part])
