"""Make sound with a trained model.

  python -m pipeline.generate run=runs/quickstart prompt=a.wav out=b.wav
  python -m pipeline.generate run=RUN prompt=a.wav out=b.wav sampling.temperature=0.7 seconds=4 seed=3
  python -m pipeline.generate run=RUN prompt=[a.wav,b.flac] n=4 out=DIR/clip.wav
  python -m pipeline.generate run=RUN out=b.wav                                       without a prompt

Any sound file is a prompt. Beside b.wav stands b.json: the model's sha256, the seed, every setting, the prompt and its
sha256, the codec and the embedder. The same seed gives the same codes alone or among others.

What people change: prompt=, out=, seconds=, n=, seed=, sampling.temperature=, sampling.top_k=, sampling.top_p=,
sampling.guidance=, device=.
"""

from __future__ import annotations

from omegaconf import DictConfig

from pipeline.config import entry


@entry("generate")
def main(cfg: DictConfig) -> None:
    """Generate, and print what was written."""
    from pathlib import Path

    from pipeline.errors import InputError
    from pipeline.listen.instrument import open_run
    from pipeline.listen.make import Order, make, sampling_of
    from pipeline.listen.prompts import embed, read_prompt

    sampling, n = sampling_of(cfg.sampling), int(cfg.n)
    if n < 1:
        raise InputError(f"n={n}: give 1 or more")
    instrument = open_run(cfg.run, cfg.device, cfg.repository, cfg.embedder_source)
    given = [] if cfg.prompt is None else [cfg.prompt] if isinstance(cfg.prompt, str) else list(cfg.prompt)
    prompts = [read_prompt(path, cfg.prompt_seconds, instrument.codec.sample_rate) for path in given]
    vectors = embed(instrument.embedder, [prompt.wav for prompt in prompts]) if prompts else []
    pairs = [(p, v) for p, v in zip(prompts, vectors, strict=True) for _ in range(n)] or [(None, None)] * n
    out = Path(cfg.out)
    names = [out] if len(pairs) == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(len(pairs))]
    orders = [Order(name, p, v, cfg.seed + i) for i, (name, (p, v)) in enumerate(zip(names, pairs, strict=True))]
    batch = (64 if instrument.device.type == "cuda" else 16) if cfg.batch == "auto" else int(cfg.batch)
    for path, wav in make(instrument, orders, cfg.seconds, sampling, batch):
        print(f"{path}  {len(wav) / instrument.codec.sample_rate:.3f} s")


if __name__ == "__main__":
    main()
