"""The doctor's checks. Each yields what is wrong with a dataset, and what to do about it.

Thresholds are meant for what a musician or an engineer would want to know, not for what is merely unusual.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.data.stats import labels_of, perplexities
from pipeline.evaluation.doctor.examination import DecodedClip, Examination
from pipeline.evaluation.doctor.sound_facts import find_cliff
from pipeline.evaluation.metrics.pitch import TOLERANCE

MIN_MINUTES = 10.0  # of training clips
MIN_CLIPS = 8  # of a split other than train
SHORT_SECONDS, MAX_SHORT = 0.25, 0.05
MAX_SPREAD = 24.0  # dB between quiet and loud clips
MAX_SILENCE, MAX_SILENT = 1 / 3, 0.02  # of the time, of the clips
CLIPPED, MAX_CLIPPED = 0.002, 0.1  # of a clip's samples, of the clips
MIN_BANDWIDTH = 0.75  # of what the codec can carry
MAX_COPIES = 0.05
MAX_SKIPPED = 0.05
MAX_UNLABELED, MAX_SHARE = 0.02, 0.9  # of the clips
MAX_KINDS = 200  # a label with more values names things, and is not a class
MIN_PERPLEXITY = 0.005  # of the size of a codebook
MIN_GAIN = 0.5  # of the way from the floor to 1
MIN_PITCH = 0.75  # of the clips
_NAMED = 5  # clips of a finding


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a dataset.

    Attributes:
        name: A word for it.
        problem: What is wrong.
        advice: What to do.
        clips: The keys of some of the clips.
    """

    name: str
    problem: str
    advice: str
    clips: Sequence[str] = field(default_factory=list)


def check_size(data: Examination) -> Iterator[Finding]:
    """There is enough sound to train on."""
    minutes = 60 * data.manifest.hours("train")
    if minutes < MIN_MINUTES:
        yield Finding(
            "little sound",
            f"{minutes:.1f} minutes of training clips: a model learns them by heart.",
            "Add recordings, or start from a trained model (finetune.from=RUN).",
        )


def check_splits(data: Examination) -> Iterator[Finding]:
    """Validation has clips."""
    for split in dict.fromkeys(("valid", *data.manifest.splits)):
        clips = data.manifest.num_samples(split)
        if split not in ("train", "test") and clips < MIN_CLIPS:
            yield Finding(
                "few clips",
                f"{split} has {clips} clips: its losses and figures say little.",
                "Preprocess again with a larger fraction, such as data.valid=0.1, or with more recordings.",
            )


def check_skipped(data: Examination) -> Iterator[Finding]:
    """Most inputs are in the dataset."""
    skipped = {row["path"] or row["key"]: row["reason"].partition(":")[0] for row in data.manifest.skipped}
    if len(skipped) > MAX_SKIPPED * (len(skipped) + data.num_clips):
        reason, count = Counter(skipped.values()).most_common(1)[0]
        yield Finding(
            "skipped inputs",
            f"{len(skipped):,} inputs are not in the dataset; the most frequent reason, of {count:,}: {reason}.",
            "manifest.json names each with its reason; correct or convert them, and preprocess again.",
            [*skipped][:_NAMED],
        )


def check_lengths(data: Examination) -> Iterator[Finding]:
    """Few clips are too short to be recognized."""
    short = data.seconds < SHORT_SECONDS
    if short.mean() > MAX_SHORT:
        yield Finding(
            "short clips",
            f"{percent(short.mean())} of the clips are shorter than {SHORT_SECONDS:g} s.",
            "Longer segments (data.segment_seconds, data.min_seconds) give the model something to continue.",
            [data.samples[i].key for i in np.flatnonzero(short)[:_NAMED]],
        )


def check_levels(data: Examination) -> Iterator[Finding]:
    """Quiet and loud clips are not too far apart."""
    levels = np.array([clip.sound.level for clip in data.decoded])
    levels = levels[~np.isnan(levels)]
    if len(levels) < 2:
        return
    low, high = np.quantile(levels, [0.05, 0.95])
    if high - low > MAX_SPREAD:
        yield Finding(
            "loudness",
            f"Levels differ by {high - low:.0f} dB ({low:.0f} to {high:.0f} dBFS), so generated levels will too.",
            "Preprocess with prepare.loudness=-23, unless these dynamics are what the model shall learn.",
            _keys(sorted(data.decoded, key=lambda clip: np.nan_to_num(clip.sound.level, nan=0.0))),
        )


def check_silence(data: Examination) -> Iterator[Finding]:
    """Clips are mostly sound."""
    silent = [clip for clip in data.decoded if clip.sound.silence == 1]
    share = float(np.mean([clip.sound.silence for clip in data.decoded])) if data.decoded else 0.0
    count = data.manifest.silent / max(1, data.num_clips)
    silent_share = max(count, len(silent) / len(data.decoded) if data.decoded else 0.0)
    if share > MAX_SILENCE or silent_share > MAX_SILENT:
        yield Finding(
            "silence",
            f"{percent(silent_share)} of the clips are silent, and {percent(share)} of all time (below -60 dBFS).",
            "Training goes to silence: preprocess with prepare.trim=true, prepare.min_sound=0.3, or shorter segments.",
            _keys(sorted(data.decoded, key=lambda clip: -clip.sound.silence)),
        )


def check_clipping(data: Examination) -> Iterator[Finding]:
    """Few clips reach full scale."""
    clipped = [clip for clip in data.decoded if clip.sound.at_full_scale > CLIPPED]
    if len(clipped) > MAX_CLIPPED * len(data.decoded):
        yield Finding(
            "clipping",
            f"{len(clipped)} of {len(data.decoded)} decoded clips stay at or above full scale.",
            "Listen to them: if they distort, take the recordings from before the limiter, or record at a lower level.",
            _keys(sorted(clipped, key=lambda clip: -clip.sound.at_full_scale)),
        )


def check_bandwidth(data: Examination) -> Iterator[Finding]:
    """Sounds reach the highest frequencies that the codec carries."""
    widths = [clip.sound.bandwidth for clip in data.decoded if clip.sound.bandwidth]
    if not widths:
        return
    width, highest, cliff = float(np.quantile(widths, 0.9)), data.rate / 2, find_cliff(data.spectrum, data.rate)
    end = min(width, cliff or width)
    if end < MIN_BANDWIDTH * highest:
        yield Finding(
            "bandwidth",
            f"Decoded clips end at {end / 1000:.1f} kHz, where the codec carries {highest / 1000:g} kHz: the "
            "recordings have a lower sample rate (those of 16 kHz end at 8), or this codec drops their weak treble.",
            f"Take the originals of {data.rate / 1000:g} kHz or more if there are any; otherwise a codec of a lower "
            "sample rate says the same.",
        )


def check_twins(data: Examination) -> Iterator[Finding]:
    """No clip is in two splits."""
    if data.twins:
        identical, count = sum(twin.similarity == 1 for twin in data.twins), len(data.twins)
        yield Finding(
            "duplicates across splits",
            f"Training has {count:,} clip{'s' * (count > 1)} of other splits too, {identical:,} with the same codes: "
            "validation and evaluation are better than they should be.",
            "Remove the copies, or keep them in one split (prepare.group_copies=true, data.split_by):",
            [f"{twin.key} = {twin.other} ({twin.similarity:.3f})" for twin in data.twins[:_NAMED]],
        )


def check_copies(data: Examination) -> Iterator[Finding]:
    """Few clips of a split are copies of each other."""
    share = data.num_copies / max(1, len(data.samples))
    if share > MAX_COPIES:
        yield Finding(
            "copies",
            f"{percent(share)} of the clips have exactly the codes of another clip of their split.",
            "Remove the copies: they count several times in training. Silent clips are copies of each other, too.",
        )


def check_labels(data: Examination) -> Iterator[Finding]:
    """Labels are complete and balanced, and training has the values of the other splits."""
    train = data.labels.get("train", {})
    for name, total in data.label_totals.items():
        if not 0 < len(total) <= MAX_KINDS:
            continue
        labeled = sum(name in labels_of(sample) for sample in data.samples)
        value, most = total.most_common(1)[0]
        unseen = [value for value in total if value not in train.get(name, {})]
        clips, others = sum(total[value] for value in unseen), total.total() - train.get(name, Counter()).total()
        if labeled < (1 - MAX_UNLABELED) * len(data.samples):
            yield Finding(
                "missing labels",
                f"{len(data.samples) - labeled:,} of {len(data.samples):,} clips have no {name}.",
                "Add them to the table or the names that the labels come from (data.labels and the like).",
            )
        if len(total) > 1 and most > MAX_SHARE * total.total():
            yield Finding(
                "label balance",
                f"{percent(most / total.total())} of {name} is {value}: the model hardly hears the other "
                f"{len(total) - 1:,} values.",
                "Add clips of the others, or leave out some of the most frequent.",
            )
        if 0 < clips < others / 2:  # more, where the splits are made by this label
            yield Finding(
                "unseen labels",
                f"{clips:,} clips of other splits have values of {name} that train does not have: "
                f"{', '.join(map(str, unseen[:_NAMED]))}.",
                "Split by another property (data.split_by), so that training has each value.",
            )


def check_codebooks(data: Examination) -> Iterator[Finding]:
    """Every codebook is used."""
    values = perplexities(data.usage)
    size = data.usage.shape[1]
    weak = [k + 1 for k, value in enumerate(values) if value < max(1.5, MIN_PERPLEXITY * size)]
    if weak:
        yield Finding(
            "codebook usage",
            f"Of {size:,} codes, hardly any are used in codebook {', '.join(map(str, weak))} of {len(values)}.",
            "The sounds are very similar or silent, or the codec does not suit them: listen to the worst clips.",
        )


def check_ceiling(data: Examination) -> Iterator[Finding]:
    """The codec can say what these sounds are."""
    advice = "No model of these codes can do better. Use more codebooks (codec.codebooks) or another codec (codec=)."
    if len(data.fidelities) and data.floor is not None:
        mean = float(data.fidelities.mean())
        if mean - data.floor < MIN_GAIN * (1 - data.floor):
            yield Finding(
                "prompt fidelity",
                f"Sounds through the codec are only {mean:.2f} similar to their originals, where other clips are "
                f"{data.floor:.2f} and equal ones 1.",
                advice,
                _keys(data.worst(_NAMED)),
            )
    errors = data.pitch_errors
    if len(errors) and (share := float((np.abs(errors) <= TOLERANCE).mean())) < MIN_PITCH:
        noted = [clip for clip in data.decoded if clip.pitch_error is not None]
        yield Finding(
            "pitch",
            f"{percent(share)} of the notes still have the pitch of their label after the codec.",
            f"{advice} Labels of the wrong octave, and sounds without a clear pitch, count as well.",
            _keys([clip for clip in noted if not abs(clip.pitch_error or 0.0) <= TOLERANCE]),
        )


def percent(share: float | np.floating, digits: int = 0) -> str:
    """A fraction as a percentage."""
    return f"{100 * share:.{digits}f} %"


def _keys(clips: Sequence[DecodedClip]) -> list[str]:
    return [clip.sample.key for clip in clips[:_NAMED]]


CHECKS: tuple[Callable[[Examination], Iterator[Finding]], ...] = (
    check_size, check_splits, check_skipped, check_lengths, check_levels, check_silence, check_clipping,
    check_bandwidth, check_twins, check_copies, check_labels, check_codebooks, check_ceiling,
)  # fmt: skip


def find_faults(data: Examination) -> list[Finding]:
    """What is wrong with a dataset, in the order of `CHECKS`."""
    if not data.samples:
        return [Finding("no clips", "The dataset has no clips.", "See the skipped inputs in manifest.json.")]
    return [finding for check in CHECKS for finding in check(data)]
