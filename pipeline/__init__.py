"""Train a language model over neural-codec audio tokens, and generate audio with it.

From Python:

    import pipeline

    run = pipeline.load_run("runs/delay_gpt2")
    audio = run.generate(prompt="a.wav", seconds=4, temperature=0.7)
    audio.samples, audio.rate                        # float32 [S], Hz

    for batch in pipeline.open_dataset("shards/nsynth").loader(batch_size=16):
        batch.codes                                  # [B, K, T]

    codec = pipeline.load_codec("encodec_24khz", codebooks=8)
    embedder = pipeline.load_embedder("encodecmae_tiny")

From a shell: `python -m pipeline` lists the commands, which are the files of this folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.audio.codecs import load_codec as load_codec
    from pipeline.audio.embedders import load_embedder as load_embedder
    from pipeline.data.open_dataset import open_dataset as open_dataset
    from pipeline.generation.loaded_run import load_run as load_run

_API = ("load_codec", "load_embedder", "load_run", "open_dataset")  # no __all__: pdoc cannot resolve lazy names
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a function of the public API when it is first used, so that commands start fast."""
    if name == "load_run":
        from pipeline.generation.loaded_run import load_run

        return load_run
    if name == "open_dataset":
        from pipeline.data.open_dataset import open_dataset

        return open_dataset
    if name == "load_codec":
        from pipeline.audio.codecs import load_codec

        return load_codec
    if name == "load_embedder":
        from pipeline.audio.embedders import load_embedder

        return load_embedder
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])
