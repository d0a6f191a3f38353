"""Train a language model on pre-tokenized audio.

    python -m pipeline.train +exp=delay_gpt2                        one process
    deepspeed pipeline/train.py +exp=delay_gpt2                     all GPUs of this machine, or one CPU process
    deepspeed --num_gpus 2 pipeline/train.py +exp=delay_gpt2        two GPUs
    srun ... python pipeline/train.py +exp=delay_gpt2               Slurm: see jobs/train.sbatch

Writes everything to the run folder; the same command resumes. A stop signal makes it save and exit with code 75.
Main settings: +exp= shards= run= model= pattern= deepspeed= optim.lr= trainer.steps= trainer.preflight=only
"""

import sys
from functools import partial
from pathlib import Path

if not __package__:  # `deepspeed pipeline/train.py` puts pipeline/ first on the path, where it shadows other packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])
from pipeline.training import stop_signals

if __name__ == "__main__":  # before the slow imports: a stop request may come at any time
    stop_signals.install()
from omegaconf import DictConfig

from pipeline.config.cli import hydra_command, overridden_settings


@hydra_command("train")
def main(cfg: DictConfig) -> int:
    """Wire data, model, trainer and tracker; train; export."""
    from pipeline.hub import model_card
    from pipeline.training import checkpoint, config, data, distributed, engine, preflight, resume_check, run

    stop_signals.begin_start()
    config.validate(cfg)
    run_dir, world = Path(cfg.run), distributed.init_distributed(cfg.trainer.watchdog_seconds)
    resume_from, skipped = checkpoint.resolve_resume(run_dir, cfg.resume, world)
    dataset = data.open_datasets(cfg)
    model_config = engine.model_config(cfg, dataset)
    cfg.trainer.steps = data.steps_from_compute_budget(cfg, model_config, dataset, world)
    settings = resume_check.training_settings(cfg, dataset.content_digests(), world.world_size)
    changes = resume_check.check_resume(resume_from, cfg, model_config, world, settings)
    if preflight.run_preflight(cfg, model_config, dataset, world, resume_from):
        return 0
    model = engine.build_model(cfg, model_config, dataset, from_pretrained=resume_from is None)
    with run.init_run_dir(cfg, run_dir, world, skipped, overridden_settings()):
        trainer = run.build_trainer(cfg, model, dataset, world, settings, resume_from)
        run.log_run_summary(cfg, trainer, dataset, changes)
        tracker, code = run.start_tracker(cfg, dataset, trainer), 1
        try:
            on_log = run.make_log_callback(cfg, tracker, trainer, dataset)
            code = trainer.train(on_log, lambda folder: tracker.log_artifact("checkpoint", folder))
            if world.is_main:
                run.export_newest(trainer, tracker, partial(model_card.write_model_card, datasets=dataset.folders))
        finally:
            tracker.close(code)
    return code


if __name__ == "__main__":
    main()
