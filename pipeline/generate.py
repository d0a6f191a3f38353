"""Generate sound with a trained model.

  python -m pipeline.generate run=quickstart/run prompt=a.wav out=b.wav
  python -m pipeline.generate run=RUN prompt=a.wav out=b.wav sampling.temperature=0.7 seconds=4 seed=3
  python -m pipeline.generate run=RUN conditions.pitch=60 sampling.guidance='{pitch: 3}'      labels, also with a prompt
  python -m pipeline.generate run=RUN prompt=[a.wav,DIR,'*.flac'] n=4 out=DIR          many prompts, 4 sounds for each
  python -m pipeline.generate run=RUN mode=interpolate prompt=[a.wav,b.wav] steps=15 out=c.wav
  python -m pipeline.generate run=RUN mode=morph keyframes='[{at: 0, prompt: a.wav}, {at: 4, prompt: b.wav}]' seconds=8
  python -m pipeline.generate run=RUN mode=continue prompt=a.wav seconds=30 stream=true out=c.wav
  python -m pipeline.generate run=RUN mode=extend audio=a.wav seconds=6 out=c.wav
  python -m pipeline.generate run=RUN prompt_text='a muted trumpet' out=c.wav      by a model with CLAP prompts
  python -m pipeline.generate from=b.json out=again.wav

Any sound file can be a prompt; without one the model generates freely. Modes:
  prompt       one clip for each prompt
  interpolate  clips from one prompt to the next, joined by crossfades
  morph        one sound whose prompt moves from keyframe to keyframe
  continue     a sound of any length, with a sliding window
  extend       continues the codes of a sound file
b.json next to b.wav stores the model's sha256, the seed, all settings, the prompts, the codec and the embedder:
from=b.json generates exactly that sound again (also with out=, run=, device=, batch= and the paths of weights). Prompts
that cannot be read are skipped, and the exit code is then 1. After Ctrl-C the part that was generated is kept.
What people change: prompt=, prompt_text=, conditions=, out=, seconds=, n=, seed=, sampling.temperature= (one, or one
per codebook), sampling.top_k=, sampling.top_p=, sampling.min_p=, sampling.guidance=, device=.
"""

from __future__ import annotations

from pipeline.config.cli import hydra_command, overridden_settings
from pipeline.generation.settings import GenerateSettings


@hydra_command(GenerateSettings)
def main(settings: GenerateSettings) -> int:
    """Generate, print what was written, and return the exit code."""
    import logging
    from sys import stderr

    from rich.console import Console

    from pipeline.generation.job import prepare_job

    logging.basicConfig(format="%(message)s")
    job = prepare_job(settings, overridden_settings(), lambda line: print(f"skipped: {line}", file=stderr, flush=True))
    print(job.summary, flush=True)
    with Console(stderr=True).status("generating") as status:
        for line in job.generate(status.update):
            print(line, flush=True)
    for line in job.problems():
        print(line, file=stderr)
    return job.exit_code


if __name__ == "__main__":
    main()
