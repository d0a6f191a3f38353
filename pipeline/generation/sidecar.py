"""The sidecar: a .json file next to each generated sound, with everything that is needed to generate it again.

format, sound, sound_sha256          version of this layout; the file's name and sha256
seconds, complete, frames            its length; false and the frames of each clip if generation was interrupted
settings, sources                    settings as in conf/generate.yaml; path and sha256 of the prompts
batch                                size of the batch, and the row of the sound's first clip
codes_sha256                         hash of the codes
pattern, export, codec, embedder, versions, device
"""

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
# settings that a sidecar does not store: given by the run's identity, or without influence on the sound
UNSTORED_SETTINGS = ("run", "out", "from", "device", "batch", "codec_weights", "embedder_weights")
_HEX = re.compile("[0-9a-f]*")


def write(
    request: AudioRequest,
    run: LoadedRun,
    codes: Sequence[Tensor],
    batch_slot: Mapping[str, int],
    seconds: float,
    is_complete: bool,
) -> None:
    """Write {name}.json next to {name}.wav.

    Args:
        request: The request of the sound, which is written already.
        run: The run that generated it.
        codes: [K, T] of each clip.
        batch_slot: The size of the batch ("rows"), and the row of the first clip ("row").
        seconds: The length of the sound.
        is_complete: False if the generation was interrupted.
    """
    content = {
        "format": FORMAT,
        "sound": request.out.name,
        "complete": is_complete,
        "seconds": seconds,
        **({} if is_complete else {"frames": [clip.shape[1] for clip in codes]}),
        "codes_sha256": hash_codes(codes),
        "sound_sha256": sha256_file(request.out),
        "settings": {key: value for key, value in request.settings.items() if key not in UNSTORED_SETTINGS},
        "sources": [source.to_dict() for source in request.sources],
        "batch": dict(batch_slot),
        "pattern": run.model.config.pattern,
        **run.identity,
    }
    text = json.dumps(redact_all(content), indent=1, ensure_ascii=False) + "\n"
    write_atomic(request.out.with_suffix(".json"), text)


def hash_codes(codes: Sequence[Tensor]) -> str:
    """The sha256 of the codes [K, T] of all clips, as int16."""
    digest = hashlib.sha256()
    for clip in codes:
        digest.update(clip.to(torch.int16).contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def read(path: str | Path) -> dict[str, Any]:
    """Read a sidecar, and replace the paths of its sources by their current paths.

    A source is looked for at its stored path, which may be relative to the sidecar's folder, and next to the sidecar.

    Raises:
        InputError: The file is not a valid sidecar, or a source is missing or has changed.
    """
    path = Path(path)
    if path.suffix != ".json" and path.is_file():
        raise InputError(f"from={path}: give the .json file next to the sound: from={path.with_suffix('.json')}")
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise InputError(
                f"from={path}: it has format {content['format']!r:.20}, but this version reads format {FORMAT}: "
                "generate the sound again from its settings"
            )
        sources = [(str(source["path"]), str(source["sha256"])) for source in content["sources"]]
        _check_content(content)
    except FileNotFoundError:
        raise InputError(f"from={path}: there is no such file") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"from={path}: not a .json file of pipeline.generate ({error!r:.200})") from error
    current_paths = {source: str(_find_source(path, Path(source), sha256).absolute()) for source, sha256 in sources}
    settings = {name: value for name, value in content["settings"].items() if name not in UNSTORED_SETTINGS}
    return {**content, "settings": _replace_paths(settings, current_paths)}


def _find_source(path: Path, source: Path, sha256: str) -> Path:
    """The current path of a source. Raises InputError if it is missing or has changed."""
    name, has_changed = str(source).replace("\n", "\\n"), False
    for candidate in dict.fromkeys((path.parent / source, source, path.parent / source.name)):
        try:
            if candidate.is_file():
                if sha256_file(candidate) == sha256:
                    return candidate
                has_changed = True
        except OSError as error:
            raise InputError(f"from={path}: {name} cannot be read ({error.strerror})") from error
    if has_changed:
        raise InputError(f"from={path}: {name} has changed: restore the file with sha256 {sha256!r:.70}")
    raise InputError(f"from={path}: its source {name} is missing: restore it, or copy it next to the .json file")


def _replace_paths(settings: Any, current_paths: Mapping[str, str]) -> Any:
    """Settings with the paths of sources replaced by their current paths."""
    if isinstance(settings, dict):
        return {key: _replace_paths(value, current_paths) for key, value in settings.items()}
    if isinstance(settings, list):
        return [_replace_paths(value, current_paths) for value in settings]
    return current_paths.get(settings, settings) if isinstance(settings, str) else settings


def check_overrides(path: str | Path, overrides: Iterable[str]) -> None:
    """Raises InputError if a setting on the command line is one that the sidecar already determines.

    Args:
        path: The sidecar.
        overrides: The names of the settings on the command line.
    """
    conflicts = sorted(name for name in overrides if name.partition(".")[0] not in (*UNSTORED_SETTINGS, "hydra"))
    if conflicts:
        names = ", ".join(f"{name}=" for name in conflicts)
        raise InputError(f"from={path} generates exactly that sound, with its own {names}: omit these, or omit from=")


def find_run(path: str | Path, content: Mapping[str, Any]) -> Path:
    """The export's folder that a sidecar names, also relative to the sidecar. Raises InputError if it is missing."""
    folder = Path(content["export"]["folder"])
    for candidate in (folder, Path(path).parent / folder):
        if candidate.is_dir():
            return candidate
    raise InputError(f"from={path}: it was generated by {folder}, which does not exist: give run=RUN")


def _check_content(content: Mapping[str, Any]) -> None:
    """Raises KeyError or TypeError if a value that regeneration reads is missing or has the wrong type."""
    export, rows, row = content["export"], content["batch"]["rows"], content["batch"]["row"]
    texts = (content["settings"]["mode"], export["folder"], export["sha256"], content["codes_sha256"])
    if not all(isinstance(text, str) for text in texts) or not (type(rows) is type(row) is int and 0 <= row < rows):
        raise TypeError(f"{texts} or row {row!r} of {rows!r} has a wrong type")
    if rows > MAX_ROWS:
        raise TypeError(f"a batch of {rows} rows is too large")
    if not all(_HEX.fullmatch(text) for text in texts[2:]):
        raise TypeError(f"{texts[2]!r:.70} or {texts[3]!r:.70} is not a sha256")
    content["versions"], content["device"]
    if not content.get("complete", True) and "frames" in content:
        types = {type(frames) for frames in content["frames"]}
        if types != {int} or min(content["frames"]) < 0 or not 0 < float(content["seconds"]) < math.inf:
            raise TypeError(f"{content['frames']!r:.70} frames in {content['seconds']!r:.70} s is impossible")


def check_run(path: str | Path, content: Mapping[str, Any], run: LoadedRun) -> None:
    """Raises InputError unless this run generated the sound; other versions or another device are only logged."""
    identity = run.identity
    if content["export"]["sha256"] != identity["export"]["sha256"]:
        raise InputError(
            f"from={path}: generated with weights of sha256 {content['export']['sha256']}, but {run.folder} has "
            f"{identity['export']['sha256']}; give the run=RUN with the former"
        )
    for part in ("versions", "device"):
        if content[part] != identity[part]:
            log.warning(
                "%s: generated with %s %s, now %s; the last bits may differ", path, part, content[part], identity[part]
            )
