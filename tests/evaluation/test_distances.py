"""Distances in several spaces, and outliers, against published tools and direct computation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.audio import audio_io
from pipeline.audio.codecs.base import Codec
from pipeline.audio.embedders import load_embedder
from pipeline.common.errors import InputError
from pipeline.common.paths import ASSETS
from pipeline.data.dataset import ShardedDataset
from pipeline.data.manifest import Manifest
from pipeline.data.random_clips import sample_clips
from pipeline.data.storage import open_storage
from pipeline.evaluation.analyses.distances import FittedReference
from pipeline.evaluation.metrics.kernel_distance import FittedKernel
from pipeline.evaluation.outliers import OutlierDetector
from pipeline.evaluation.spaces import CodecSpace, CodedSounds, open_spaces
from pipeline.generation.loaded_run import LoadedRun, load_run
from pipeline.generation.prompts import decode_codes
from tests.helpers.clap_folder import DIM, write_clap
from tests.helpers.trained_run import Workspace, run_command


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clap(tmp_path_factory.mktemp("clap"))


@pytest.fixture(scope="module")
def run(workspace: Workspace) -> LoadedRun:
    return load_run(workspace.run(), "cpu")


@pytest.fixture(scope="module")
def reference(workspace: Workspace, run: LoadedRun) -> CodedSounds:
    """The clips of the training split: there are more than in the others."""
    return CodedSounds.of_split(ShardedDataset(workspace.dataset, "train", run.model.config.codebooks), 20)


@pytest.mark.parametrize(
    ("m", "D", "published"),
    [
        (63, 12, [0.6151911638478823, 0.6396463945683747, 0.6070264270126489]),
        (301, 64, [0.6073650635159017, 0.5351611944871806, 0.5566150951479446]),
        (40, 192, [2.330175434642483, 2.332209656485322, 2.316667371410054]),
    ],
)
def test_mahalanobis_distances_match_scikit_learn(m: int, D: int, published: list[float]) -> None:
    """Of LedoitWolf in version 1.9.1: the square roots of its `mahalanobis`; the last reference has no full rank."""
    r = np.random.default_rng(D)
    a, b = r.normal(size=(3, D)) @ r.normal(size=(D, D)) / D**0.5, r.normal(size=(m, D)) * np.arange(1, D + 1) + 0.3
    assert OutlierDetector.fit(b).distances(a) == pytest.approx(published, rel=1e-6)


def test_one_percent_of_real_clips_are_outliers() -> None:
    """Also where the reference has not many more clips than dimensions, and clips far from it always are."""
    shares = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        detector = OutlierDetector.calibrate(rng.normal(size=(400, 50)), seed)
        assert detector.threshold is not None
        shares.append((detector.distances(rng.normal(size=(500, 50))) > detector.threshold).mean())
        assert (detector.distances(rng.normal(size=(9, 50)) + 3) > detector.threshold).all()
    assert np.mean(shares) == pytest.approx(0.01, abs=0.005)
    assert OutlierDetector.calibrate(np.random.default_rng(0).normal(size=(90, 4)), 0).threshold is None


def test_real_clips_are_near_real_clips() -> None:
    """KAD is unbiased and FAD is not, so the second shows what is reached with this many sounds."""
    vectors = np.random.default_rng(0).normal(size=(300, 16))
    fitted = FittedReference.fit(vectors)
    within, far = fitted.distances_within(40, 0), fitted.distances(vectors[:40] + 1)
    assert {*within} == {*far} == {"FAD", "FAD-inf", "KAD"}
    assert 0 < within["FAD"] < 0.3 * far["FAD"] and abs(within["FAD-inf"]) < 0.5 * within["FAD"]
    assert abs(within["KAD"]) < 0.1 * far["KAD"]
    assert fitted.distances_within(151, 0) == {} and {*fitted.distances_within(9, 0)} == {"FAD", "KAD"}


def test_kernel_without_rows_is_that_of_the_other_rows() -> None:
    vectors, sounds = (np.random.default_rng(seed).normal(size=(60, 5)) for seed in (0, 1))
    part = FittedKernel.fit(vectors).without(np.arange(7, 20))
    rest = np.delete(vectors, np.arange(7, 20), axis=0)
    squares = np.square(rest[:, None] - rest).sum(-1)
    assert part.mean == pytest.approx(np.exp(-part.gamma * squares)[~np.eye(47, dtype=bool)].mean())
    assert part.distance(sounds) == pytest.approx(FittedKernel.fit(rest).distance(sounds), rel=0.1)


def test_codec_space_sums_the_vectors_of_codebooks(run: LoadedRun, reference: CodedSounds) -> None:
    tables = load_file(ASSETS / "encodec_embedded.safetensors")["codebooks"].float()
    vectors = CodecSpace(run.codec).embed(reference)
    for codes, vector in zip(reference.codes, vectors, strict=True):
        assert codes.shape == (2, 20)
        frames = sum(table[row.long()] for table, row in zip(tables, codes, strict=False))
        assert vector == pytest.approx(frames.mean(0).numpy(), abs=1e-5)


def test_codec_space_groups_sounds_by_length(run: LoadedRun, reference: CodedSounds) -> None:
    cut = [codes[:, : 5 + 3 * (i % 3)] for i, codes in enumerate(reference.codes)]
    space = CodecSpace(run.codec)
    single = [space.embed(CodedSounds([codes], reference.prompts[:1]))[0] for codes in cut]
    assert space.embed(CodedSounds(cut, reference.prompts)) == pytest.approx(np.stack(single), abs=1e-6)


def test_embedder_space_hears_reconstructions(run: LoadedRun, reference: CodedSounds, clap: Path) -> None:
    """Distances are those of fadtk's and kadtk's formulae in any space; see `test_metrics`."""
    prompt, other = open_spaces(["prompt", {"clap": str(clap)}], run)
    assert prompt.embed(reference) is reference.prompts and prompt.identity == run.embedder.identity
    drawn = reference.draw(3, 0)
    embedder, wavs = load_embedder("clap", str(clap)), decode_codes(run.codec, drawn.codes)
    wavs = [audio_io.resample(wav, run.codec.sample_rate, embedder.sample_rate) for wav in wavs]
    expected = [embedder.embed(torch.from_numpy(wav)[None])[0] for wav in wavs]
    assert other.embed(drawn) == pytest.approx(torch.stack(expected).numpy(), abs=2e-3)
    assert other.identity == embedder.identity and other.identity["dim"] == DIM and not other.is_cheap


def test_codec_without_latents_has_no_space(run: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(run.codec), "dequantize", Codec.dequantize)
    assert [space.name for space in open_spaces(["codec", "prompt"], run)] == ["prompt"]


def test_evaluation_names_reference_and_outliers(
    workspace: Workspace, clap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In all spaces; the figures of the embedder's space are the metrics' own."""
    small = ("split=train", "n=4", "temperatures=[0,0.7]", "resamples=20", "pitch=false", "embedded_clips=5")
    spaces = f"spaces=[prompt,codec,{{clap: {clap}}}]"
    run_command("evaluate", f"run={workspace.run()}", f"shards={workspace.dataset}", f"out={tmp_path}", *small, spaces)
    results = json.loads((tmp_path / "evaluate.json").read_text())
    distances, printed = results["analyses"]["distances"], capsys.readouterr().out
    rows, details = distances["rows"], distances["details"]
    columns = {f"{space} {kind}" for space in ("prompt", "codec", "clap") for kind in ("FAD", "KAD")}
    metrics = {"temperature 0.7": results["temperatures"]["0.7"], "ceiling (codec)": results["ceiling"]}
    for row, values in metrics.items():
        assert rows[row]["prompt FAD"] == values["distance"] and rows[row]["prompt KAD"] == values["kernel_distance"]
        assert {*rows[row]} == columns
    assert {*rows} == {"temperature 0", "temperature 0.7", "ceiling (codec)", "training clips", "clips of the split"}
    sizes = {name: [*space["reference"].values()] for name, space in details["spaces"].items()}
    assert sizes == {"prompt": ["train", 19, 7.6], "codec": ["train", 19, 7.6], "clap": ["train", 5, 2.0]}
    assert details["sets"]["training clips"] == {"n": 4, "seconds": 1.6}
    for name, space in details["spaces"].items():
        assert f"{name}: {space['embedding']['name']} {space['embedding']['weights'][:8]}" in printed
        for far in space["farthest"].values():
            assert len(far) == 4 and all((tmp_path / each["file"]).is_file() for each in far)
            assert [each["distance"] for each in far] == sorted((each["distance"] for each in far), reverse=True)
    assert details["spaces"]["prompt"]["embedding"] == results["distance"]["embedding"]
    fad = frechet_by_eigenvalues(codec_vectors(workspace, 4), codec_vectors(workspace, 19))
    assert rows["ceiling (codec)"]["codec FAD"]["mean"] == pytest.approx(fad, rel=1e-4)


def codec_vectors(workspace: Workspace, n: int) -> np.ndarray:
    """The mean over frames of the sums of codebook vectors, of n clips of the training split."""
    books = load_file(ASSETS / "encodec_embedded.safetensors")["codebooks"].double().numpy()
    clips = sample_clips(open_storage(workspace.dataset), Manifest.load(workspace.dataset), n, 0, "train")
    return np.stack([(books[0][clip.codes[0]] + books[1][clip.codes[1]]).mean(0) for clip in clips])


def frechet_by_eigenvalues(a: np.ndarray, b: np.ndarray) -> float:
    """As published: with the eigenvalues of the product of the covariances."""
    A, B = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(A @ B).real.clip(min=0))
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(A + B) - 2 * roots.sum())


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ("[prompt,clop]", "spaces=clop: there is no such space; did you mean 'clap'"),
        ("[prompt,{codec: x},codec]", "spaces=codec: it is named twice"),
        ("[{codec: x}]", "spaces={codec: x}: codec has no other weights than the model's"),
        ("[{clap: ./none}]", r"spaces=clap: .*\./none: no such folder.*{clap: FOLDER}"),
    ],
)
def test_wrong_spaces_are_refused(workspace: Workspace, tmp_path: Path, spaces: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_command(
            "evaluate", f"run={workspace.run()}", f"shards={workspace.dataset}", f"out={tmp_path}", f"spaces={spaces}"
        )
    assert not list(tmp_path.iterdir()), "refused before the work"
