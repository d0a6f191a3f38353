"""What the model reads, predicts, and counts in its loss."""

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
from pipeline.models.codec_gpt import CodecGPT, GPT2Config, GPT2Model, build_model
from pipeline.models.patterns import NAMES, SPECIAL_TOKEN, Pattern
from tests.helpers.models import TINY, tiny


def codes(B: int, T: int, K: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 1024, (B, K, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_an_untrained_model_loses_ln_of_its_classes(name: str) -> None:
    model = CodecGPT(replace(TINY, pattern=name))
    with torch.no_grad():
        nats, cells = model(codes(20, 30), prompt=torch.randn(20, 12))
    assert float(nats.sum() / cells.sum()) == pytest.approx(math.log(1025), abs=0.1)
    assert cells.tolist() == [600] * 4


@given(st.sampled_from(NAMES), st.lists(st.integers(1, 12), min_size=1, max_size=4), st.booleans())
@settings(max_examples=30)
def test_padding_is_not_music(name: str, lengths: list[int], end_of_audio: bool) -> None:
    """The contents of padded frames change nothing, and a batch loses what its clips lose alone."""
    model = tiny(pattern=name, end_of_audio=end_of_audio).eval()
    T, frames = max(lengths), torch.tensor(lengths)
    x, prompt = codes(len(lengths), T), torch.randn(len(lengths), 12)
    other = torch.where(torch.arange(T) >= frames[:, None, None], codes(len(lengths), T, seed=1), x)
    nats, cells = model(x, frames, prompt)
    assert torch.equal(nats, model(other, frames, prompt)[0])
    assert cells.tolist() == [sum(lengths) + len(lengths) * end_of_audio] * 4
    alone = [model(x[b : b + 1, :, :n], None, prompt[b : b + 1])[0] for b, n in enumerate(lengths)]
    assert torch.allclose(nats, torch.stack(alone).sum(0), rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_no_clip_has_a_part_in_another_s_numbers(name: str) -> None:
    """Bit for bit, even where another's are not finite; nor has a padded frame in the loss."""
    model, prompt = tiny(pattern=name).eval(), torch.randn(3, 12)
    laid = model.pattern.build_sequence(codes(3, 9) + 1)
    expected = model.logits(laid, prompt)
    odd = prompt.clone()
    odd[1] = math.nan
    assert torch.equal(model.logits(laid, odd)[::2], expected[::2])
    tokens, lengths = codes(1, 9) + 1, torch.tensor([5])
    hidden = torch.randn(1, model.pattern.num_steps(9), 32)
    real = model.pattern.gather_positions(torch.arange(hidden.shape[1])[None, :, None], 9, lengths)[:, :, :5].flatten()
    padded = hidden.clone()
    padded[:, [s for s in range(hidden.shape[1]) if s not in real]] = math.nan
    assert torch.equal(model.token_loss(padded, tokens, lengths)[0], model.token_loss(hidden, tokens, lengths)[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_the_logits_at_active_cells(name: str) -> None:
    model = tiny(pattern=name).eval()
    x, prompt = codes(2, 9), torch.randn(2, 12)
    laid = model.pattern.build_sequence(x + 1)
    logits = model.logits(laid, prompt)  # [B, S, K, C]
    nats = torch.nn.functional.cross_entropy(logits.permute(0, 3, 2, 1), laid, reduction="none")  # [B, K, S]
    active = Pattern(name, 4).frame_at_step(9) >= 0
    expected = (nats * active).sum((0, 2))
    assert torch.allclose(model(x, None, prompt)[0], expected, rtol=1e-5)


def test_a_step_is_predicted_from_the_prompt_and_the_steps_before_it() -> None:
    model = tiny().eval()
    laid, prompt = model.pattern.build_sequence(codes(1, 10) + 1), torch.randn(1, 12)
    before = model.logits(laid, prompt)
    changed = laid.clone()
    changed[:, 0, 5] = 1 + changed[:, 0, 5] % 1024
    after = model.logits(changed, prompt)
    assert torch.equal(before[:, :6], after[:, :6]) and not torch.allclose(before[:, 6], after[:, 6])
    assert not torch.allclose(before[:, 0], model.logits(laid, prompt + 1)[:, 0])


@given(st.sampled_from(NAMES), st.integers(1, 7))
@settings(max_examples=12)
@torch.no_grad()
def test_cached_logits_are_the_full_logits(name: str, first: int) -> None:
    """Of so many positions read at once, and of each behind them, read one by one in either way."""
    model = tiny(pattern=name).eval()
    laid, prompt = model.pattern.build_sequence(codes(2, 8) + 1), torch.randn(2, 12)
    inputs = torch.cat([model.condition(prompt, 2), model.embed(laid[:, :, :-1])], 1)
    full, player, S = model.logits(laid, prompt), InferenceEngine(model), inputs.shape[1]
    read, read_at = player.new_cache(2, S), player.new_cache(2, S)
    for cache in (read, read_at):
        assert torch.allclose(player.forward(inputs[:, :first], cache, 0), full[:, first - 1], atol=1e-5)
    for at in range(first, S):
        one = inputs[:, at : at + 1]
        assert torch.allclose(player.forward(one, read, at), full[:, at], atol=1e-5)
        assert torch.allclose(player.decode_step(one, read_at, torch.tensor([at])), full[:, at], atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_trunk_is_read_as_transformers_reads_it(training: bool, checkpointing: bool) -> None:
    """Bit for bit, gradients and dropout too."""
    model = tiny(dropout=0.1).train(training)
    if checkpointing:
        model.backbone.gradient_checkpointing_enable()
    found = []
    for read in (model.backbone_forward, lambda x: model.backbone(inputs_embeds=x, use_cache=False).last_hidden_state):
        torch.manual_seed(3)
        inputs = torch.randn(2, 9, 32, requires_grad=True)
        model.zero_grad()
        read(inputs).square().sum().backward()
        assert inputs.grad is not None and model.backbone.wpe.weight.grad is not None
        found.append([inputs.grad, *(p.grad.clone() for p in model.backbone.parameters() if p.grad is not None)])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_head_and_loss_are_one_graph_for_clips_of_all_lengths(compiler: None, name: str) -> None:
    """A break in it would make logits twice, and each graph costs its compilation."""
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


def test_a_captured_step_masks_in_the_precision_of_its_queries() -> None:
    """Kernels of GPUs refuse a mask of another, or misread it."""
    model, masks = tiny().eval().bfloat16(), []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.scaled_dot_product_attention:
                masks.append((args[0].dtype, (kwargs or {})["attn_mask"].dtype))
            return func(*args, **(kwargs or {}))

    player = InferenceEngine(model)
    with torch.no_grad(), Watch():
        player.decode_step(torch.randn(1, 1, 32).bfloat16(), player.new_cache(1, 4), torch.tensor([0]))
    assert masks == [(torch.bfloat16, torch.bfloat16)] * 2


def test_without_a_prompt_a_learned_null_vector_stands_there() -> None:
    model = tiny(prompt_dropout=1.0)
    prompt = torch.randn(2, 12)
    nats, _ = model(codes(2, 6), None, prompt)  # every prompt dropped
    assert torch.equal(nats, model(codes(2, 6))[0])
    model.zero_grad()
    nats.sum().backward()
    assert model.null_prompt.grad is not None and model.null_prompt.grad.abs().sum() > 0


def test_prompts_are_standardised() -> None:
    model = tiny()
    prompts = torch.randn(500, 12) * 7 + 3
    model.fit_prompt_normalization(prompts)
    scaled = torch.nn.functional.linear(
        (prompts - prompts.mean(0)) / prompts.std(0, correction=0), model.prompt.weight, model.prompt.bias
    )
    assert torch.allclose(model.condition(prompts, 500)[:, 0], scaled, atol=1e-4)


def test_end_of_audio_is_a_frame_of_empty_that_counts() -> None:
    model = tiny(end_of_audio=True)
    tokens, lengths = model.targets(codes(2, 5), torch.tensor([5, 3]))
    assert tokens.shape[2] == 6 and lengths.tolist() == [6, 4]
    assert (tokens[0, :, 5] == SPECIAL_TOKEN).all() and (tokens[1, :, 3] == SPECIAL_TOKEN).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_task_is_learned_under_each_pattern(name: str) -> None:
    """Clips that say in their prompt which of four melodies they are: soon nothing is left to lose."""
    torch.manual_seed(0)
    model = CodecGPT(replace(TINY, pattern=name))
    melodies, prompts = codes(4, 8), torch.eye(4, 12) * 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        nats, cells = model(melodies, None, prompts)
        loss = nats.sum() / cells.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05


def test_exported_and_loaded_it_is_the_same_model(tmp_path: Path) -> None:
    model = tiny(codec={"name": "some codec"}).eval()
    model.fit_prompt_normalization(torch.randn(10, 12))
    model.save_pretrained(tmp_path)
    loaded = CodecGPT.from_pretrained(tmp_path)
    assert loaded.config == model.config and not loaded.training
    laid, prompt = model.pattern.build_sequence(codes(1, 5) + 1), torch.randn(1, 12)
    assert torch.equal(loaded.logits(laid, prompt), model.logits(laid, prompt))


@pytest.mark.parametrize("damage", ["no weights", "no config", "config of something else", "weights of another size"])
def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path, damage: str) -> None:
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
    with pytest.raises(InputError, match="no exported CodecGPT"):
        CodecGPT.from_pretrained(tmp_path)


@pytest.fixture
def gpt2(tmp_path: Path) -> str:
    """Pretrained GPT-2 weights of a small size in a local folder."""
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    GPT2Model(config).save_pretrained(tmp_path / "gpt2")
    return str(tmp_path / "gpt2")


def test_pretrained_weights_are_taken_and_made_longer(gpt2: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model, known = build_model(replace(TINY, positions=40), gpt2), GPT2Model.from_pretrained(gpt2)
    assert model.training and model.backbone.training
    assert torch.equal(model.backbone.wpe.weight[:16], known.wpe.weight) and len(model.backbone.wpe.weight) == 40
    assert torch.equal(model.backbone.h[1].mlp.c_fc.weight, known.h[1].mlp.c_fc.weight)
    assert "from 16 to 40" in caplog.text
    assert not any("wte" in name for name in model.state_dict())
    with torch.no_grad():
        nats, cells = model(codes(20, 30), None, torch.randn(20, 12))
    assert float(nats.sum() / cells.sum()) == pytest.approx(math.log(1025), abs=0.1)


def test_pretrained_weights_of_another_size_are_refused(gpt2: str) -> None:
    with pytest.raises(InputError, match=r"32 wide with 2 layers.*64, 2, 4"):
        build_model(replace(TINY, width=64), gpt2)


def without_a_weight(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["h.1.mlp.c_fc.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def not_finite(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["h.1.mlp.c_fc.weight"][0] = math.nan
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def of_our_own(folder: Path) -> None:
    tiny().save_pretrained(folder)


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def of_garbage(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80garbage")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_weight, r"leaves weights unset \(h\.1\.mlp\.c_fc\.weight, 1 in all\)"),
        (not_finite, r"h\.1\.mlp\.c_fc\.weight holds numbers that are not finite"),
        (of_our_own, r"is an export of this program, and GPT-2's weights are expected.*resume=RUN"),
        (cut_short, r"its files are damaged or not GPT-2's"),
        (of_garbage, r"its files are damaged or not GPT-2's"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"its files are damaged or not GPT-2's"),
        (lambda folder: (folder / "config.json").unlink(), r"the folder has no config\.json"),
    ],
)
def test_pretrained_weights_that_would_leave_some_random_are_refused(
    gpt2: str, damage: Callable[[Path], None], message: str
) -> None:
    """In one line that names the setting, whatever is damaged or missing."""
    damage(Path(gpt2))
    with pytest.raises(InputError, match=f"model.pretrained={gpt2}.*{message}") as caught:
        build_model(TINY, gpt2)
    assert "\n" not in str(caught.value)


def test_pretrained_weights_that_cannot_be_had_are_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"hf download gpt2.*model.pretrained=DIR.*model=small"):
        build_model(TINY, "gpt2")


@pytest.mark.parametrize(
    ("name", "value"), [("codebooks", 10**9), ("layers", 10**9), ("positions", 10**12), ("width", "8"), ("heads", 0),
                        ("dropout", "x"), ("dropout", False), ("codec", 3), ("pattern", "none"), ("prompt_dim", 2**60),
                        ("layers", True)],
)  # fmt: skip
def test_settings_that_are_not_those_of_the_weights_ask_for_no_memory(tmp_path: Path, name: str, value: object) -> None:
    tiny().save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    del told["sha256"]
    (tmp_path / "config.json").write_text(json.dumps({**told, name: value}))
    with pytest.raises(InputError):
        CodecGPT.from_pretrained(tmp_path)
