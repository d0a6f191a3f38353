"""`python -m pipeline.tools.fit_codec` fits the embedded codec's weights."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pipeline.audio.codecs import load_codec
from pipeline.audio.codecs.encodec_embedded import CODEBOOK_SIZE
from pipeline.common.errors import InputError
from pipeline.tools.fit_codec import fit, main, nearest


def test_fitted_codebooks_are_a_working_codec(tmp_path: Path) -> None:
    pytest.importorskip("tinysoundfont")
    main(["--out", str(tmp_path), "--every", "88", "--clips", "30", "--held-out", "4"])
    codec = load_codec("encodec_embedded", 8, weights_dir=tmp_path)
    assert codec.identity["weights"] != load_codec("encodec_embedded", 8).identity["weights"]
    wav = 0.3 * torch.sin(2 * torch.pi * 440 * torch.arange(24_000) / 24_000)[None, None]
    assert codec.decode(codec.encode(wav)).std() > 0.01
    rows = json.loads((tmp_path / "encodec_embedded.json").read_text())
    errors = [row["rms_log_magnitude_error_db"] for row in rows]
    assert [row["codebooks"] for row in rows] == [1, 2, 4, 8]
    assert errors == sorted(errors, reverse=True) and errors[0] < 20


def test_each_codebook_reduces_the_residual() -> None:
    """`nearest` returns the nearest codeword."""
    torch.manual_seed(0)
    frames = torch.randn(4 * CODEBOOK_SIZE, 6)
    books, mean = fit(frames)
    rest = frames - mean.float()
    left = [rest.square().mean()]
    for book in books.float():
        owner = nearest(rest, book)
        distances = torch.cdist(rest[:50], book)
        assert (distances.gather(1, owner[:50, None]).squeeze(1) <= distances.min(1).values + 1e-3).all()
        rest = rest - book[owner]
        left.append(rest.square().mean())
    assert all(after < before for before, after in pairwise(left))
    with pytest.raises(InputError, match="render more notes"):
        fit(frames[:100])
