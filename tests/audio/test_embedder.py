"""EnCodecMAE equals a naive implementation, reads the released layouts, and is independent of the batch."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import socket
import subprocess
import sys
import threading
import types
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.audio.embedders import load_embedder
from pipeline.audio.embedders.encodecmae_tiny import TINY
from pipeline.audio.encodecmae.checkpoint import from_state_dict
from pipeline.audio.encodecmae.embedder import EncodecMaeEmbedder
from pipeline.audio.encodecmae.model import KaldiMel, MelConfig
from pipeline.common.errors import InputError
from tests.helpers.preprocess_runs import ROOT
from tests.helpers.untrained_codec import untrained_encodec

RATE = 24_000
DIM, HEADS, HEAD_DIM, FFN, LAYERS = 48, 3, 5, 64, 2  # heads x head_dim is not DIM, as in the large models
GIN = """
NUM_ENCODER_HEADS = 3
NUM_DECODER_HEADS = 7
wav_encoder/models.encoders.Encoder.frame_length = 26.56
x.frame_shift = 13.28
norm_stats = [-6.12, 4.82]
"""


@cache
def encoder(version: int) -> torch.nn.Module:
    return untrained_encodec(seed=version).encoder


def released_state(version: int, mel: bool) -> dict[str, Tensor]:
    """Random weights under the released names: v1 uses EnCodec's features, v2 these or a mel spectrogram."""
    random = torch.Generator().manual_seed(version)

    def weight(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random) * 0.3

    front, inner = ("feat_projector." if version == 1 else "wav_encoder.post_net."), HEADS * HEAD_DIM
    state = {f"{front}weight": weight(DIM, 256 if mel else 128) * 0.1, f"{front}bias": weight(DIM)}
    state["positional_encoder.scale" if version == 1 else "masker.positional_encoder.scale"] = torch.tensor(0.7)
    ffn = {"0.weight": weight(FFN, DIM), "0.bias": weight(FFN), "2.weight": weight(DIM, FFN), "2.bias": weight(DIM)}
    for i in range(LAYERS):
        layer = f"visible_encoder.encoder_layers.{i}."
        state |= {f"{layer}att_layer.{name}.weight": weight(inner, DIM) for name in ("wq", "wk", "wv")}
        state[f"{layer}att_layer.wo.weight"] = weight(DIM, inner)
        state |= {f"{layer}ff_layer.{name}": value for name, value in ffn.items()}
        for norm in ("norm1", "norm2"):
            state |= {f"{layer}{norm}.weight": 1 + weight(DIM), f"{layer}{norm}.bias": weight(DIM)}
    state |= {"visible_encoder.final_norm.weight": 1 + weight(DIM), "visible_encoder.final_norm.bias": weight(DIM)}
    if not mel:
        prefix = "wav_encoder.model." if version == 1 else "wav_encoder.encoder.model."
        state |= {prefix + key: value.clone() for key, value in encoder(version).state_dict().items()}
    return state | {"decoder.unused.weight": weight(2), "head.layers": weight(2)}


def naive(state: dict[str, Tensor], version: int, mel: bool, wav: Tensor) -> Tensor:
    """[S] -> [T, D] as in the paper: one chunk, layer, head and frame at a time."""
    state = {k.replace("feat_projector", "wav_encoder.post_net"): v for k, v in state.items()}
    state = {re.sub("^positional_encoder", "masker.positional_encoder", k): v for k, v in state.items()}
    out = []
    for start in range(0, len(wav), 4 * RATE):
        chunk = wav[start : start + 4 * RATE]
        if version == 2 and len(chunk) <= 2048:
            continue
        x = mel_frames(chunk) if mel else encodec_frames(version, chunk)
        x = x @ state["wav_encoder.post_net.weight"].T + state["wav_encoder.post_net.bias"]
        for t in range(len(x)):
            for i in range(DIM):
                angle = t * 10_000 ** (-(i // 2 * 2) / DIM)
                x[t, i] += state["masker.positional_encoder.scale"] * (math.cos(angle) if i % 2 else math.sin(angle))
        visible = (len(chunk) if version == 1 else min(len(wav), 4 * RATE)) // 320
        out.append(naive_transformer(state, x, visible))
    return torch.cat(out)


def mel_frames(wav: Tensor) -> Tensor:
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi", exc_type=Exception)  # type: ignore[arg-type]  # of another CUDA
    mel = kaldi.fbank(
        wav[None],
        sample_frequency=RATE,
        frame_length=26.56,
        frame_shift=13.28,
        num_mel_bins=256,
        window_type="hanning",
        low_freq=20,
        dither=0.0,
    )
    return (mel + 6.12) / 4.82


def encodec_frames(version: int, wav: Tensor) -> Tensor:
    with torch.no_grad():
        return encoder(version)(wav[None, None])[0].T


def naive_transformer(state: dict[str, Tensor], x: Tensor, visible: int) -> Tensor:
    a, b = x, x
    for i in range(LAYERS):
        layer = {
            k.split(".", 3)[3]: v for k, v in state.items() if k.startswith(f"visible_encoder.encoder_layers.{i}.")
        }
        q, k, v = (a @ layer[f"att_layer.{name}.weight"].T for name in ("wq", "wk", "wv"))
        head_outputs = torch.zeros_like(q)
        for h in range(HEADS):
            own = [d * HEADS + h for d in range(HEAD_DIM)]  # heads are interleaved
            scores = q[:, own] @ k[:, own].T * HEAD_DIM**-0.5
            scores[:, visible:] -= 1e9
            head_outputs[:, own] = scores.softmax(-1) @ v[:, own]
        attended = head_outputs @ layer["att_layer.wo.weight"].T
        a = F.layer_norm(a + attended, (DIM,), layer["norm1.weight"], layer["norm1.bias"])
        hidden = (a @ layer["ff_layer.0.weight"].T + layer["ff_layer.0.bias"]).relu()
        thought = hidden @ layer["ff_layer.2.weight"].T + layer["ff_layer.2.bias"]
        a = F.layer_norm(a + thought, (DIM,), layer["norm2.weight"], layer["norm2.bias"])
        b = b + attended + thought
    final = "visible_encoder.final_norm."
    return a + F.layer_norm(b, (DIM,), state[final + "weight"], state[final + "bias"])


def sound(seconds: float, seed: int = 0) -> Tensor:
    random = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * random.uniform(100, 900) * t) * np.exp(-t % 1.3)
    return torch.from_numpy((0.3 * tone + random.normal(size=len(t)) * 0.01).astype(np.float32))


def save(folder: Path, version: int, mel: bool) -> Path:
    state = released_state(version, mel)
    if version == 1:
        torch.save({"state_dict": state}, folder / "model.pt")
        (folder / "config.gin").write_text(GIN)
        return folder
    torch.save({"state_dict": state, "config": GIN, "imports": ["a", "b"]}, folder / "some.pt")
    return folder / "some.pt"


VARIANTS = pytest.mark.parametrize(
    ("version", "mel"), [(1, False), (2, False), (2, True)], ids=["v1-ec", "v2-ec", "mel"]
)


@VARIANTS
@pytest.mark.parametrize("seconds", [0.3, 3.9999, 4.05, 5.7])
def test_features_equal_naive_implementation(tmp_path: Path, version: int, mel: bool, seconds: float) -> None:
    """From a file in the released layout; 4.05 s has a tail that v2 drops and v1 keeps."""
    embedder = load_embedder("encodecmae_base", str(save(tmp_path, version, mel)))
    wav = sound(seconds)
    expected = naive(released_state(version, mel), version, mel, wav)
    torch.testing.assert_close(embedder.features(wav), expected, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(embedder.embed(wav[None])[0], expected.mean(0), atol=1e-4, rtol=1e-3)
    assert embedder.dim == DIM


@VARIANTS
def test_padded_batch_equals_single_clips(tmp_path: Path, version: int, mel: bool) -> None:
    """Each row is masked by its length and averaged over its frames; padding may have any content."""
    embedder = load_embedder("encodecmae_base", str(save(tmp_path, version, mel)))
    lengths = torch.tensor([5.3, 4.0, 0.05, 1.2345, 4.01]).mul(RATE).long()
    wav = torch.randn(len(lengths), int(lengths.max()), generator=torch.Generator().manual_seed(1)) * 0.3
    for b, length in enumerate(lengths.tolist()):
        wav[b, :length] = sound(length / RATE, seed=b)
    batch = embedder.embed(wav, lengths)
    assert batch.shape == (len(lengths), DIM)
    assert batch.dtype == torch.float32
    for row, length, result in zip(wav, lengths.tolist(), batch, strict=True):
        torch.testing.assert_close(result, embedder.embed(row[None, :length])[0], atol=1e-5, rtol=1e-4)
    assert (batch[0] - batch[1]).abs().max() > 1e-2


@cache
def embedder_of(version: int, mel: bool) -> EncodecMaeEmbedder:
    return EncodecMaeEmbedder("test", from_state_dict(released_state(version, mel), GIN), "random", "cpu")


@settings(max_examples=3)
@given(
    neighbours=st.lists(
        st.tuples(st.sampled_from([math.nan, math.inf, 1e29, 3e38, 1e-42, 0.0]), st.sampled_from([900, 4800, 98_500])),
        min_size=1,
        max_size=3,
    ),
    own=st.sampled_from([700, 3000, 99_000]),
    first=st.booleans(),
)
@VARIANTS
def test_embeddings_are_independent_of_the_batch(
    version: int, mel: bool, neighbours: list[tuple[float, int]], own: int, first: bool
) -> None:
    """Bit for bit, for any other clips and any padding; some clips have two chunks."""
    lengths = [own, *(length for _, length in neighbours)]
    usual = torch.stack([sound(99_000 / RATE, seed) for seed in range(len(lengths))])
    odd = usual.clone()
    odd[0, own:] = math.nan
    for row, (value, length) in zip(odd[1:], neighbours, strict=True):
        row[length // 2 :] = value
    order = list(range(len(lengths))) if first else list(reversed(range(len(lengths))))
    embedder = embedder_of(version, mel)
    expected, result = (embedder.embed(wav[order], torch.tensor(lengths)[order]) for wav in (usual, odd))
    assert torch.equal(result[order.index(0)], expected[order.index(0)]) and result[order.index(0)].isfinite().all()


@VARIANTS
@pytest.mark.parametrize("samples", [1, 100, 700, 2048])
def test_shortest_clips_can_be_embedded(tmp_path: Path, version: int, mel: bool, samples: int) -> None:
    """If the model needs more than 2,048 samples, the clip is padded with silence."""
    embedder = load_embedder("encodecmae_base", str(save(tmp_path, version, mel)))
    wav = sound(1)[:samples]
    result = embedder.embed(wav[None])
    assert result.isfinite().all()
    if version == 2:
        torch.testing.assert_close(result, embedder.embed(F.pad(wav, (0, 2049 - samples))[None]))


@pytest.mark.parametrize("samples", [637, 955, 24_000, 96_000])
def test_filterbank_equals_kaldi(samples: int) -> None:
    wav = sound(4)[:samples]
    mel = KaldiMel(MelConfig())
    result = mel(wav[None])[0]
    assert len(result) == mel.num_frames(samples) == 1 + (samples - 637) // 318
    torch.testing.assert_close(result, mel_frames(wav), atol=2e-4, rtol=1e-4)


def test_autocast_does_not_change_embeddings() -> None:
    embedder = load_embedder("encodecmae_tiny")
    expected = embedder.embed(sound(2)[None])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(embedder.embed(sound(2)[None]), expected, atol=0, rtol=0)


def test_embedded_embedder_separates_pitches() -> None:
    """The same note at another loudness is closer than another note."""
    embedder = load_embedder("encodecmae_tiny")
    t = torch.arange(2 * RATE) / RATE

    def note(hz: float, gain: float) -> Tensor:
        return gain * sum(torch.sin(2 * math.pi * hz * h * t + h) / h for h in range(1, 8)) * torch.exp(-t)

    a, same, other = embedder.embed(torch.stack([note(262, 0.3), note(262, 0.1), note(392, 0.3)]))
    assert F.cosine_similarity(a, same, dim=0) > F.cosine_similarity(a, other, dim=0)
    assert embedder.identity == {
        "name": "encodecmae_tiny",
        "weights": hashlib.sha256(TINY.read_bytes()).hexdigest(),
        "sample_rate": RATE,
        "dim": 192,
    }


def test_identity_depends_on_the_weights(tmp_path: Path) -> None:
    """The same weights from a file or its folder have one identity; v1 and v2 have different ones."""
    first = save(tmp_path, 1, mel=False)
    a, b = load_embedder("encodecmae_base", str(first)), load_embedder("encodecmae_base", str(first / "model.pt"))
    assert a.identity == b.identity
    assert a.identity["weights"] == hashlib.sha256((first / "model.pt").read_bytes()).hexdigest()


def test_invalid_checkpoint_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no tensors")
    torch.save({"state_dict": {"a.weight": torch.zeros(2)}}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    state = released_state(2, mel=True)
    torch.save({"state_dict": {**state}, "config": "NUM_ENCODER_HEADS = 7"}, tmp_path / "heads.pt")
    torch.save({"state_dict": {**state}, "config": GIN + "a.SpectrogramProcessor.b = 1"}, tmp_path / "spec.pt")
    del state["visible_encoder.final_norm.bias"]
    torch.save({"state_dict": state, "config": GIN}, tmp_path / "lacks.pt")
    for name, message in {
        "text.pt": "is damaged or of another model",
        "other.pt": "wq.weight",
        "list.pt": "is damaged or of another model",
        "heads.pt": "15 channels of attention do not split into 7 heads",
        "spec.pt": "linear spectrograms",
        "lacks.pt": "final_norm.bias",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            load_embedder("encodecmae_base", str(tmp_path / name))
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_checkpoint_with_code_is_not_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(InputError, match="tensors only"):
        load_embedder("encodecmae_base", str(tmp_path / "trap.pt"))
    assert not (tmp_path / "sprung").exists()


def test_missing_file_is_named_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://nowhere.invalid")
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    for source, file in [("lpepino/encodecmae-none", "model.pt"), ("lpepino/encodecmae-v2/none.pt", "none.pt")]:
        with pytest.raises(InputError) as caught:
            load_embedder("encodecmae_base", source)
        repo = "/".join(source.split("/")[:2])
        for part in (repo, file, f"hf download {repo} {file}", "embedder.source=PATH", "encodecmae_tiny"):
            assert part in str(caught.value)
    for name, source, message in [
        ("encodecmae_base", str(tmp_path / "gone.pt"), "no such file"),
        ("encodecmae_base", str(tmp_path), "no model.pt"),
        ("encodecmae_tiny", str(tmp_path / "gone"), "cannot be read"),
        ("encodecmae_huge", None, "there is no such embedder"),
    ]:
        with pytest.raises(InputError, match=message):
            load_embedder(name, source)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:{port}", "127.0.0.1:{port}"])
def test_hub_failures_are_one_line_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, endpoint: str) -> None:
    """For example if the hub closes the connection, or its address is invalid; the client then raises other classes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    server.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        hub = {"HF_ENDPOINT": endpoint.format(port=server.getsockname()[1]), "HF_HOME": str(tmp_path)}
        script = "from pipeline.audio.embedders import load_embedder; load_embedder('encodecmae_base', 'owner/name')"
        env = {**os.environ, **hub, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1].startswith(
        "pipeline.common.errors.InputError: embedder.source=owner/name: model.pt"
    )
    with pytest.raises(InputError, match=r"embedder\.source=my models/mae: model\.pt is not in the hub's cache"):
        load_embedder("encodecmae_base", "my models/mae")


def test_hub_cache_is_used_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    file = save(tmp_path, 2, mel=True)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: str(file))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: pytest.fail("went to the network"))
    assert load_embedder("encodecmae_mel256_base_st", "lpepino/encodecmae-v2/mel256-ec-base_st.pt").dim == DIM


@pytest.mark.parametrize("leading", [(), (1,)], ids=["v1", "v2"])
def test_encodecmae_package_embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leading: tuple[int, ...]) -> None:
    """A fake package: v1 returns [T, D] and v2 [1, T, D]."""

    class Model(torch.nn.Linear):
        def extract_features_from_array(self, audio: np.ndarray) -> np.ndarray:
            frames = audio[: len(audio) // 320 * 320].reshape(*leading, -1, 320).mean(-1, keepdims=True)
            return np.concatenate([frames, frames**2], axis=-1)

    package = types.ModuleType("encodecmae")
    package.load_model = lambda name, mode, device: Model(2, 2)
    monkeypatch.setitem(sys.modules, "encodecmae", package)
    embedder = load_embedder("encodecmae_package", "base")
    assert (embedder.dim, embedder.identity["name"]) == (2, "encodecmae_package/base")
    wav = torch.stack([sound(1), sound(1, seed=1)])
    result = embedder.embed(wav, torch.tensor([3200, RATE]))
    torch.testing.assert_close(result[0, 0], wav[0, :3200].mean(), atol=1e-6, rtol=1e-4)
    monkeypatch.setitem(sys.modules, "encodecmae", None)
    with pytest.raises(InputError, match="github.com/habla-liaa/encodecmae"):
        load_embedder("encodecmae_package", "base")
    monkeypatch.delitem(sys.modules, "encodecmae")
    (tmp_path / "encodecmae.py").write_text("raise OSError('libtorchaudio.so: undefined symbol\\nline 2')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"\(libtorchaudio.so: undefined symbol\); install .* built for torch [\d.]+"):
        load_embedder("encodecmae_package", "base")
