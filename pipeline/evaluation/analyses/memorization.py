"""Memorization: whether generated sounds are copies of training clips.

Letters: N sounds, K codebooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from pydantic import BaseModel, JsonValue

from pipeline.data.dataset import ShardedDataset
from pipeline.data.random_clips import sample_clips
from pipeline.data.shard import Sample, stack_prompts
from pipeline.evaluation.analyses import ANALYSES, Analysis, AnalysisInputs, AnalysisResult
from pipeline.evaluation.nearest_clips import CodeSearch, EmbeddingSearch
from pipeline.evaluation.reference_clips import max_frames
from pipeline.evaluation.results import MetricValue, MetricValues, temperature_row

NAME = "memorization"
COPIES, EQUAL_CODES, COSINE = "copies", "equal codes", "nearest cosine"  # columns
CODEBOOKS = 4  # that are compared: the coarsest
QUANTILE = 0.99  # of real clips are less like their nearest training clip than a copy is
IDENTICAL = 0.95  # two real clips with this fraction of codes in common are one sound that the corpus has twice
SOUNDS = 256  # of each temperature, and real clips of each kind, at most
TRAINING_CLIPS = 500_000  # that are searched, at most
PAIRS = 10  # that are recorded
_BLOCK = 1024  # clips


class Pair(BaseModel):
    """A generated sound and the training clips that are nearest to it.

    Attributes:
        file: The sound's file, in the folder of evaluate.json.
        training_clip: The key of the clip with the most equal codes.
        equal_codes: The fraction of the sound's codes that the clip has.
        nearest_embedding: The key of the clip with the most similar embedding.
        cosine: Its similarity.
    """

    file: str
    training_clip: str
    equal_codes: float
    nearest_embedding: str
    cosine: float


@ANALYSES.register(NAME)
class Memorization(Analysis):
    """The fraction of generations that are copies: nearer to a training clip than 99 % of real clips are.

    Real clips are clips of the split, which training did not have, and training clips among each other. Those that the
    corpus has twice do not count: pairs of notes that differ only in their velocity, for example.
    """

    title = NAME
    order = 40

    def measure(self, inputs: AnalysisInputs) -> AnalysisResult:
        """A row for each temperature, and for both kinds of real clips."""
        settings, codebooks = inputs.settings, min(CODEBOOKS, inputs.run.model.config.codebooks)
        searched = min(TRAINING_CLIPS, len(inputs.training))
        inputs.show_status(f"comparing with {searched} training clips")
        generated = _searches_of_generations(inputs, codebooks)
        held_out, training = (_search_of_clips(inputs, split, codebooks) for split in (inputs.split, inputs.training))
        held_out.embeddings = EmbeddingSearch(inputs.reconstructions.embeddings)  # decoded, as generations are
        searches = [*generated.values(), held_out, training]
        samples = sample_clips(
            inputs.training.store, inputs.training.manifest, searched, settings.seed, inputs.training.split
        )
        while block := list(islice(samples, _BLOCK)):
            for search in searches:
                search.add(block, codebooks)
        threshold = copy_threshold([held_out.codes.shares, training.codes.shares])
        rows = {temperature_row(t): search.values(threshold, inputs.summarize) for t, search in generated.items()}
        real = held_out.values(threshold, inputs.summarize)
        copying = [title for title, row in rows.items() if is_copying(row[COPIES], real[COPIES])]
        rows |= {
            f"clips of {settings.split}": real,
            "training clips": training.values(threshold, inputs.summarize),
        }
        exact = np.mean([match.is_exact for search in searches for match in search.codes.matches])
        details: dict[str, JsonValue] = {
            "copies": bool(copying),
            "threshold": threshold,
            "codebooks": codebooks,
            "baseline": settings.baseline,
            "searched": searched,
            "exact": float(exact),
            "pairs": [pair.model_dump() for pair in nearest_pairs(generated.values())],
        }
        return AnalysisResult(
            title=self.title,
            text=_verdict(copying, threshold),
            rows=rows,
            percents=[COPIES, EQUAL_CODES],
            notes=[
                f"{searched} of {len(inputs.training)} clips of {settings.baseline} searched: by embedding exactly, "
                f"by the codes of {codebooks} codebooks at any shift, exactly for {100 * exact:.0f} % of the sounds"
            ],
            details=details,
        )


@dataclass
class Search:
    """The search for the training clips that are nearest to a set of sounds.

    Attributes:
        codes: The search by codes.
        embeddings: The search by embeddings; None: there is none.
        files: The files of the sounds, if they are generations.
    """

    codes: CodeSearch
    embeddings: EmbeddingSearch | None = None
    files: Sequence[str] = ()

    def add(self, clips: Sequence[Sample], codebooks: int) -> None:
        """Compare with a block of clips."""
        keys = [clip.key for clip in clips]
        self.codes.add(keys, [clip.codes[:codebooks] for clip in clips])
        if self.embeddings:
            self.embeddings.add(keys, stack_prompts(clips).mean(1))

    def values(self, threshold: float, summarize: Callable[[np.ndarray], MetricValue]) -> MetricValues:
        """The values of the row of these sounds."""
        is_copy = [match.has_copy or match.share > threshold for match in self.codes.matches]
        values = {COPIES: summarize(np.array(is_copy, float)), EQUAL_CODES: summarize(self.codes.shares)}
        return values | ({COSINE: summarize(self.embeddings.cosines)} if self.embeddings else {})


def copy_threshold(shares: Sequence[np.ndarray]) -> float:
    """The fraction of equal codes above which a sound is a copy: the largest `QUANTILE` of several sets of real clips.

    Args:
        shares: Of the clips of each set and their nearest training clips; without pairs of identical clips.
    """
    return max(float(np.quantile(each, QUANTILE)) for each in shares)


def is_copying(copies: MetricValue, real: MetricValue) -> bool:
    """Whether surely more generations are copies than clips are that training did not have, and than chance allows.

    Args:
        copies: The fraction of copies among generations.
        real: That among clips of the split.
    """
    assert copies.interval is not None
    return copies.interval[0] > max(1 - QUANTILE, real.mean)


def nearest_pairs(searches: Iterable[Search]) -> list[Pair]:
    """The generations with the most equal codes, in descending order, with their nearest clips."""
    pairs = [
        Pair(
            file=file,
            training_clip=match.key,
            equal_codes=match.share,
            nearest_embedding=search.embeddings.keys[i],
            cosine=float(search.embeddings.cosines[i]),
        )
        for search in searches
        if search.embeddings
        for i, (file, match) in enumerate(zip(search.files, search.codes.matches, strict=True))
    ]
    return sorted(pairs, key=lambda pair: -pair.equal_codes)[:PAIRS]


def _searches_of_generations(inputs: AnalysisInputs, codebooks: int) -> dict[float, Search]:
    """A search for each temperature, of at most `SOUNDS` random sounds."""
    n = len(inputs.clips)
    chosen = np.sort(np.random.default_rng(inputs.settings.seed).permutation(n)[:SOUNDS]).tolist()
    return {
        temperature: Search(
            CodeSearch([sounds.codes[i][:codebooks].numpy() for i in chosen]),
            EmbeddingSearch(sounds.embeddings[chosen]),
            [sounds.file_name(inputs.clips[i]) for i in chosen],
        )
        for temperature, sounds in inputs.generations.items()
    }


def _search_of_clips(inputs: AnalysisInputs, split: ShardedDataset, codebooks: int) -> Search:
    """The search of real clips, as long as generations are, for other clips that are not identical."""
    clips = list(sample_clips(split.store, split.manifest, SOUNDS, inputs.settings.seed, split.split))
    frames = max_frames(inputs.run)
    codes = [clip.codes[:codebooks, :frames] for clip in clips]
    return Search(CodeSearch(codes, [clip.key for clip in clips], IDENTICAL))


def _verdict(copying: Sequence[str], threshold: float) -> str:
    answer = f"yes, at {', '.join(copying)}" if copying else "no"
    return (
        f"Copies of training clips: {answer}. A copy has more than {100 * threshold:.0f} % of its codes in common with "
        f"one training clip, which {100 * QUANTILE:.0f} % of real clips do not."
    )
