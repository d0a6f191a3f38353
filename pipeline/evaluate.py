"""Evaluate a trained model on clips that it was not trained on, and write sounds generated from their prompts.

  python -m pipeline.evaluate run=quickstart/run shards=quickstart/shards
  python -m pipeline.evaluate run=RUN shards=DIR corpus_root=data/nsynth     adds the original recordings
  python -m pipeline.evaluate run=RUN shards=DIR n=256 temperatures=[0.5,0.7,0.9] sampling.guidance=2 split=test

Prints, and writes to RUN/evaluation/evaluate.json:
  loss              nats per code and bits per second over all validation clips; baselines: code frequencies of the
                    training clips (unigram), ln of the codebook size (uniform)
  prompt fidelity   cosine similarity of the prompt and the embedding of the generated sound. Ceiling: the codec's
                    reconstruction of the prompt's own clip; floor: reconstructions of other clips
  pitch             fraction of notes within half a semitone of the clip's label (class: octaves are ignored); floor:
                    labels of other clips
  controlled pitch  if the model has a pitch condition, which requests the pitch of another clip: fraction of notes with
                    this pitch, and with that of the prompt's clip, for the prompt alone, the label alone and both
  timbre            fraction of sounds that are nearest to their prompt's instrument among real notes of one pitch: at
                    other pitches than the prompt's if the model has a pitch condition; instrument=LABEL
  families          metrics by instrument family, with the worst named; by=LABEL groups the clips by another label
  Fréchet distance  between the embeddings of n sounds and of all validation clips: lower is better; depends on n and
                    on the embedding: compare it with the ceiling, not with other papers. n → ∞: extrapolated
                    to infinitely many sounds (FAD-inf), from 32 sounds on
  KAD               kernel distance between the same embeddings: unbiased for any n
  distances         these distances in the spaces of the prompts, of the codec's latents and of other embedders
                    (spaces=[prompt,codec,clap]), also those of training clips; the files of outliers
  length            with length=60: sounds of 60 s by stretches of 5 s: the same metrics, and the level (dB against the
                    clip and against the first stretch); a sound that ended is silent, and counted as ended
  different         Vendi score of the embeddings: n if all sounds differ, 1 if all are equal
  coverage          fraction of the n clips that have a sound closer than their 5th nearest clip; density: the number of
                    such clips of each sound, divided by 5. About 97 % and 1 for other sounds of the same kind
  memorization      copies: fraction of sounds with more codes of one training clip than 99 % of real clips have; codes
                    in common and cosine, with the nearest clip of each; the clips of the split are the floor
  silent, loops     fraction of sounds whose last quarter is silent, but not that of the clip; whose last half repeats
                    with one period in all codebooks (steady tones do: see the ceiling)
Brackets: 95 % intervals by bootstrap over clips. RUN/evaluation/ gets the wavs: {clip}.codec.wav is the codec's
reconstruction, {clip}.t0.7.wav a generation at temperature 0.7. See also pipeline.report.
What people change: n=, protocol= (a paper's split, clips and labels), temperatures=, sampling.guidance=, split=, out=,
seed=, wandb=true, device=.
"""

from __future__ import annotations

from pipeline.config.cli import hydra_command
from pipeline.evaluation.settings import EvaluateSettings


@hydra_command(EvaluateSettings)
def main(settings: EvaluateSettings) -> None:
    """Evaluate, write the results, and print them."""
    from pathlib import Path

    from rich.console import Console

    from pipeline.common.files import check_output_folder
    from pipeline.common.settings import format_command
    from pipeline.evaluation.analyses import select_analyses
    from pipeline.evaluation.evaluator import MAX_LOGGED_CLIPS, analyze, evaluate
    from pipeline.evaluation.run_folder import read_config
    from pipeline.evaluation.tables import print_evaluation
    from pipeline.generation.loaded_run import load_run
    from pipeline.tracking.run_tracker import build_tracker, find_tracked_run

    out = Path(settings.out)
    check_output_folder("out", out)
    folder, analyses = Path(settings.run), select_analyses(settings)
    tracked = find_tracked_run(folder, read_config(folder)) if settings.wandb else None
    run = load_run(settings.run, settings.device, settings.codec_weights, settings.embedder_weights)
    with Console(stderr=True).status("evaluating") as status:
        evaluation = analyze(evaluate(settings, run, status.update), settings, analyses, status.update)
    evaluation.write(out)
    if tracked:
        tracker, step = build_tracker(*tracked), tracked[1].step
        tracker.log(step, {f"eval/{name}": value for name, value in evaluation.result.flatten().items()})
        tracker.log_audio(step, evaluation.sounds_by_clip(MAX_LOGGED_CLIPS), run.codec.sample_rate)
        tracker.close()
    print_evaluation(Console(), evaluation.result)
    print(f"sounds: {out}/*.wav   results: {out}/evaluate.json")
    print(f"next: {format_command('report', run=settings.run, shards=settings.shards)}")


if __name__ == "__main__":
    main()
