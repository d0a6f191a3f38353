"""Train a language model on a cache of codec tokens.

    deepspeed pipeline/train.py +exp=delay_gpt2                     all GPUs of this machine (or one CPU rank)
    deepspeed --num_gpus 2 pipeline/train.py +exp=delay_gpt2        two ranks
    python -m pipeline.train +exp=delay_gpt2                        one rank, without a launcher
    srun ... python pipeline/train.py +exp=delay_gpt2               a cluster: see jobs/

It reads the shards that `python -m pipeline.preprocess` wrote, and leaves everything in one run folder: settings,
metrics.jsonl, checkpoints, and export/ for `python -m pipeline.generate run=RUN`. The same command again goes on where
the run stopped; USR1, TERM, HUP, ^C (again: at once) or the end of the launcher make it save and exit with 75.

People change: +exp=..., shards=DIR, model=tiny|small|medium|..., pattern=..., run=DIR, trainer.steps=N,
trainer.micro_batch=N, optim.lr=X, deepspeed=zero1|zero2|zero3|zero3_offload, tracking=none, resume=never.
trainer.preflight=only prints what the run will take (parameters, steps, memory, disk), and trains nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # `deepspeed pipeline/train.py` puts pipeline/ first on the path, where it shadows other packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":  # before the slow imports: a request to stop may come at any time
    from pipeline.lm import stop_signals

    stop_signals.install()

from omegaconf import DictConfig

from pipeline.config import entry


@entry("train")
def main(cfg: DictConfig) -> int:
    """Wire caches, model, engine and trainer; train; export."""
    from pipeline import limits, preflight, training
    from pipeline.lm import checkpoint, distributed, stop_signals, training_settings
    from pipeline.publish import card

    stop_signals.begin_start()
    limits.check(cfg)
    world = distributed.start(cfg.trainer.timeout)
    run = Path(cfg.run)
    found, skipped = checkpoint.find(run, cfg.resume, world)
    splits, order = training.open_shards(cfg)
    config = training.model_config(cfg, splits)
    training.count_steps(cfg, config, splits, world)
    settings = training_settings.training_settings(cfg, training.content_digests(cfg, splits), world.ranks)
    changes: list[str] = []
    if found:
        checkpoint.check_model(found, config)
        stage, bf16 = cfg.deepspeed.zero_optimization.stage, training.computes_in_bf16(cfg, world.device.type)
        checkpoint.check_engine(found, stage, bf16)
        checkpoint.check_steps(found, run, cfg.trainer.steps)
        changes = training_settings.check_settings(found, settings, cfg.resume, run)
    if preflight.check(cfg, config, splits, order, world, found):
        return 0
    model = training.build_model(cfg, config, splits, fresh=found is None)
    with training.prepare_run(cfg, run, world):
        training.report_skipped(skipped, world)
        converts = found is not None and checkpoint.needs_conversion(found, world)
        engine = training.build_engine(cfg, model, world, converts)
        trainer = training.build_trainer(cfg, engine, splits, order, run, world, settings)
        if found:
            trainer.resume(found)
        training.announce(cfg, trainer, splits, order, changes)
        tracker = training.start_tracker(cfg, run, trainer.step, world)
        code = 1
        try:
            ears = training.open_ears(cfg, splits, world)
            report = training.reporting(tracker, trainer, order.epoch, splits[0][0].manifest.frame_rate, ears)
            code = trainer.train(report, lambda folder: tracker.artifact("checkpoint", folder))
            if world.first:
                newest = run / "checkpoints" / f"step-{trainer.step}"
                checkpoint.export(newest, run / "export")
                card.write(newest, caches=training.caches_of(cfg))
                tracker.artifact("export", run / "export")
        finally:
            tracker.finish(code)
    return code


if __name__ == "__main__":
    main()
