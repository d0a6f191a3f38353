"""The page of a listening test as a listener without a browser: what it has, and the answers that it would save."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.evaluation.listening.key import ListeningKey, short_hash


def read_page(page: Path) -> dict[str, Any]:
    """The data of the page."""
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    content: dict[str, Any] = json.loads(data)
    return content


def rate(page: Path, listener: str, rating: Callable[[str, str], float]) -> dict[str, Any]:
    """The answers of a listener, whose rating is a function of a clip and of the title of what is rated."""
    data = read_page(page)
    key = ListeningKey.decode(data["key"])
    trials = [
        {"order": [*trial], "ratings": {name: rating(clip, title) for name, title in trial.items()}, "seconds": 9.5}
        for clip, trial in zip(key.clips, key.trials, strict=True)
    ]
    return {
        "format": "listening-test-answers", "version": 1, "page": data["page"], "session": short_hash(listener),
        "seed": 1, "listener": listener, "started": "2026-01-01T10:00:00.000Z", "finished": "2026-01-01T10:09:00.000Z",
        "browser": "none", "trials": trials[::-1], "key": data["key"],
    }  # fmt: skip


def save_answers(folder: Path, *answers: dict[str, Any]) -> None:
    """Save answers as the page names them."""
    folder.mkdir(exist_ok=True)
    for each in answers:
        name = f"listening-test-{each['page'][:8]}-{each['session'][:8]}.json"
        (folder / name).write_text(json.dumps(each))
