"""Measure a trained model on clips that it has not seen, and write what it makes of their prompts.

  python -m pipeline.evaluate run=runs/quickstart shards=shards/notes
  python -m pipeline.evaluate run=RUN shards=DIR n=256 temperatures=[0.5,0.7,0.9] sampling.guidance=2 split=test

Prints and writes to RUN/listen/evaluate.json:
  loss         nats a code over all validation clips, beside codebook histograms of the training clips (unigram)
               and ln 1024 (uniform)
  fidelity     cosine of a prompt and the embedding of what was made from it. Ceiling: the codec's reconstruction of
               the prompt's own clip; floor: other clips' reconstructions
  pitch        share of notes within half a semitone of the clip's label; pitch class: octaves aside. Ceiling: the
               codec's reconstruction; floor: other clips' labels
Brackets hold 95 % intervals by bootstrap over clips. RUN/listen/ has the wavs: {clip}.codec.wav is the codec's
reconstruction, {clip}.t0.7.wav a generation at temperature 0.7.

What people change: n=, temperatures=, sampling.guidance=, split=, out=, seed=, device=.
"""

from __future__ import annotations

from omegaconf import DictConfig

from pipeline.config import entry


@entry("evaluate")
def main(cfg: DictConfig) -> None:
    """Measure, write, and print the figures."""
    from pathlib import Path

    import numpy as np

    from pipeline.cache.stream import Split
    from pipeline.listen import evaluation as ev
    from pipeline.listen import tables
    from pipeline.listen.instrument import open_run
    from pipeline.listen.loss import measure
    from pipeline.listen.pieces import sampling_of

    sampling, out = sampling_of(cfg.sampling), Path(cfg.out)
    instrument = open_run(cfg.run, cfg.device, cfg.repository, cfg.embedder_source)
    valid, train = Split(cfg.shards, cfg.split), Split(cfg.shards, cfg.baseline)
    for split in (valid, train):
        ev.check_cache(split, instrument)
    frames = ev.most_frames(instrument)
    losses = measure(instrument.model, valid, train, frames, instrument.device)
    samples = ev.clips(valid, cfg.n, cfg.seed, instrument, frames)
    labels = ev.labels_of(samples) if cfg.pitch == "auto" else None
    prompts = np.stack([sample.prompt for sample, _ in samples]).astype(np.float32)
    batch = 256 if cfg.batch == "auto" else int(cfg.batch)
    made = ev.play(instrument, samples, list(cfg.temperatures), sampling, cfg.seed, batch)
    real = ev.voice("codec", [codes for _, codes in samples], instrument, labels)
    voices = {t: ev.voice(f"t{t:g}", codes, instrument, labels) for t, codes in made.items()}
    told = {
        "loss": losses.told(instrument.codec.frame_rate),
        "temperatures": {f"{t:g}": ev.measured(v, prompts, labels, cfg.resamples, cfg.seed) for t, v in voices.items()},
        "ceiling": ev.measured(real, prompts, labels, cfg.resamples, cfg.seed),
        "floor": ev.floors(next(iter(voices.values())), real, prompts, labels, cfg.resamples, cfg.seed),
        "settings": {"shards": str(cfg.shards), "split": cfg.split, "n": len(samples), "guidance": sampling.guidance,
                     "top_k": sampling.top_k, "top_p": sampling.top_p, "seed": cfg.seed},
        **instrument.identity,
    }  # fmt: skip
    ev.write_wavs(out, samples, [real, *voices.values()], instrument.codec.sample_rate)
    ev.write_json(out / "evaluate.json", told)
    tables.show(told, out)


if __name__ == "__main__":
    main()
