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
from pipeline.config.cli import hydra_command, overridden_settings
from pipeline.training.settings import TrainSettings


@hydra_command(TrainSettings)
def main(settings: TrainSettings) -> int:
    """Wire data, model, trainer and tracker; train; export."""
    from pipeline.hub import model_card
    from pipeline.training import checkpoint, data, distributed, engine, finetune, preflight, resume_check, run
    from pipeline.training.context import RunContext

    stop_signals.begin_start()
    tracking = settings.tracking.with_environment(overridden_settings())
    base = finetune.open_base(settings.finetune)
    settings = finetune.inherit_settings(settings, base, overridden_settings())
    settings = settings.model_copy(update={"tracking": tracking})
    world = distributed.init_distributed(settings.trainer.watchdog_seconds)
    context = RunContext.create(settings, world)
    resume_from, skipped = checkpoint.resolve_resume(context.run_dir, settings.resume, world)
    dataset = data.open_datasets(context.settings, base)
    model_config = engine.model_config(context.settings, dataset, base)
    context = context.with_steps(data.steps_from_compute_budget(context, model_config, dataset, base))
    record = resume_check.training_settings(context, dataset.content_digests(), base)
    notes = base.notes(model_config, dataset.vocabularies) if base else []
    notes += resume_check.check_resume(resume_from, context, model_config, record, base) if resume_from else []
    if preflight.run_preflight(context, model_config, dataset, resume_from, base):
        return 0
    model = engine.build_model(context.settings, model_config, dataset, resume_from is None, base)
    with run.init_run_dir(context, skipped):
        trainer = run.build_trainer(context, model, dataset, record, resume_from)
        run.log_run_summary(context, trainer, dataset, notes)
        with run.RunObserver(context, trainer, dataset) as observer:
            observer.exit_code = trainer.train(observer)
            if world.is_main:
                run.export_newest(observer, partial(model_card.write_model_card, datasets=dataset.folders))
        if observer.exit_code == 0 and world.is_main:
            run.log_next_commands(context, dataset)
    return observer.exit_code


if __name__ == "__main__":
    main()
