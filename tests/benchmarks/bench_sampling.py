"""Speed of generation, in ms per step and multiples of real time: GPT-2 small's shape, delay pattern, 8 codebooks.

    python -m tests.benchmarks.bench_sampling                      batches of 1 and 16: about two minutes on 2 cores
    python -m tests.benchmarks.bench_sampling --steps 300 --again  also without a cache
    python -m tests.benchmarks.bench_sampling --device cuda        on a GPU
    python -m tests.benchmarks.bench_sampling --music              also transformers' MusicGen decoder

Rows, with random weights in fp32:
  article    the article's loop: transformers' GPT-2 with its own cache, one multinomial per codebook
  again      the whole sequence is read again at each step, without a cache
  MusicGen   transformers' MusicGen decoder of the same width, layers and codebooks, with its own `generate`
  ours       `Generation`; exact: batch-invariant; fast: a plain matrix-vector product for a single row; int8: with
             weights of 8 bits
  depth      `Generation` with the depth pattern and its default settings; a step is a frame
  limit      the sum of every matrix of the model, because any step must read its weights from memory once
Each row is run --rounds times, alternating with the others, and its best time counts. Real time is 75 steps per second.
"""

from __future__ import annotations

import argparse
import inspect
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.config.cli import load_settings
from pipeline.generation.engine import InferenceEngine
from pipeline.generation.generator import Generation, GenerationSpec
from pipeline.generation.settings import sampling_settings
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.model_config import ModelConfig
from pipeline.training.settings import TrainSettings

WIDTH, LAYERS, HEADS, CODEBOOKS, PROMPT, RATE = 768, 12, 12, 8, 768, 75
TEMPERATURE = 0.7


def untrained_model(pattern: str) -> CodecGPT:
    """GPT-2 small's shape over 8 codebooks, with random weights."""
    options = load_settings(TrainSettings, [f"pattern={pattern}"]).pattern.options()
    config = ModelConfig(
        codebooks=CODEBOOKS, pattern=pattern, pattern_options=options, prompt_dim=PROMPT, width=WIDTH, layers=LAYERS,
        heads=HEADS, positions=1024, dropout=0.0, prompt_dropout=0.1, end_of_audio=False,
    )  # fmt: skip
    return CodecGPT(config).eval()


def sample(logits: Tensor) -> Tensor:
    """Tokens [B, K] from logits [B, K, C] by one multinomial per codebook, as in the article."""
    tokens = [torch.multinomial((logits[:, k] / TEMPERATURE).softmax(-1), 1) for k in range(CODEBOOKS)]
    return torch.cat(tokens, 1)


def last_logits(model: CodecGPT, hidden: Tensor) -> Tensor:
    """Logits [B, K, C] of the step after the last position, where codes of a step do not depend on each other."""
    unused = torch.zeros(len(hidden), CODEBOOKS, 1, dtype=torch.long, device=hidden.device)
    return model.head_logits(hidden[:, -1:], unused)[:, 0]


@torch.inference_mode()
def article(model: CodecGPT, prompts: Tensor, steps: int) -> None:
    """One step after the other with transformers' GPT-2 and its cache, as in the article."""
    from transformers.cache_utils import DynamicCache

    backbone, cache = model.backbone, DynamicCache(config=model.backbone.config)
    is_renamed = "cache" in inspect.signature(type(backbone).forward).parameters  # transformers 5.24 and later
    cache_argument = {"cache" if is_renamed else "past_key_values": cache}
    inputs = model.prefix({"prompt": prompts}, len(prompts))
    for _ in range(steps):
        hidden = backbone(inputs_embeds=inputs, use_cache=True, **cache_argument).last_hidden_state
        inputs = model.embed(sample(last_logits(model, hidden))[:, :, None])


@torch.inference_mode()
def without_cache(model: CodecGPT, prompts: Tensor, steps: int) -> None:
    """The whole sequence is read again at each step."""
    inputs = model.prefix({"prompt": prompts}, len(prompts))
    for _ in range(steps):
        tokens = sample(last_logits(model, model.backbone_forward(inputs)))
        inputs = torch.cat([inputs, model.embed(tokens[:, :, None])], 1)


def ours(engine: InferenceEngine, prompts: Tensor, steps: int) -> None:
    """`Generation` of as many frames as give this number of steps."""
    rows, frames = range(len(prompts)), steps - engine.pattern.num_steps(1) + 1
    spec = GenerationSpec(frames, rows, sampling_settings(temperature=TEMPERATURE), [(0, {"prompt": prompts})])
    for _ in Generation(engine, spec).chunks():
        pass


def musicgen(device: str) -> Callable[[Tensor, int], None]:
    """transformers' MusicGen decoder with its own `generate`."""
    from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

    config = MusicgenDecoderConfig(
        vocab_size=1024, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, ffn_dim=4 * WIDTH,
        num_codebooks=CODEBOOKS, max_position_embeddings=2048, pad_token_id=1024, bos_token_id=1024, audio_channels=1,
    )  # fmt: skip
    model = MusicgenForCausalLM(config).eval().to(device)
    settings = model.generation_config
    settings.num_return_sequences = 1
    settings.pad_token_id = settings.bos_token_id = settings.decoder_start_token_id = 1024

    @torch.inference_mode()
    def run(prompts: Tensor, steps: int) -> None:
        start = torch.full((len(prompts) * CODEBOOKS, 1), 1024, device=device)
        encoded = torch.zeros(len(prompts), 1, WIDTH, device=device)  # MusicGen reads its prompt by cross-attention
        model.generate(
            inputs=start, encoder_hidden_states=encoded, do_sample=True, temperature=TEMPERATURE, guidance_scale=1,
            max_length=steps + 1, top_k=0, use_cache=True,
        )  # fmt: skip

    return run


@torch.inference_mode()
def limit(model: CodecGPT) -> None:
    """Read each matrix once, by summing it."""
    for block in model.backbone.h:
        for part in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            part.weight.sum()
    model.head.weight.sum()


def best_seconds(rows: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, float]:
    """The best time of each row."""
    best: dict[str, float] = {}
    for turn in range(rounds + 1):  # the first is a warm-up
        for name, run in rows.items():
            start = time.perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn:
                best[name] = min(best.get(name, float("inf")), time.perf_counter() - start)
    return best


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="8, the number of codebooks, or more")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--music", action="store_true")
    args = parser.parse_args()
    if args.steps < CODEBOOKS:
        parser.error(f"--steps {args.steps}: give {CODEBOOKS} or more")
    torch.set_num_threads(args.threads or torch.get_num_threads())
    torch.manual_seed(0)
    model = untrained_model("delay").to(args.device)
    depth = InferenceEngine(untrained_model("depth").to(args.device))
    exact, fast = InferenceEngine(model), InferenceEngine(model, batch_invariant=False)
    model.is_quantized = True
    int8 = InferenceEngine(model)
    music = musicgen(args.device) if args.music else None
    print(f"{args.device}, {torch.get_num_threads()} threads, {args.steps} steps, torch {torch.__version__}")
    print(f"{'':18}{'batch':>6}{'ms per step':>12}{'x real time':>13}{'clips: x article alone':>24}")
    alone = 0.0
    for batch in args.batches:
        prompts = torch.randn(batch, PROMPT, device=args.device)
        rows: dict[str, Callable[[], None]] = {"article": lambda p=prompts: article(model, p, args.steps)}
        rows["ours, exact"] = lambda p=prompts: ours(exact, p, args.steps)
        if args.device == "cpu":
            rows["ours, int8"] = lambda p=prompts: ours(int8, p, args.steps)
        rows["depth, exact"] = lambda p=prompts: ours(depth, p, args.steps)
        if batch == 1 and args.device == "cpu":
            rows["ours, fast"] = lambda p=prompts: ours(fast, p, args.steps)
        if music is not None:
            rows["MusicGen"] = lambda p=prompts: music(p, args.steps)
        if args.again and batch == 1:  # larger batches take an hour
            rows["again"] = lambda p=prompts: without_cache(model, p, args.steps)
        best = best_seconds(rows, args.rounds, args.device)
        per_step = {name: seconds / args.steps for name, seconds in best.items()}
        if batch == 1:
            per_step["limit"] = best_seconds({"": lambda: limit(model)}, 10, args.device)[""]
            alone = per_step["article"]
        for name, seconds in per_step.items():
            faster = f"{alone * batch / seconds:.1f}" if alone else "-"
            print(f"{name:18}{batch:6}{seconds * 1e3:12.2f}{batch / seconds / RATE:13.2f}{faster:>24}", flush=True)


if __name__ == "__main__":
    main()
