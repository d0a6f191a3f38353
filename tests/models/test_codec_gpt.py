"""Inputs, targets and loss of the model, its files, and GPT-2's pretrained weights."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from pipeline.common.errors import InputError
from pipeline.generation.engine import InferenceEngine
from pipeline.models.codec_gpt import CodecGPT, GPT2Config, GPT2Model
from pipeline.models.pattern import SPECIAL_TOKEN
from pipeline.models.patterns import PATTERNS
from pipeline.models.pretrained_gpt2 import build_model
from tests.helpers.models import TINY, step_logits, tiny, tiny_config, train_on_clips


def codes(B: int, T: int, K: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 1024, (B, K, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PATTERNS.names())
def test_initial_loss_is_ln_of_the_number_of_classes(name: str) -> None:
    torch.manual_seed(0)
    model = CodecGPT(tiny_config(pattern=name))
    with torch.no_grad():
        loss_sums, num_tokens = model(codes(20, 30), values={"prompt": torch.randn(20, 12)})
    assert float(loss_sums.sum() / num_tokens.sum()) == pytest.approx(math.log(1025), abs=0.1)
    assert num_tokens.tolist() == [600] * 4


@given(st.sampled_from(PATTERNS.names()), st.lists(st.integers(1, 12), min_size=1, max_size=4), st.booleans())
@settings(max_examples=30)
def test_padding_does_not_change_the_loss(name: str, lengths: list[int], end_of_audio: bool) -> None:
    """The content of padded frames changes nothing, and the loss of a batch is the sum of the losses of its clips."""
    model = tiny(pattern=name, end_of_audio=end_of_audio).eval()
    T, frames = max(lengths), torch.tensor(lengths)
    x, prompt = codes(len(lengths), T), torch.randn(len(lengths), 12)
    other = torch.where(torch.arange(T) >= frames[:, None, None], codes(len(lengths), T, seed=1), x)
    loss_sums, num_tokens = model(x, frames, {"prompt": prompt})
    assert torch.equal(loss_sums, model(other, frames, {"prompt": prompt})[0])
    assert num_tokens.tolist() == [sum(lengths) + len(lengths) * end_of_audio] * 4
    alone = [model(x[b : b + 1, :, :n], None, {"prompt": prompt[b : b + 1]})[0] for b, n in enumerate(lengths)]
    assert torch.allclose(loss_sums, torch.stack(alone).sum(0), rtol=1e-4)


@pytest.mark.parametrize("name", PATTERNS.names())
def test_clips_of_a_batch_are_independent(name: str) -> None:
    """Bit for bit, even if another clip is not finite; nor do padded frames contribute to the loss."""
    model, prompt = tiny(pattern=name).eval(), torch.randn(3, 12)
    sequence = model.pattern.build_sequence(codes(3, 9) + 1)
    expected = model.logits(sequence, {"prompt": prompt})
    non_finite = prompt.clone()
    non_finite[1] = math.nan
    assert torch.equal(model.logits(sequence, {"prompt": non_finite})[::2], expected[::2])
    tokens, lengths = codes(1, 9) + 1, torch.tensor([5])
    hidden = torch.randn(1, model.pattern.num_steps(9), 32)
    real = model.pattern.gather_positions(torch.arange(hidden.shape[1])[None, :, None], 9, lengths)[:, :, :5].flatten()
    padded = hidden.clone()
    padded[:, [s for s in range(hidden.shape[1]) if s not in real]] = math.nan
    assert torch.equal(model.token_loss(padded, tokens, lengths)[0], model.token_loss(hidden, tokens, lengths)[0])


@pytest.mark.parametrize("name", PATTERNS.names())
def test_loss_is_the_cross_entropy_at_active_cells(name: str) -> None:
    model = tiny(pattern=name).eval()
    x, prompt = codes(2, 9), torch.randn(2, 12)
    sequence = model.pattern.build_sequence(x + 1)
    logits = model.logits(sequence, {"prompt": prompt})  # [B, S, K, C]
    losses = torch.nn.functional.cross_entropy(logits.permute(0, 3, 2, 1), sequence, reduction="none")  # [B, K, S]
    active = model.pattern.frame_at_step(9) >= 0
    expected = (losses * active).sum((0, 2))
    assert torch.allclose(model(x, None, {"prompt": prompt})[0], expected, rtol=1e-5)


def test_a_step_depends_on_prompt_and_earlier_steps_only() -> None:
    model = tiny().eval()
    sequence, prompt = model.pattern.build_sequence(codes(1, 10) + 1), torch.randn(1, 12)
    before = model.logits(sequence, {"prompt": prompt})
    changed = sequence.clone()
    changed[:, 0, 5] = 1 + changed[:, 0, 5] % 1024
    after = model.logits(changed, {"prompt": prompt})
    assert torch.equal(before[:, :6], after[:, :6]) and not torch.allclose(before[:, 6], after[:, 6])
    assert not torch.allclose(before[:, 0], model.logits(sequence, {"prompt": prompt + 1})[:, 0])


@given(st.sampled_from(PATTERNS.names()), st.integers(1, 7))
@settings(max_examples=12)
@torch.no_grad()
def test_cached_logits_equal_full_logits(name: str, first: int) -> None:
    """After a prefill of some positions, and after each further position, by either way to decode a step."""
    model = tiny(pattern=name).eval()
    sequence, prompt = model.pattern.build_sequence(codes(2, 8) + 1), torch.randn(2, 12)
    inputs = model.inputs(sequence, {"prompt": prompt})
    full, engine, S = model.logits(sequence, {"prompt": prompt}), InferenceEngine(model), inputs.shape[1]
    forward_cache, step_cache = engine.new_cache(2, S), engine.new_cache(2, S)
    for cache in (forward_cache, step_cache):
        hidden = engine.forward(inputs[:, :first], cache, 0)
        assert torch.allclose(step_logits(engine, hidden, sequence[:, :, first - 1]), full[:, first - 1], atol=1e-5)
    for at in range(first, S):
        one = inputs[:, at : at + 1]
        for hidden in (
            engine.forward(one, forward_cache, at),
            engine.decode_step(one, step_cache, torch.tensor([at])),
        ):
            assert torch.allclose(step_logits(engine, hidden, sequence[:, :, at]), full[:, at], atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_backbone_forward_equals_that_of_transformers(training: bool, checkpointing: bool) -> None:
    """Bit for bit, including gradients and dropout."""
    model = tiny(dropout=0.1).train(training)
    if checkpointing:
        model.backbone.gradient_checkpointing_enable()
    gradients = []
    for forward in (
        model.backbone_forward,
        lambda x: model.backbone(inputs_embeds=x, use_cache=False).last_hidden_state,
    ):
        torch.manual_seed(3)
        inputs = torch.randn(2, 9, 32, requires_grad=True)
        model.zero_grad()
        forward(inputs).square().sum().backward()
        assert inputs.grad is not None and model.backbone.wpe.weight.grad is not None
        gradients.append([inputs.grad, *(p.grad.clone() for p in model.backbone.parameters() if p.grad is not None)])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", PATTERNS.names())
def test_token_loss_compiles_to_one_graph_for_all_lengths(compiler: None, name: str) -> None:
    """A graph break would store the logits twice, and each graph has to be compiled."""
    model = tiny(pattern=name)
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(model.token_loss, backend=count, fullgraph=True)
    for T in (9, 12, 15, 20):
        tokens, lengths = codes(3, T) + 1, torch.tensor([T, 2, T - 3])
        hidden = torch.randn(3, model.pattern.num_steps(T), 32)
        for ours, plain in zip(
            compiled(hidden, tokens, lengths), model.token_loss(hidden, tokens, lengths), strict=True
        ):
            assert torch.allclose(ours, plain)
    assert len(graphs) <= 2


def test_attention_mask_has_the_dtype_of_the_queries() -> None:
    """GPU kernels refuse a mask of another dtype, or misread it."""
    model, masks = tiny().eval().bfloat16(), []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.scaled_dot_product_attention:
                masks.append((args[0].dtype, (kwargs or {})["attn_mask"].dtype))
            return func(*args, **(kwargs or {}))

    engine = InferenceEngine(model)
    with torch.no_grad(), Watch():
        engine.decode_step(torch.randn(1, 1, 32).bfloat16(), engine.new_cache(1, 4), torch.tensor([0]))
    assert masks == [(torch.bfloat16, torch.bfloat16)] * 2


def test_missing_prompt_is_the_learned_null_vector() -> None:
    model = tiny(prompt_dropout=1.0)
    prompt = torch.randn(2, 12)
    loss_sums, _ = model(codes(2, 6), None, {"prompt": prompt})  # every prompt dropped
    assert torch.equal(loss_sums, model(codes(2, 6))[0])
    model.zero_grad()
    loss_sums.sum().backward()
    assert model.null_prompt.grad is not None and model.null_prompt.grad.abs().sum() > 0


def test_prompts_are_normalized() -> None:
    model = tiny()
    prompts = torch.randn(500, 12) * 7 + 3
    model.fit_prompt_normalization(prompts)
    scaled = torch.nn.functional.linear(
        (prompts - prompts.mean(0)) / prompts.std(0, correction=0), model.prompt.weight, model.prompt.bias
    )
    assert torch.allclose(model.prefix({"prompt": prompts}, 500)[:, 0], scaled, atol=1e-4)


def test_end_of_audio_adds_a_frame_that_counts() -> None:
    model = tiny(end_of_audio=True)
    tokens, lengths = model.targets(codes(2, 5), torch.tensor([5, 3]))
    assert tokens.shape[2] == 6 and lengths.tolist() == [6, 4]
    assert (tokens[0, :, 5] == SPECIAL_TOKEN).all() and (tokens[1, :, 3] == SPECIAL_TOKEN).all()


@pytest.mark.parametrize("name", PATTERNS.names())
def test_each_pattern_learns_a_copy_task(name: str) -> None:
    """The prompt says which of four melodies a clip is, so the loss goes to zero."""
    torch.manual_seed(0)
    model = CodecGPT(tiny_config(pattern=name))
    melodies, prompts = codes(4, 8), torch.eye(4, 12) * 3
    assert train_on_clips(model, melodies, None, prompts, steps=80) < 0.05


def test_saved_and_loaded_model_is_the_same(tmp_path: Path) -> None:
    model = tiny(codec={"name": "some codec"}).eval()
    model.fit_prompt_normalization(torch.randn(10, 12))
    model.save_pretrained(tmp_path)
    loaded = CodecGPT.from_pretrained(tmp_path)
    assert loaded.config == model.config and not loaded.training
    sequence, prompt = model.pattern.build_sequence(codes(1, 5) + 1), torch.randn(1, 12)
    assert torch.equal(loaded.logits(sequence, {"prompt": prompt}), model.logits(sequence, {"prompt": prompt}))


@pytest.mark.parametrize("damage", ["no weights", "no config", "config of something else", "weights of another size"])
def test_folder_without_a_valid_model_is_refused(tmp_path: Path, damage: str) -> None:
    tiny().save_pretrained(tmp_path)
    if damage == "no weights":
        (tmp_path / "model.safetensors").unlink()
    elif damage == "no config":
        (tmp_path / "config.json").unlink()
    elif damage == "config of something else":
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    else:
        tiny(width=64).save_pretrained(tmp_path / "other")
        (tmp_path / "other" / "model.safetensors").replace(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="is not an exported CodecGPT"):
        CodecGPT.from_pretrained(tmp_path)


@pytest.fixture
def gpt2(tmp_path: Path) -> str:
    """A local folder with the weights of a small GPT-2."""
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    GPT2Model(config).save_pretrained(tmp_path / "gpt2")
    return str(tmp_path / "gpt2")


def test_pretrained_weights_are_loaded_and_extended(gpt2: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model, known = build_model(replace(TINY, positions=40), gpt2), GPT2Model.from_pretrained(gpt2)
    assert model.training and model.backbone.training
    assert torch.equal(model.backbone.wpe.weight[:16], known.wpe.weight) and len(model.backbone.wpe.weight) == 40
    assert torch.equal(model.backbone.h[1].mlp.c_fc.weight, known.h[1].mlp.c_fc.weight)
    assert "from 16 to 40" in caplog.text
    assert not any("wte" in name for name in model.state_dict())
    with torch.no_grad():
        loss_sums, num_tokens = model(codes(20, 30), None, {"prompt": torch.randn(20, 12)})
    assert float(loss_sums.sum() / num_tokens.sum()) == pytest.approx(math.log(1025), abs=0.1)


def test_pretrained_weights_of_another_size_are_refused(gpt2: str) -> None:
    with pytest.raises(InputError, match=r"width 32, 2 layers.*64, 2, 4"):
        build_model(replace(TINY, width=64), gpt2)


def remove_a_weight(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["h.1.mlp.c_fc.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def make_a_weight_nan(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["h.1.mlp.c_fc.weight"][0] = math.nan
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def write_our_export(folder: Path) -> None:
    tiny().save_pretrained(folder)


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def write_garbage(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80garbage")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_a_weight, r"has no weights for h\.1\.mlp\.c_fc\.weight \(1 missing\)"),
        (make_a_weight_nan, r"h\.1\.mlp\.c_fc\.weight has non-finite values"),
        (write_our_export, r"is an export of this program, but GPT-2's weights are expected.*resume=RUN"),
        (truncate, r"its files are damaged or not GPT-2's"),
        (write_garbage, r"its files are damaged or not GPT-2's"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"its files are damaged or not GPT-2's"),
        (lambda folder: (folder / "config.json").unlink(), r"the folder has no config\.json"),
    ],
)
def test_damaged_or_incomplete_gpt2_weights_are_refused(
    gpt2: str, damage: Callable[[Path], None], message: str
) -> None:
    """In one line that names the setting."""
    damage(Path(gpt2))
    with pytest.raises(InputError, match=f"model.pretrained={gpt2}.*{message}") as caught:
        build_model(TINY, gpt2)
    assert "\n" not in str(caught.value)


def test_unavailable_gpt2_weights_name_the_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"hf download gpt2.*model.pretrained=DIR.*model=small"):
        build_model(TINY, "gpt2")


@pytest.mark.parametrize(
    ("name", "value"), [("codebooks", 10**9), ("layers", 10**9), ("positions", 10**12), ("width", "8"), ("heads", 0),
                        ("dropout", "x"), ("dropout", False), ("codec", 3), ("pattern", "none"), ("prompt_dim", 2**60),
                        ("layers", True)],
)  # fmt: skip
def test_config_of_other_sizes_is_refused_before_allocating(tmp_path: Path, name: str, value: object) -> None:
    tiny().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["sha256"]
    (tmp_path / "config.json").write_text(json.dumps({**content, name: value}))
    with pytest.raises(InputError):
        CodecGPT.from_pretrained(tmp_path)
