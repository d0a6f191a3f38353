"""How fast codes are made: milliseconds a step and times real time, GPT-2 small's shape, delay pattern, 8 codebooks.

    python -m tests.benchmarks.bench_sampling                      batches of 1 and 16: some two minutes on 2 cores
    python -m tests.benchmarks.bench_sampling --steps 300 --again  and, alone, the way without a cache
    python -m tests.benchmarks.bench_sampling --device cuda        on a GPU
    python -m tests.benchmarks.bench_sampling --music              with transformers' MusicGen decoder

Rows, with random weights in fp32:
  article    the article's loop: transformers' GPT-2 with its own cache, one multinomial a codebook
  again      the whole sequence anew at each step, without a cache
  MusicGen   transformers' MusicGen decoder of the same width, layers and codebooks, with its own `generate`
  ours       `Take`; exact: the same bits in any batch; fast: a plain matrix-vector product for a row alone
  limit      the sum of every matrix of the model: its weights read from memory once, as any step must
Each row is run --rounds times, in turns with the others, and its best time counts. 75 steps a second are real time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from pipeline.generation.engine import InferenceEngine
from pipeline.generation.generator import Generation, GenerationSpec
from pipeline.generation.sampling import SamplingParams
from pipeline.models.codec_gpt import CodecGPT, ModelConfig

WIDTH, LAYERS, HEADS, CODEBOOKS, PROMPT, RATE = 768, 12, 12, 8, 768, 75
TEMPERATURE = 0.7


def small() -> CodecGPT:
    """GPT-2 small's shape over 8 codebooks, with random weights."""
    config = ModelConfig(
        codebooks=CODEBOOKS, pattern="delay", prompt_dim=PROMPT, width=WIDTH, layers=LAYERS, heads=HEADS,
        positions=1024, dropout=0.0, prompt_dropout=0.1, end_of_audio=False,
    )  # fmt: skip
    return CodecGPT(config).eval()


def drawn(logits: Tensor) -> Tensor:
    """Logits [B, K, C] -> tokens [B, K]: one multinomial a codebook, as in the article."""
    each = [torch.multinomial((logits[:, k] / TEMPERATURE).softmax(-1), 1) for k in range(CODEBOOKS)]
    return torch.cat(each, 1)


@torch.inference_mode()
def article(model: CodecGPT, prompts: Tensor, steps: int) -> None:
    """One step after the other, with the cache of transformers."""
    cache, inputs = DynamicCache(config=model.backbone.config), model.condition(prompts, len(prompts))
    for _ in range(steps):
        tokens = drawn(model.head_logits(model.backbone_forward(inputs, cache)[:, -1:])[:, 0])
        inputs = model.embed(tokens[:, :, None])


@torch.inference_mode()
def again(model: CodecGPT, prompts: Tensor, steps: int) -> None:
    """The whole sequence anew at each step."""
    inputs = model.condition(prompts, len(prompts))
    for _ in range(steps):
        tokens = drawn(model.head_logits(model.backbone_forward(inputs)[:, -1:])[:, 0])
        inputs = torch.cat([inputs, model.embed(tokens[:, :, None])], 1)


def ours(player: InferenceEngine, prompts: Tensor, steps: int) -> None:
    """`Take`, in as many steps."""
    rows = range(len(prompts))
    plan = GenerationSpec(steps - CODEBOOKS + 1, rows, [SamplingParams(TEMPERATURE)] * len(rows), [(0, prompts)])
    for _ in Generation(player, plan).chunks():
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
        seen = torch.zeros(len(prompts), 1, WIDTH, device=device)  # its prompt comes through cross-attention
        model.generate(
            inputs=start, encoder_hidden_states=seen, do_sample=True, temperature=TEMPERATURE, guidance_scale=1,
            max_length=steps + 1, top_k=0, use_cache=True,
        )  # fmt: skip

    return run


@torch.inference_mode()
def limit(model: CodecGPT) -> None:
    """Each matrix once, added up."""
    for block in model.backbone.h:
        for part in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            part.weight.sum()
    model.head.weight.sum()


def timed(rows: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, float]:
    """Best seconds of each row."""
    best: dict[str, float] = {}
    for turn in range(rounds + 1):  # the first one sets up
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
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--music", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    torch.manual_seed(0)
    model = small().to(args.device)
    exact, fast = InferenceEngine(model), InferenceEngine(model, batch_invariant=False)
    music = musicgen(args.device) if args.music else None
    print(f"{args.device}, {torch.get_num_threads()} threads, {args.steps} steps, torch {torch.__version__}")
    print(f"{'':18}{'batch':>6}{'ms a step':>12}{'x real time':>13}{'clips: x article alone':>24}")
    alone = 0.0
    for batch in args.batches:
        prompts = torch.randn(batch, PROMPT, device=args.device)
        rows: dict[str, Callable[[], None]] = {"article": lambda p=prompts: article(model, p, args.steps)}
        rows["ours, exact"] = lambda p=prompts: ours(exact, p, args.steps)
        if batch == 1 and args.device == "cpu":
            rows["ours, fast"] = lambda p=prompts: ours(fast, p, args.steps)
        if music is not None:
            rows["MusicGen"] = lambda p=prompts: music(p, args.steps)
        if args.again and batch == 1:  # for more it takes an hour
            rows["again"] = lambda p=prompts: again(model, p, args.steps)
        found = timed(rows, args.rounds, args.device)
        found = {name: seconds / args.steps for name, seconds in found.items()}
        if batch == 1:
            found["limit"] = timed({"": lambda: limit(model)}, 10, args.device)[""]
            alone = found["article"]
        for name, seconds in found.items():
            faster = f"{alone * batch / seconds:.1f}" if alone else "-"
            print(f"{name:18}{batch:6}{seconds * 1e3:12.2f}{batch / seconds / RATE:13.2f}{faster:>24}", flush=True)


if __name__ == "__main__":
    main()
