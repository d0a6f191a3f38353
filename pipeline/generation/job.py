"""All that one `python -m pipeline.generate` does, from its settings to the lines that it prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.common.errors import InputError
from pipeline.generation import output_paths, sidecar
from pipeline.generation.loaded_run import LoadedRun, limit_threads, load_run
from pipeline.generation.request import (
    AudioRequest,
    SlidingWindow,
    build_requests,
    num_samples,
    resolve_window,
)
from pipeline.generation.runner import GeneratedFile, generate_files, stream_files
from pipeline.generation.settings import SamplingSettings, sampling_settings

CLIPPED_WARNING = 1e-4  # fraction of a sound's samples at full scale above which there is a warning


@dataclass
class GenerationJob:
    """Sounds to generate.

    Attributes:
        settings: Those of conf/generate.yaml, or of a sidecar.
        run: The run that generates.
        requests: The sounds.
        skipped: Path and reason of each prompt that could not be read.
        sampling: How tokens are sampled.
        window: The sliding window for sounds longer than the training clips.
        batch: The number of clips to generate at once.
        original: The sidecar of the sound that is generated again; None for new sounds.
    """

    settings: Mapping[str, Any]
    run: LoadedRun
    requests: Sequence[AudioRequest]
    skipped: Sequence[str]
    sampling: SamplingSettings
    window: SlidingWindow | None
    batch: int
    original: Mapping[str, Any] | None
    _has_same_codes: bool = field(default=True, init=False)
    _max_clipped: float = field(default=0.0, init=False)

    @property
    def summary(self) -> str:
        """The number and length of the sounds, in one line."""
        count, seconds = len(self.requests), self.requests[0].total_samples / self.run.codec.sample_rate
        seconds = self.original["seconds"] if self.original and self._was_interrupted else seconds
        return f"{count} sound{'s' * (count > 1)} of {seconds:g} s by {self.run.folder} on {self.run.device}"

    def generate(self, on_status: Callable[[str], None]) -> Iterator[str]:
        """Generate the sounds; yields a line for each file that was written."""
        for file in self._files(on_status):
            self._max_clipped = max(self._max_clipped, file.clipped_fraction)
            note = ""
            if self.original is not None:
                self._has_same_codes = file.codes_sha256 == self.original["codes_sha256"]
                note = "  the same codes" if self._has_same_codes else "  NOT the same codes"
            if not file.is_complete and not self._was_interrupted:
                note = "  incomplete: interrupted"
            yield f"{file.path}  {file.seconds:.3f} s{note}"

    def problems(self) -> Iterator[str]:
        """Warnings and errors after the generation, a line each."""
        if self._max_clipped >= CLIPPED_WARNING:
            yield f"warning: up to {self._max_clipped:.2%} of a sound's samples are at full scale and clipped"
        if self.skipped:
            yield f"error: {len(self.skipped)} prompts could not be read and were skipped: see above"

    @property
    def exit_code(self) -> int:
        """0 for success, 1 if prompts were skipped or the codes differ from those of the original sound."""
        return 0 if self._has_same_codes and not self.skipped else 1

    @property
    def _was_interrupted(self) -> bool:
        """Whether the original sound is incomplete, and is generated again as far as it got."""
        return bool(self.original and self.original.get("frames"))

    def _files(self, on_status: Callable[[str], None]) -> Iterator[GeneratedFile]:
        limit_threads(self.run, sum(len(request.clips) for request in self.requests))
        original = self.original or {}
        if self.settings["stream"]:
            stop_seconds = original["seconds"] if self._was_interrupted else None
            return stream_files(
                self.run, self.requests, self.sampling, self.window, self.settings["chunk"], stop_seconds
            )
        return generate_files(
            self.run, self.requests, self.sampling, self.window, self.batch, on_status, original.get("batch"),
            stop_frames=original.get("frames") or None,
        )  # fmt: skip


def prepare_job(settings: dict[str, Any], overrides: Iterable[str], on_skipped: Callable[[str], None]) -> GenerationJob:
    """Load the run, read the prompts, and check that the sounds can be generated and written.

    Args:
        settings: Those of conf/generate.yaml, as composed for the command line.
        overrides: The names of the settings on the command line.
        on_skipped: Gets path and reason of each prompt that cannot be read.

    Raises:
        InputError: A setting, a prompt or the run is unusable.
    """
    path = settings["from"]
    original = sidecar.read(path) if path else None
    if original:
        sidecar.check_overrides(path, overrides)
        settings = settings | original["settings"]
    elif settings["run"] is None:
        raise InputError("run=RUN: give the run that generates, e.g. run=quickstart/run")
    output_paths.check_output(settings["out"])
    folder = settings["run"] or sidecar.find_run(path, original or {})
    weights = (settings["codec_weights"], settings["embedder_weights"])
    run = load_run(folder, settings["device"], *weights, settings["batch_invariant"])
    if original:
        sidecar.check_run(path, original, run)
    sampling, frames = sampling_settings(**settings["sampling"]), run.codec.num_frames(num_samples(settings, run))
    skipped: list[str] = []
    window, requests = resolve_window(settings, frames, run), build_requests(settings, run, skipped)
    for line in skipped:
        on_skipped(line)
    sources = [source.path for request in requests for source in request.sources]
    output_paths.check_no_overwrite([request.out for request in requests], sources)
    batch = run.best_batch(window.frames if window else frames) if settings["batch"] == "auto" else settings["batch"]
    return GenerationJob(settings, run, requests, skipped, sampling, window, batch, original)
