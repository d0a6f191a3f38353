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
    from pipeline.training import stop_signals

    stop_signals.install()

from omegaconf import DictConfig

from pipeline.config.cli import hydra_command


@hydra_command("train")
def main(cfg: DictConfig) -> int:
    """Wire caches, model, engine and trainer; train; export."""
    from pipeline.hub import model_card
    from pipeline.training import checkpoint, distributed, preflight, resume_check, setup, stop_signals
    from pipeline.training import config as limits

    stop_signals.begin_start()
    limits.validate(cfg)
    world = distributed.init_distributed(cfg.trainer.watchdog_seconds)
    run = Path(cfg.run)
    found, skipped = checkpoint.resolve_resume(run, cfg.resume, world)
    splits, order = setup.open_datasets(cfg)
    config = setup.model_config(cfg, splits)
    setup.steps_from_compute_budget(cfg, config, splits, world)
    settings = resume_check.training_settings(cfg, setup.content_digests(cfg, splits), world.world_size)
    changes: list[str] = []
    if found:
        checkpoint.check_model(found, config)
        stage, bf16 = cfg.deepspeed.zero_optimization.stage, setup.use_bf16(cfg, world.device.type)
        checkpoint.check_engine(found, stage, bf16)
        checkpoint.check_steps(found, run, cfg.trainer.steps)
        changes = resume_check.check_settings(found, settings, cfg.resume, run)
    if preflight.run_preflight(cfg, config, splits, order, world, found):
        return 0
    model = setup.build_model(cfg, config, splits, fresh=found is None)
    with setup.init_run_dir(cfg, run, world):
        setup.report_skipped(skipped, world)
        converts = found is not None and checkpoint.needs_universal(found, world)
        engine = setup.build_engine(cfg, model, world, converts)
        trainer = setup.build_trainer(cfg, engine, splits, order, run, world, settings)
        if found:
            trainer.resume(found)
        setup.log_run_summary(cfg, trainer, splits, order, changes)
        tracker = setup.start_tracker(cfg, run, trainer.step, world)
        code = 1
        try:
            ears = setup.build_audio_sampler(cfg, splits, world)
            report = setup.make_log_callback(tracker, trainer, order.epoch_size, splits[0][0].manifest.frame_rate, ears)
            code = trainer.train(report, lambda folder: tracker.log_artifact("checkpoint", folder))
            if world.is_main:
                newest = run / "checkpoints" / f"step-{trainer.step}"
                checkpoint.export(newest, run / "export")
                model_card.write(newest, caches=setup.caches_of(cfg))
                tracker.log_artifact("export", run / "export")
        finally:
            tracker.close(code)
    return code


if __name__ == "__main__":
    main()
