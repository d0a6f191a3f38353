"""N vectors of a clip: means of its features over stretches of equal duration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.audio.embedders import load_embedder
from pipeline.audio.embedders.base import Embedder, pool_frames
from pipeline.common.errors import InputError
from pipeline.data.build_state import BuildPlan
from pipeline.data.manifest import Manifest
from pipeline.data.open_dataset import open_dataset
from pipeline.data.shard import read_shard
from pipeline.data.storage import LocalStorage
from pipeline.data.verify import verify
from tests.helpers.preprocess_runs import make, tones
from tests.preprocessing.test_preprocess import EVERYTHING_TO_TRAIN_ON

RATE, N = 24_000, 3


@given(st.integers(1, 40), st.integers(1, 9))
def test_stretches_are_means_of_equal_duration(frames: int, count: int) -> None:
    """A frame at a border counts in part for both; the mean of all stretches is that of all frames."""
    features = torch.randn(frames, 2)
    pooled = pool_frames(features, count)
    expected = features.repeat_interleave(count, 0).unflatten(0, (count, frames)).mean(1)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pooled.mean(0), features.mean(0), atol=1e-5, rtol=1e-4)


def test_stretches_of_padded_clips_equal_single_clips() -> None:
    """EnCodecMAE: of the true length of each clip, also of several chunks of 4 s."""
    embedder, whole = load_embedder("encodecmae_tiny", frames=N), load_embedder("encodecmae_tiny")
    lengths = torch.tensor([5.3, 4.0, 0.05, 1.2345]).mul(RATE).long()
    wav = torch.randn(len(lengths), int(lengths.max()), generator=torch.Generator().manual_seed(1)) * 0.3
    batch = embedder.embed_frames(wav, lengths)
    assert batch.shape == (len(lengths), N, 192) and embedder.identity == {**whole.identity, "frames": N}
    for row, length, result in zip(wav, lengths.tolist(), batch, strict=True):
        clip = row[None, :length]
        torch.testing.assert_close(result, embedder.embed_frames(clip)[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(result, pool_frames(embedder.features(clip[0]), N), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(batch.mean(1), whole.embed(wav, lengths), atol=1e-5, rtol=1e-4)
    assert torch.equal(whole.embed_frames(wav, lengths)[:, 0], whole.embed(wav, lengths))


def test_embedder_without_features_embeds_each_stretch() -> None:
    class Level(Embedder):
        name, weights, sample_rate, dim, best_batch, frames = "level", "none", 8000, 1, 4, 4

        def embed(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
            assert lengths is not None
            return torch.stack([row[:length].mean(0, keepdim=True) for row, length in zip(wav, lengths, strict=True)])

    wav = torch.arange(8.0)[None].expand(2, -1)
    assert Level().embed_frames(wav, torch.tensor([8, 2]))[..., 0].tolist() == [[0.5, 2.5, 4.5, 6.5], [0, 0, 1, 1]]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, Path]]:
    """A corpus, its dataset with one vector a clip, and that with N."""
    folder = tmp_path_factory.mktemp("frames")
    root = tones(folder / "corpus", 7)
    for name, frames in (("one", 1), ("several", N)):
        assert make("folder", root, folder / name, *EVERYTHING_TO_TRAIN_ON, f"embedder.frames={frames}") == 0
    yield root, folder / "one", folder / "several"


def test_dataset_has_vectors_of_every_stretch(datasets: tuple[Path, Path, Path]) -> None:
    _, one, several = datasets
    manifest = Manifest.load(several)
    assert manifest.embedder == {**Manifest.load(one).embedder, "frames": N} and manifest.prompt_frames == N
    assert [*verify(LocalStorage(several))] == []
    for name in ("train-000000.tar", "train-000001.tar"):
        for sample, single in zip(read_shard(several / name), read_shard(one / name), strict=True):
            assert sample.prompt.shape == (N, 192) and single.prompt.shape == (192,)
            assert np.array_equal(sample.codes, single.codes)
            assert sample.prompt_vectors.mean(0) == pytest.approx(single.prompt_vectors[0], 1e-3, 2e-3)
    batch = next(iter(open_dataset(several).loader(batch_size=4, shuffle=False)))
    assert batch.prompts.shape == (4, N, 192)
    expected = [sample.prompt for sample in read_shard(several / "train-000000.tar")][:4]
    assert np.array_equal(batch.prompts_fp16.numpy(), np.stack(expected))


def test_number_of_vectors_is_part_of_the_identity(datasets: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """One vector is recorded as in older datasets; reembed=true changes the number and keeps the codes."""
    root, one, several = datasets
    plan = BuildPlan.load(LocalStorage(one))
    assert plan and "frames" not in {**plan.requested["embedder"], **plan.resolved["embedder"]}
    with pytest.raises(InputError, match=r"embedder\.frames is 3, expected 1"):
        Manifest.load(several).check_embedder(Manifest.load(one).embedder)
    with pytest.raises(InputError, match=r"embedder\.frames=None \(now 3\).*reembed=true computes new prompts"):
        make("folder", root, one, *EVERYTHING_TO_TRAIN_ON, f"embedder.frames={N}")
    out = tmp_path / "out"
    assert make("folder", root, out, *EVERYTHING_TO_TRAIN_ON) == 0
    assert make("folder", root, out, *EVERYTHING_TO_TRAIN_ON, f"embedder.frames={N}", "reembed=true") == 0
    for path in several.glob("*.tar"):
        assert (out / path.name).read_bytes() == path.read_bytes()
