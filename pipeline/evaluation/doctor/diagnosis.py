"""The doctor's result: as text of 80 columns, as JSON, and as a page with plots and sounds."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.audio import audio_io
from pipeline.common.console import COLUMNS
from pipeline.data.stats import perplexities
from pipeline.evaluation.doctor.checks import Finding, percent
from pipeline.evaluation.doctor.examination import DecodedClip, Examination, split_of
from pipeline.evaluation.html_templates import AudioRow, LabeledAudio, SectionContent, render, render_report
from pipeline.evaluation.metrics.pitch import TOLERANCE
from pipeline.evaluation.results import write_results
from pipeline.evaluation.svg_plots import Curve, plot

WORST = 10  # clips whose sounds are written
PAGE_SECONDS = 10.0  # of each sound on the page
MAX_VALUES = 6  # of a label that are shown
_BINS = 24


@dataclass(frozen=True)
class Diagnosis:
    """What a dataset has, and what is wrong with it."""

    data: Examination
    findings: Sequence[Finding]

    @property
    def worst(self) -> list[DecodedClip]:
        """The clips that the codec changes most."""
        return self.data.worst(WORST)

    def facts(self) -> dict[str, str]:
        """The facts by title, as texts."""
        data, manifest, codec = self.data, self.data.manifest, self.data.manifest.codec
        kbit = manifest.codebooks * math.log2(codec["codebook_size"]) * manifest.frame_rate / 1000
        facts = {
            name: f"{_hours(manifest.hours(name))}, {manifest.num_samples(name):,} clips" for name in manifest.splits
        }
        channels = " of two channels" if manifest.channels == 2 else ""
        facts["codec"] = f"{codec['name']}, {manifest.codebooks} codebooks{channels}, {kbit:g} kbit/s"
        if len(data.samples) < data.num_clips:
            facts["read"] = f"{len(data.samples):,} of {data.num_clips:,} clips, at random"
        if data.samples:
            facts["lengths"] = _range(data.seconds, "s", (0, 0.5, 1), 2)
            used = ", ".join(f"{value:.0f}" for value in perplexities(data.usage))
            facts["codebooks"] = f"perplexities {used} of {codec['codebook_size']:,}"
        return facts | self._sound_facts() | self._label_facts()

    def _sound_facts(self) -> dict[str, str]:
        data, decoded = self.data, self.data.decoded
        if not decoded:
            return {}
        sounds = [clip.sound for clip in decoded]
        facts = {
            "decoded": f"{len(decoded):,} clips, at random; level to pitch are of these",
            "level": _range([sound.level for sound in sounds], "dBFS", (0.05, 0.5, 0.95), 0),
            "silence": f"{percent(np.mean([sound.silence for sound in sounds]))} of the time",
            "full scale": f"{percent(np.mean([sound.at_full_scale for sound in sounds]), 2)} of the samples",
            "bandwidth": _range([sound.bandwidth / 1000 for sound in sounds], "kHz", (0.1, 0.5, 0.9), 1),
        }
        if len(data.fidelities):
            floor = "" if data.floor is None else f" (to other clips: {data.floor:.2f})"
            facts["fidelity"] = f"{data.fidelities.mean():.2f} to the original, through the codec{floor}"
        if len(data.pitch_errors):
            share = (np.abs(data.pitch_errors) <= TOLERANCE).mean()
            facts["pitch"] = f"{percent(share)} of the notes as labeled, through the codec"
        return facts

    def _label_facts(self) -> dict[str, str]:
        """The most frequent values of each label that has few."""
        texts = {}
        for name, total in self.data.label_totals.items():
            if 1 < len(total) <= max(MAX_VALUES, len(self.data.samples) // 4):
                shown = ", ".join(f"{value} ({count:,})" for value, count in total.most_common(MAX_VALUES))
                more = f" and {len(total) - MAX_VALUES:,} more" if len(total) > MAX_VALUES else ""
                texts[f"label {name}"] = shown + more
        return texts

    def lines(self) -> Iterator[str]:
        """The text, in lines of at most 80 columns."""
        yield self.data.manifest.path
        facts = self.facts()
        column = min(max(map(len, facts)), 24) + 2
        for title, text in facts.items():
            yield from _fill(f"{title:<{column - 1}} {text}", " " * column)
        yield from self.finding_lines()
        for line in self.data.left_out:
            yield from _fill(f"not examined: {line}", "  ")
        if self.worst:
            yield "furthest from the original, through the codec:"
        for clip in self.worst:
            path = clip.sample.metadata.get("path", "")
            yield from _fill(f"  {clip.fidelity:.2f}  {clip.sample.key}  {path}", "        ")

    def finding_lines(self, is_short: bool = False) -> Iterator[str]:
        """The findings, in lines of at most 80 columns. is_short: without advice and clips."""
        yield f"{len(self.findings) or 'no'} finding{'s' * (len(self.findings) != 1)}"
        for number, finding in enumerate(self.findings, 1):
            yield from _fill(f"{number}. {finding.name}: {finding.problem}", "   ")
            if is_short:
                continue
            yield from _fill(f"   -> {finding.advice}", "      ")
            for clip in finding.clips:
                yield from _fill(f"      {clip}", "        ")

    def to_dict(self) -> dict[str, Any]:
        """The content of doctor.json."""
        data, manifest = self.data, self.data.manifest
        return {
            "dataset": manifest.path,
            "codec": manifest.codec,
            "embedder": manifest.embedder,
            "clips": {"all": data.num_clips, "read": len(data.samples), "decoded": len(data.decoded)},
            "splits": {
                split: {"hours": manifest.hours(split), "clips": manifest.num_samples(split)}
                for split in manifest.splits
            },
            "perplexities": perplexities(data.usage).tolist(),
            "labels": data.labels,  # by split
            "twins": [asdict(twin) for twin in data.twins] if data.samples else [],
            "copies": data.num_copies,
            "fidelity": {"ceiling": _mean(data.fidelities), "floor": data.floor},
            "decoded": [_clip_row(clip) for clip in data.decoded],
            "worst": [clip.sample.key for clip in self.worst],
            "findings": [asdict(finding) for finding in self.findings],
            "left_out": data.left_out,
        }

    def write(self, out: Path) -> None:
        """Write doctor.json, doctor.html, and {clip}.codec.wav of the worst clips."""
        write_results(out / "doctor.json", self.to_dict())
        (out / "doctor.html").write_text(self.to_html())
        for clip in self.worst:
            audio_io.write(out / f"{clip.sample.key.replace('/', '_')}.codec.wav", clip.wav, self.data.rate)

    def to_html(self) -> str:
        """The page, with plots and the sounds of the worst clips inside."""
        findings = render("findings.html", findings=self.findings, left_out=self.data.left_out)
        sections = {
            "Findings": SectionContent(html=findings),
            "Distributions": SectionContent(html=render("plots.html", plots=self._plots())),
        }
        if self.worst:
            crop = round(PAGE_SECONDS * self.data.rate)
            sounds = [LabeledAudio(f"{clip.fidelity:.2f} {clip.sample.key}", clip.wav[:crop]) for clip in self.worst]
            text = (
                "What the codec makes of the clips that it changes most; the similarity to the original is before each."
            )
            sections["Furthest from the original"] = SectionContent(text, rows=[AudioRow("", sounds)])
        name = self.data.manifest.path.rstrip("/").rpartition("/")[2]
        return render_report(name, self.facts(), sections, self.data.rate)

    def _plots(self) -> list[Markup]:
        data, sounds = self.data, [clip.sound for clip in self.data.decoded]
        values: dict[tuple[str, str], Sequence[float] | np.ndarray] = {
            ("Length", "seconds"): data.seconds,
            ("Level", "dBFS"): [sound.level for sound in sounds],
            ("Silence", "% of the time"): [100 * sound.silence for sound in sounds],
            ("Bandwidth", "kHz"): [sound.bandwidth / 1000 for sound in sounds],
            ("Similarity to the original, through the codec", "cosine of prompt and embedding"): data.fidelities,
            ("Pitch, through the codec", "semitones from the label"): data.pitch_errors,
        }
        plots = [_histogram(title, x_label, numbers) for (title, x_label), numbers in values.items()]
        usage = [(float(k), float(value)) for k, value in enumerate(perplexities(data.usage), 1)]
        curve = plot("Codebook usage (perplexity)", "codebook", [Curve("", usage)])
        if sounds:
            kilohertz = np.linspace(0, data.rate / 2000, len(data.spectrum))
            points = list(zip(kilohertz[::8].tolist(), data.spectrum[::8].tolist(), strict=True))
            plots.append(plot("Mean spectrum (dB)", "kHz", [Curve("", points)]))
        return [*(figure for figure in plots if figure), curve]


def _histogram(title: str, x_label: str, values: Sequence[float] | np.ndarray) -> Markup | None:
    """The number of clips by value, as steps; None if there is no value."""
    numbers = np.asarray(values, float)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return None
    counts, edges = np.histogram(numbers, _BINS)
    points = [(edges[0], 0.0)]
    for i, count in enumerate(counts.tolist()):
        points += [(edges[i], float(count)), (edges[i + 1], float(count))]
    return plot(f"{title} (clips)", x_label, [Curve("", [*points, (edges[-1], 0.0)])])


def _clip_row(clip: DecodedClip) -> dict[str, Any]:
    """A decoded clip as JSON, which has no NaN."""
    row = {
        "key": clip.sample.key,
        "path": clip.sample.metadata.get("path"),
        "split": split_of(clip.sample),
        **{name: value for name, value in vars(clip.sound).items() if name != "spectrum"},
        "fidelity": clip.fidelity,
        "pitch_error": clip.pitch_error,
    }
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _range(values: Sequence[float] | np.ndarray, unit: str, quantiles: tuple[float, float, float], digits: int) -> str:
    """Three quantiles as text; "-" if no value is a number."""
    numbers = np.asarray(values, float)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return "-"
    low, middle, high = (f"{x:.{digits}f}" for x in np.quantile(numbers, quantiles))
    share = "" if quantiles[0] == 0 else f" ({percent(quantiles[0])} to {percent(quantiles[2])} of the clips)"
    return f"{low} to {high} {unit}, median {middle}{share}"


def _hours(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


def _fill(line: str, indent: str) -> list[str]:
    return textwrap.wrap(line, COLUMNS, subsequent_indent=indent, break_on_hyphens=False)
