"""Make sound with a trained model.

  python -m pipeline.generate run=quickstart/run prompt=a.wav out=b.wav
  python -m pipeline.generate run=RUN prompt=a.wav out=b.wav sampling.temperature=0.7 seconds=4 seed=3
  python -m pipeline.generate run=RUN prompt=[a.wav,DIR,'*.flac'] n=4 out=DIR          many prompts, 4 sounds of each
  python -m pipeline.generate run=RUN mode=interpolate prompt=[a.wav,b.wav] steps=15 out=c.wav
  python -m pipeline.generate run=RUN mode=morph keyframes='[{at: 0, prompt: a.wav}, {at: 4, prompt: b.wav}]' seconds=8
  python -m pipeline.generate run=RUN mode=continue prompt=a.wav seconds=30 stream=true out=c.wav
  python -m pipeline.generate run=RUN mode=extend audio=a.wav seconds=6 out=c.wav
  python -m pipeline.generate from=b.json out=again.wav

Any sound file is a prompt; without one the model plays what it likes. Modes:
  prompt       each clip whole, from one prompt
  interpolate  clips on the way from prompt to prompt, joined by short fades
  morph        one piece whose prompt moves from keyframe to keyframe
  continue     a piece of any length: it looks back over a window that moves on
  extend       goes on with a sound's own codes
Beside b.wav stands b.json: the model's sha256, the seed, every setting, the prompts and their sha256, the codec and the
embedder; from=b.json makes that very sound again. The same seed gives the same codes alone or among others. Only what
generate wrote itself is replaced. Of many prompts, those that cannot be read are skipped and named, and the exit code
is 1 at the end. Stopped by Ctrl-C, what is made is kept, and from= makes as much again. from= goes with out=, device=,
batch=, and run=, codec_weights=, embedder_weights= where these have moved; prompts are also looked for
beside the .json.

What people change: prompt=, out=, seconds=, n=, seed=, sampling.temperature= (one, or one a codebook), sampling.top_k=,
sampling.top_p=, sampling.min_p=, sampling.guidance=, device=.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from pipeline.config.cli import hydra_command, overridden_settings

CLIPPED = 1e-4  # share of a sound's samples at full scale from which on it is told


@hydra_command("generate")
def main(cfg: DictConfig) -> int:
    """Generate, print what was written, and return the exit code."""
    import logging
    from sys import stderr

    from omegaconf import OmegaConf
    from rich.console import Console

    from pipeline.common.errors import InputError
    from pipeline.generation import output_paths, sidecar
    from pipeline.generation.loaded_run import limit_threads, load_run
    from pipeline.generation.request import build_requests, num_samples, parse_sampling, resolve_window
    from pipeline.generation.runner import generate_files, stream_files

    logging.basicConfig(format="%(message)s")
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    told = sidecar.read(cfg["from"]) if cfg["from"] else None
    if told:
        sidecar.check_overrides(cfg["from"], overridden_settings())
        settings |= told["settings"]
    elif cfg.run is None:
        raise InputError("run=RUN: give the run to play, e.g. run=quickstart/run")
    output_paths.check_output(settings["out"])
    run = sidecar.find_run(cfg["from"], told) if told and not cfg.run else cfg.run
    instrument = load_run(run, cfg.device, cfg.codec_weights, cfg.embedder_weights, settings["batch_invariant"])
    if told:
        sidecar.check_run(cfg["from"], told, instrument)
    sampling, frames = (
        parse_sampling(settings["sampling"]),
        instrument.codec.num_frames(num_samples(settings, instrument)),
    )
    skipped: list[str] = []
    window, found = resolve_window(settings, frames, instrument), build_requests(settings, instrument, skipped)
    for line in skipped:
        print(f"skipped: {line}", file=stderr, flush=True)
    output_paths.check_no_overwrite([piece.out for piece in found], [s.path for piece in found for s in piece.sources])
    limit_threads(instrument, sum(len(piece.clips) for piece in found))
    batch = instrument.best_batch(window.frames if window else frames) if cfg.batch == "auto" else cfg.batch
    part = told if told and told.get("frames") else {}  # a sound that was interrupted, to be made as far as it went
    seconds, where = (
        found[0].total_samples / instrument.codec.sample_rate,
        f"{instrument.folder} on {instrument.device}",
    )
    print(f"{len(found)} sound{'s' * (len(found) > 1)} of {part.get('seconds', seconds):g} s by {where}", flush=True)
    same, loudest = True, 0.0
    with Console(stderr=True).status("making") as status:
        if settings["stream"]:
            makes = stream_files(instrument, found, sampling, window, settings["chunk"], part.get("seconds"))
        else:
            repeat, until = told and told["batch"], part.get("frames")
            makes = generate_files(instrument, found, sampling, window, batch, status.update, repeat, stop_frames=until)
        for made in makes:
            same = told is None or made.codes_sha256 == told["codes_sha256"]
            note = "" if told is None else "  the same codes" if same else "  NOT the same codes"
            note = note if made.is_complete or part else "  kept, but not whole: interrupted"
            print(f"{made.path}  {made.seconds:.3f} s{note}", flush=True)
            loudest = max(loudest, made.clipped_fraction)
    if loudest >= CLIPPED:
        print(
            f"warning: up to {loudest:.2%} of a sound's samples are at full scale, where they are cut off", file=stderr
        )
    if skipped:
        print(f"error: {len(skipped)} prompts could not be read and were skipped: see above", file=stderr)
    return 0 if same and not skipped else 1


if __name__ == "__main__":
    main()
