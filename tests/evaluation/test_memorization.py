"""Nearest training clips against direct search, and which models count as copying."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.analyses.memorization import Search, copy_threshold, is_copying
from pipeline.evaluation.metrics.base import summarize
from pipeline.evaluation.nearest_clips import CodeSearch, EmbeddingSearch, share_of_equal_codes
from pipeline.evaluation.results import MetricValue
from tests.helpers.trained_run import Workspace, run_command

K = 2


def clips_of(rng: np.random.Generator, n: int, codes: int = 6) -> list[np.ndarray]:
    """Clips of 10 to 20 frames, uint16 [K, U] each."""
    return [rng.integers(0, codes, (K, rng.integers(10, 20)), dtype=np.uint16) for _ in range(n)]


def search(
    sounds: list[np.ndarray], clips: list[np.ndarray], keys: list[str] | None = None, ceiling: float = 2
) -> CodeSearch:
    """A search in clips 0, 1, 2... in blocks of 25."""
    result = CodeSearch(sounds, keys or [], ceiling)
    for first in range(0, len(clips), 25):
        block = clips[first : first + 25]
        result.add([str(first + i) for i in range(len(block))], block)
    return result


def test_share_is_that_of_the_best_shift() -> None:
    """The codes of each shift, counted one by one; a part of a clip is in it completely."""
    rng = np.random.default_rng(0)
    for sound, clip in zip(clips_of(rng, 20), clips_of(rng, 20), strict=True):
        T, U = sound.shape[1], clip.shape[1]
        counts = [
            sum(int((sound[:, t] == clip[:, t + shift]).sum()) for t in range(T) if 0 <= t + shift < U)
            for shift in range(-T, U)
        ]
        assert share_of_equal_codes(sound, clip) == pytest.approx(max(counts) / (K * T))
    assert share_of_equal_codes(clip[:, 3:8], clip) == 1
    assert share_of_equal_codes(clip, clip[:, 3:8]) == pytest.approx(5 / clip.shape[1])


def test_search_by_bounds_equals_comparing_all_clips() -> None:
    rng = np.random.default_rng(1)
    sounds, clips = clips_of(rng, 30), clips_of(rng, 60)
    shares = np.array([[share_of_equal_codes(sound, clip) for clip in clips] for sound in sounds])
    matches = search(sounds, clips).matches
    assert [match.share for match in matches] == pytest.approx(shares.max(1).tolist())
    assert all(shares[i, int(match.key)] == shares[i].max() and match.is_exact for i, match in enumerate(matches))


def test_clip_is_not_compared_with_itself_or_copies() -> None:
    clips = clips_of(np.random.default_rng(2), 20, codes=50)
    twice = [*clips, *clips]
    others = search(clips, clips, [str(i) for i in range(20)]).matches
    assert all(0 < match.share < 0.5 and int(match.key) != i for i, match in enumerate(others))
    copies = search(clips, twice, [str(i) for i in range(20)], ceiling=0.95).matches
    assert all(match.has_copy for match in copies)
    assert [match.share for match in copies] == [match.share for match in others]


def test_too_many_candidates_are_reported() -> None:
    """Clips with the same codes in another order have equal bounds."""
    rng, codes = np.random.default_rng(3), np.arange(40, dtype=np.uint16)
    clips = [rng.permutation(codes)[None] for _ in range(80)]
    result = CodeSearch([codes[None]])
    result.add([str(i) for i in range(80)], clips)
    assert not result.matches[0].is_exact


def test_nearest_embedding_has_the_largest_cosine() -> None:
    rng = np.random.default_rng(4)
    sounds, clips = rng.normal(size=(5, 8)), rng.normal(size=(30, 8)) * rng.uniform(0.1, 9, (30, 1))
    result = EmbeddingSearch(sounds)
    for first in (0, 20):
        result.add([str(i) for i in range(first, 30)[:20]], clips[first : first + 20])
    cosines = (sounds @ clips.T) / np.linalg.norm(sounds, axis=1)[:, None] / np.linalg.norm(clips, axis=1)
    assert (
        result.cosines == pytest.approx(cosines.max(1))
        and [int(key) for key in result.keys] == cosines.argmax(1).tolist()
    )


@pytest.mark.parametrize("repeats", [1, 3])
def test_copies_alarm_and_new_sounds_do_not(repeats: int) -> None:
    """Copies with a tenth of their codes changed, and shifted; also if the corpus has each clip several times."""
    rng = np.random.default_rng(5)
    clips = clips_of(rng, 30, codes=50)
    training, keys = clips * repeats, [str(i) for i in range(30)]
    held_out = search(clips_of(rng, 30, codes=50), training, ceiling=0.95)
    others = search(clips, training, keys, ceiling=0.95)
    threshold = copy_threshold([held_out.shares, others.shares])
    copied = [np.where(rng.random(clip.shape) < 0.1, 49, clip).astype(np.uint16)[:, 1:] for clip in clips]

    def copies(codes: CodeSearch) -> MetricValue:
        return Search(codes).values(threshold, lambda values: summarize(values, 200, 0))["copies"]

    real = copies(held_out)
    assert real.mean < 0.05 and is_copying(copies(search(copied, training)), real)
    assert not is_copying(copies(search(clips_of(rng, 30, codes=50), training)), real)
    few = search([*copied[:1], *clips_of(rng, 29, codes=50)], training)
    assert copies(few).mean > 0 and not is_copying(copies(few), real), "one of 30 may be chance"


def test_evaluate_records_the_nearest_pairs(workspace: Workspace, tmp_path: Path) -> None:
    """Of an untrained model, which copies nothing; prompts from training clips are compared with the other ones too."""
    small = ("n=3", "temperatures=[1]", "resamples=50", "analyses=[memorization]", "pitch=false", f"out={tmp_path}")
    run_command("evaluate", f"run={workspace.run()}", f"shards={workspace.dataset}", "split=train", *small)
    result = json.loads((tmp_path / "evaluate.json").read_text())["analyses"]["memorization"]
    assert [*result["rows"]] == ["temperature 1", "clips of train", "training clips"]
    assert result["details"]["copies"] is False and "Copies of training clips: no" in result["text"]
    assert result["rows"]["clips of train"]["equal codes"] == result["rows"]["training clips"]["equal codes"]
    pairs = result["details"]["pairs"]
    assert len(pairs) == 3 and all((tmp_path / pair["file"]).is_file() for pair in pairs)
    assert [pair["equal_codes"] for pair in pairs] == sorted((pair["equal_codes"] for pair in pairs), reverse=True)
