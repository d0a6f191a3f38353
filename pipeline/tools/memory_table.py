"""Print the memory that a GPU needs for each model size and DeepSpeed configuration, as Markdown tables.

  python -m pipeline.tools.memory_table
  python -m pipeline.tools.memory_table --ranks 64 --micro-batch 4 --pattern flatten

Estimated by the formulas of pipeline.training.memory for bf16, layers compiled except at ZeRO-3, and the
default number of codebooks. The first figure of a cell is weights, gradients and optimizer, and what a micro-batch
adds; the second, in brackets, is with trainer.activation_checkpointing=true.
"""

from __future__ import annotations

import argparse

from pipeline.config.cli import load_settings
from pipeline.models import model_stats
from pipeline.models.model_config import ModelConfig
from pipeline.models.pattern import Pattern
from pipeline.models.patterns import PATTERNS
from pipeline.training import zero_patches
from pipeline.training.memory import ShardingConfig, estimate_memory
from pipeline.training.run_estimate import load_zero_choices
from pipeline.training.settings import TrainSettings

SIZES = ("small", "medium", "large", "xl")
FRAMES = 300  # of a clip: 4 s of the default codec
PROMPT = 768  # width of the default embedder's vectors


def shape(size: str, pattern: str, frames: int) -> ModelConfig:
    """Return the config of `model=SIZE` for clips of `frames` frames."""
    settings = load_settings(TrainSettings, [f"model={size}", f"pattern={pattern}"])
    m, codebooks = settings.model, settings.codec.streams
    return ModelConfig(
        codebooks=codebooks, pattern=pattern, pattern_options=settings.pattern.options(), prompt_dim=PROMPT,
        width=m.width, layers=m.layers, heads=m.heads,
        positions=max(1024, Pattern(settings.pattern, codebooks).num_steps(frames)), dropout=m.dropout,
        prompt_dropout=m.prompt_dropout, end_of_audio=False,
    )  # fmt: skip


def rows(ranks: int, batch: int, frames: int, pattern: str) -> list[list[str]]:
    """Return the header, and a row per size: its parameters, and GiB per GPU for each choice of conf/deepspeed."""
    choices = load_zero_choices()
    table = [["model", "parameters", *choices]]
    for size in SIZES:
        config = shape(size, pattern, frames)
        cells = []
        for zero in choices.values():
            sharding = ShardingConfig.of(zero, True, ranks, min(ranks, 8))
            mode = "compiled" if zero_patches.should_compile("auto", sharding.stage, is_cuda=True) else "eager"
            totals = [estimate_memory(config, sharding, batch, frames, m).total for m in (mode, "checkpointed")]
            cells.append("{:.1f} ({:.1f})".format(*(total / 2**30 for total in totals)))
        table.append([size, f"{model_stats.num_parameters(config) / 1e6:,.0f} M", *cells])
    return table


def markdown(table: list[list[str]]) -> str:
    """Format rows, the first of which is the header, as a Markdown table."""
    lines = [table[0], ["---", *["---:"] * (len(table[0]) - 1)], *table[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Print a table for each number of GPUs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8], help="numbers of GPUs, with a table each")
    parser.add_argument("--micro-batch", type=int, default=16, help="clips per GPU and forward pass")
    parser.add_argument("--frames", type=int, default=FRAMES, help="length of a clip")
    parser.add_argument("--pattern", choices=PATTERNS.names(), default="delay")
    args = parser.parse_args()
    for ranks in args.ranks:
        print(f"GiB per GPU, {ranks} GPU{'s' * (ranks > 1)}, {args.micro_batch} clips of {args.frames} frames each:\n")
        print(markdown(rows(ranks, args.micro_batch, args.frames, args.pattern)) + "\n")


if __name__ == "__main__":
    main()
