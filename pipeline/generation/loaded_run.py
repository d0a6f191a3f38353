"""A trained model, with the codec and the embedder that its training data came from, ready to generate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from pipeline.audio.codecs import codec_of
from pipeline.audio.codecs.base import Codec
from pipeline.audio.embedders import embedder_of
from pipeline.audio.embedders.base import Embedder
from pipeline.audio.precision import codec_device
from pipeline.common.errors import InputError, first_line
from pipeline.common.machine import accelerator
from pipeline.common.versions import package_versions
from pipeline.generation.engine import InferenceEngine
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.lora import ADAPTER, is_adapter
from pipeline.models.model_files import WEIGHTS

if TYPE_CHECKING:
    from pipeline.generation.in_memory import Audio, Prompt
    from pipeline.generation.settings import ConditionValue

SMALL_MODEL = 16_000_000  # parameters
FEW_CLIPS = 8
PACKAGES = ("codec-audio-lm", "torch", "transformers", "encodec", "numpy", "soxr", "soundfile")


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with all that is needed to generate sound.

    Attributes:
        model: The model, in eval mode.
        engine: The model's inference engine.
        codec: The codec of the training data; decodes the generated codes.
        embedder: The embedder of the training data; turns prompts into vectors.
        folder: The export's folder.
    """

    model: CodecGPT
    engine: InferenceEngine
    codec: Codec
    embedder: Embedder
    folder: Path

    @property
    def sha256(self) -> str:
        """The sha256 of the file with the model's weights."""
        return self.model.weights_sha256

    @property
    def trained_frames(self) -> int | None:
        """The frames of the longest training clip, or None if the export does not say."""
        return self.model.config.frames

    @property
    def device(self) -> torch.device:
        """The device of the model, and where `codec_device` allows it, of the codec and the embedder."""
        return self.model.device

    def best_batch(self, frames: int, rows: int = 1) -> int:
        """The number of clips to generate at once: the KV cache then takes at most 1 GiB, on a GPU 8 GiB.

        Args:
            frames: Of each clip, or of its window.
            rows: Of the model for each clip; more than one with guidance.
        """
        config = self.model.config
        positions = self.model.pattern.num_steps(frames) + config.prefix_length - 1
        bytes_per_clip = 8 * config.layers * config.width * positions * rows  # float32 keys and values
        gibibytes = 8 if self.device.type == "cuda" else 1
        return max(1, min(256, (gibibytes << 30) // bytes_per_clip))

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that must be equal for the same seed to give the same sound."""
        return {
            "export": {"folder": str(self.folder.absolute()), "sha256": self.sha256},
            "codec": self.codec.identity,
            "embedder": self.embedder.identity,
            "versions": package_versions(PACKAGES),
            "device": str(self.device),
        }

    @overload
    def generate(
        self, prompt: Prompt | None = None, *, n: None = None, rate: int | None = None, seconds: float | None = None,
        seed: int = 0, mode: str = "prompt", batch: int | None = None, prompt_text: str | None = None,
        conditions: Mapping[str, ConditionValue] | None = None, **sampling: Any,
    ) -> Audio: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: Prompt | Sequence[Prompt] | None = None, *, n: int | None = None, rate: int | None = None,
        seconds: float | None = None, seed: int = 0, mode: str = "prompt", batch: int | None = None,
        prompt_text: str | Sequence[str] | None = None, conditions: Mapping[str, ConditionValue] | None = None,
        **sampling: Any,
    ) -> list[Audio]: ...  # fmt: skip

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt] | None = None,
        *,
        n: int | None = None,
        rate: int | None = None,
        seconds: float | None = None,
        seed: int = 0,
        mode: str = "prompt",
        batch: int | None = None,
        prompt_text: str | Sequence[str] | None = None,
        conditions: Mapping[str, ConditionValue] | None = None,
        **sampling: Any,
    ) -> Audio | list[Audio]:
        """Generate audio, the same that `pipeline.generate` writes for the same settings and seed.

        Example:
            >>> import pipeline, soundfile
            >>> run = pipeline.load_run("runs/delay_gpt2")
            >>> audio = run.generate(prompt="a.wav", seconds=4, temperature=0.7)
            >>> audio.samples.shape, audio.rate
            ((96000,), 24000)
            >>> audio.save("b.wav")
            >>> samples, rate = soundfile.read("a.wav", dtype="float32")
            >>> several = run.generate(prompt=samples, rate=rate, n=2, seconds=1, top_k=50, seed=7)
            >>> [audio.seed for audio in several]
            [7, 8]
            >>> note = pipeline.load_run("runs/labeled").generate(conditions={"pitch": 60}, guidance={"pitch": 2})

        Args:
            prompt: An audio file, an array [S] or [S, channels] of floating-point samples, or a list of these. None: no
                prompt.
            n: The number of results for each prompt.
            rate: The sample rate of the arrays.
            seconds: The length of each result. By default the length of the training clips, or 4 s if that is unknown.
            seed: The seed of the first result; the following results use the following seeds.
            mode: `prompt`, or `continue` for results longer than the model reads, with a sliding window.
            batch: The number of results generated at once. By default as many as fit into memory, at most 256.
            prompt_text: A description of a sound as the prompt, or a list of them, after those of `prompt`. The run's
                embedder must read text, as `clap` does.
            conditions: Values of the model's conditions on labels, such as `{"pitch": 60}`, the same for all results.
            **sampling: Settings of `sampling`: temperature (0.7 by default), top_k, top_p, min_p, guidance.

        Returns:
            One `Audio`, or a list of them if `n` is given, or if there is a list of prompts or a sound and a text.

        Raises:
            InputError: A value is out of range.
            AudioError: A prompt cannot be read.
        """
        from pipeline.generation.in_memory import generate_audio

        texts = [prompt_text] if isinstance(prompt_text, str) else [*(prompt_text or [])]
        prompts: list[Any] = [*prompt] if isinstance(prompt, (list, tuple)) else [prompt]
        prompts = [] if texts and prompt is None else prompts
        has_list = isinstance(prompt, (list, tuple)) or not isinstance(prompt_text, (str, type(None)))
        one = n is None and not has_list and len(prompts) + len(texts) == 1
        changes = {"n": n, "seconds": seconds, "seed": seed, "mode": mode, "batch": batch, "conditions": conditions}
        results = generate_audio(self, prompts, texts, rate, sampling, changes)
        return results[0] if one else results


def limit_threads(run: LoadedRun, clips: int) -> None:
    """Use one CPU thread for a few clips of a small model, because its steps are too short to share among threads.

    On an idle machine this is a fifth slower, on a busy machine ten times faster. The sound does not change.
    """
    parameters = sum(p.numel() for p in run.model.parameters())
    if run.device.type == "cpu" and clips <= FEW_CLIPS and parameters < SMALL_MODEL:
        torch.set_num_threads(1)


def pick_device(name: str) -> torch.device:
    """The device with this name; "auto" is a GPU if there is one (CUDA or Apple's), else the CPU.

    Raises:
        InputError: There is no such device.
    """
    if name == "auto":
        return torch.device(accelerator())
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name}: {first_line(error)}; give auto, cpu, cuda:0 or mps") from None
    return device


def find_export(run: str | Path, setting: str = "run") -> Path:
    """The folder with a run's model: `run/export`, `run/export/adapter`, or `run` itself.

    Args:
        run: The run folder, or the folder of a model or of an adapter.
        setting: The setting that names it, for messages.

    Raises:
        InputError: None of them has a model.
    """
    run = Path(run)
    for folder in (run / "export", run / "export" / ADAPTER, run):
        if (folder / WEIGHTS).is_file() or is_adapter(folder):
            return folder
    if not run.is_dir():
        raise InputError(f"{setting}={run}: there is no such folder; pipeline.train writes runs/NAME")
    raise InputError(f"{setting}={run}: it has no export; create it: python -m pipeline.export run={run}")


def load_run(
    run: str | Path,
    device: str = "auto",
    codec_weights: str | None = None,
    embedder_weights: str | None = None,
    batch_invariant: bool = True,
) -> LoadedRun:
    """Load the model of a run, with the codec and the embedder of its training.

    Example:
        >>> import pipeline
        >>> run = pipeline.load_run("runs/delay_gpt2", device="cpu")
        >>> run.generate(prompt="a.wav", seconds=1).samples.shape
        (24000,)

    Args:
        run: A run folder, a folder with `model.safetensors` and `config.json`, or one with an adapter, whose base is
            where it was in training.
        device: `auto` (a GPU if there is one), `cpu`, `cuda:0` or `mps`.
        codec_weights: The folder with the codec's weights.
        embedder_weights: The embedder's weights, as `embedder.source`.
        batch_invariant: Whether results on a CPU have the same bits at any batch size; false is faster at batch size 1
            on some CPUs.

    Raises:
        InputError: The run has no export, or the weights of the codec or the embedder are not those of training.
    """
    folder, torch_device = find_export(run), pick_device(device)
    model = CodecGPT.from_pretrained(folder, str(torch_device))
    codec = _load_codec(model, folder, codec_weights, codec_device(torch_device))
    embedder = _load_embedder(model, folder, embedder_weights, codec_device(torch_device))
    return LoadedRun(model, InferenceEngine(model, batch_invariant), codec, embedder, folder)


def _load_codec(model: CodecGPT, folder: Path, codec_weights: str | None, device: torch.device) -> Codec:
    trained = model.config.codec
    if not trained:
        raise InputError(f"{folder}/config.json names no codec: train on a dataset that pipeline.preprocess wrote")
    codec = codec_of(trained, model.config.codebooks, codec_weights).open(device)
    _check_identity("codec", trained, codec.identity, folder, "codec_weights=FOLDER gives the folder with its weights")
    return codec


def _load_embedder(model: CodecGPT, folder: Path, source: str | None, device: torch.device) -> Embedder:
    trained = model.config.embedder
    if not trained:
        raise InputError(f"{folder}/config.json names no embedder: train on a dataset that pipeline.preprocess wrote")
    embedder = embedder_of(trained, source).load(device)
    _check_identity("embedder", trained, embedder.identity, folder, "embedder_weights=PATH gives its weights")
    return embedder


def _check_identity(part: str, trained: dict[str, Any], loaded: dict[str, Any], folder: Path, advice: str) -> None:
    """Raises InputError if the loaded codec or embedder is not that of training."""
    differing = [
        key for key in trained if key in loaded and trained[key] != loaded[key] and key not in ("codebooks", "version")
    ]
    if differing:
        differences = ", ".join(f"{part}.{key} {trained[key]!r}, not {loaded[key]!r}" for key in differing)
        raise InputError(f"{folder} was trained with {differences}, which was loaded: {advice}")
