"""The action `doctor` of pipeline.shards."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console

from pipeline.common.console import print_next
from pipeline.common.errors import InputError
from pipeline.common.files import check_output_folder
from pipeline.common.settings import format_override
from pipeline.data.settings import ShardsSettings
from pipeline.data.storage import LocalStorage, Storage
from pipeline.evaluation.doctor.checks import find_faults
from pipeline.evaluation.doctor.diagnosis import Diagnosis
from pipeline.evaluation.doctor.examination import ExamineOptions, examine


def doctor(store: Storage, settings: ShardsSettings) -> int:
    """Examine a dataset, print what it has and what is wrong, write files, and return the exit code."""
    out = Path(settings.out)
    if settings.out == "auto":
        out = store.root / "doctor" if isinstance(store, LocalStorage) else Path("doctor")
    check_output_folder("out", out)
    with Console(stderr=True).status("examining") as status:
        options = ExamineOptions(
            settings.clips, settings.seed, settings.split, settings.device, settings.codec_weights,
            settings.embedder_weights,
        )  # fmt: skip
        data = examine(store, options, status.update)
        diagnosis = Diagnosis(data, find_faults(data))
    diagnosis.write(out)
    for line in diagnosis.lines():
        print(line)
    print(f"written: {out}/doctor.html, doctor.json" + (", *.codec.wav" if diagnosis.worst else ""))
    print_next(["python", "-m", "pipeline.learning_curve", format_override("shards", store.display_path())])
    return 0


def print_findings(store: Storage, clips: int, codec_weights: str | None, embedder_weights: str | None) -> None:
    """Print what is wrong with a dataset, in a line or two each, and how to see more. clips: that are decoded."""
    try:
        data = examine(store, ExamineOptions(clips, 0, None, "cpu", codec_weights, embedder_weights), lambda _: None)
    except InputError as error:  # the dataset itself is finished
        print(f"not examined: {error}")
        return
    diagnosis = Diagnosis(data, find_faults(data))
    for line in diagnosis.finding_lines(is_short=True):
        print(line)
    if diagnosis.findings:
        print(f"what to do: python -m pipeline.shards doctor {shlex.quote(store.display_path())}")
