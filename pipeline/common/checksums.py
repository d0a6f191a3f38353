"""Checksums of files and of JSON objects, by which damage is noticed when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHA256 = "sha256"  # the key of a JSON object's own checksum
_CHUNK = 1 << 20


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the sha256 of all its other keys and values added as its last key."""
    rest = {key: value for key, value in content.items() if key != SHA256}
    return {**rest, SHA256: _sha256_json(rest)}


def is_intact(content: Mapping[str, Any]) -> bool:
    """Whether a JSON object matches its own checksum; true where it has none, as those of older versions."""
    return SHA256 not in content or with_checksum(content)[SHA256] == content[SHA256]


def _sha256_json(content: Mapping[str, Any]) -> str:
    normalized = json.loads(json.dumps(content))  # as a reader has it: tuples are lists, keys are strings
    return hashlib.sha256(json.dumps(normalized, sort_keys=True).encode()).hexdigest()
