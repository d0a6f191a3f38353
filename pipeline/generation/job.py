"""All that one `python -m pipeline.generate` does, from its settings to the lines that it prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.common.errors import InputError
from pipeline.generation import output_paths, sidecar
from pipeline.generation.loaded_run import LoadedRun, limit_threads, load_run
from pipeline.generation.request import AudioRequest, build_requests
from pipeline.generation.runner import generate_files
from pipeline.generation.settings import GenerateSettings
from pipeline.generation.sidecar import Sidecar

CLIPPED_WARNING = 1e-4  # fraction of a sound's samples at full scale above which there is a warning


@dataclass
class GenerationJob:
    """Sounds to generate.

    Attributes:
        run: The run that generates.
        requests: The sounds.
        skipped: Path and reason of each prompt that could not be read.
        original: The sidecar of the sound that is generated again; None for new sounds.
    """

    run: LoadedRun
    requests: Sequence[AudioRequest]
    skipped: Sequence[str]
    original: Sidecar | None
    _has_same_codes: bool = field(default=True, init=False)
    _max_clipped: float = field(default=0.0, init=False)

    @property
    def summary(self) -> str:
        """The number and length of the sounds, in one line."""
        count, seconds = len(self.requests), self.requests[0].total_samples / self.run.codec.sample_rate
        seconds = self.original.seconds if self.original and self.original.frames else seconds
        return f"{count} sound{'s' * (count > 1)} of {seconds:g} s by {self.run.folder} on {self.run.device}"

    def generate(self, on_status: Callable[[str], None]) -> Iterator[str]:
        """Generate the sounds; yields a line for each file that was written."""
        limit_threads(self.run, sum(len(request.clips) for request in self.requests))
        was_interrupted = self.original is not None and self.original.frames is not None
        for file in generate_files(self.run, self.requests, on_status=on_status, original=self.original):
            self._max_clipped = max(self._max_clipped, file.clipped_fraction)
            note = ""
            if self.original is not None:
                self._has_same_codes = file.codes_sha256 == self.original.codes_sha256
                note = "  the same codes" if self._has_same_codes else "  NOT the same codes"
            if not file.is_complete and not was_interrupted:
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


def prepare_job(
    settings: GenerateSettings, overrides: Iterable[str], on_skipped: Callable[[str], None]
) -> GenerationJob:
    """Load the run, read the prompts, and check that the sounds can be generated and written.

    Args:
        settings: Those of the command line.
        overrides: The names of the settings on the command line.
        on_skipped: Gets path and reason of each prompt that cannot be read.

    Raises:
        InputError: A setting, a prompt or the run is unusable.
    """
    original = sidecar.read(settings.source) if settings.source else None
    folder = settings.run
    if original:
        original.check_overrides(overrides)
        settings = original.apply(settings)
        folder = folder or str(original.find_run())
    if folder is None:
        raise InputError("run=RUN: give the run that generates, e.g. run=quickstart/run")
    if settings.stream and settings.mode == "interpolate":
        raise InputError("stream=true: mode=interpolate cannot be streamed; use mode=morph")
    output_paths.check_output(settings.out)
    weights = (settings.codec_weights, settings.embedder_weights)
    run = load_run(folder, settings.device, *weights, settings.batch_invariant)
    if original:
        original.check_run(run)
    skipped: list[str] = []
    requests = build_requests(settings, run, skipped)
    for line in skipped:
        on_skipped(line)
    sources = [source.path for request in requests for source in request.sources]
    output_paths.check_no_overwrite([request.out for request in requests], sources)
    return GenerationJob(run, requests, skipped, original)
