"""The model card: training data, model, training, evaluation, use and licences.

All facts come from the run folder, and from the datasets where they are still available. Unknown facts are left out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.audio.codecs import CODECS, CodecSettings
from pipeline.audio.embedders import EMBEDDERS, EmbedderSettings
from pipeline.common.errors import InputError, one_line, redact
from pipeline.common.files import sha256_file, write_atomic
from pipeline.common.metrics_file import read_metrics
from pipeline.common.versions import package_versions
from pipeline.corpora import CORPORA
from pipeline.data.manifest import Manifest
from pipeline.data.storage import is_remote
from pipeline.evaluation import run_folder
from pipeline.models import model_stats
from pipeline.models.codec_gpt import WEIGHTS, ModelConfig

log = logging.getLogger("pipeline")
FILE_NAME = "README.md"  # as the hub expects it
PACKAGES = ("codec-audio-lm", "torch", "transformers", "deepspeed", "encodec")
METRIC_TITLES = {"fidelity": "prompt fidelity", "pitch": "correct pitch", "pitch_class": "correct pitch class"}
USE = """## Use

`FOLDER` is this folder. With the `codec-audio-lm` package, from a shell:

```
python -m pipeline.generate run=FOLDER prompt=a.wav out=b.wav seconds=4
```

or from Python:

```python
import pipeline
from pipeline.models.codec_gpt import CodecGPT

run = pipeline.load_run("FOLDER")           # the model, with the codec and the embedder of its training
audio = run.generate(prompt="a.wav", seconds=4)
model = CodecGPT.from_pretrained("FOLDER")  # the model only; also "OWNER/NAME" on the hub
```
"""


def write_model_card(
    checkpoint: Path,
    metadata: Mapping[str, Any],
    folder: Path | None = None,
    datasets: Mapping[str, str] | None = None,
) -> Path:
    """Write the card of an exported checkpoint next to its weights, atomically.

    Args:
        checkpoint: The checkpoint folder.
        metadata: The metadata of the checkpoint.
        folder: The folder of the export; `RUN/export` by default.
        datasets: The addresses of the datasets, by name. By default those in the run's settings, remote ones left out:
            a run folder does not decide what is fetched.

    Returns:
        The path of the card.

    Raises:
        InputError: The run folder has no settings, or pipeline.train did not write them.
    """
    folder = folder or checkpoint.absolute().parents[1] / "export"
    write_atomic(folder / FILE_NAME, render_model_card(checkpoint, metadata, folder, datasets))
    return folder / FILE_NAME


def render_model_card(
    checkpoint: Path, metadata: Mapping[str, Any], folder: Path, datasets: Mapping[str, str] | None = None
) -> str:
    """Return the card as Markdown with the hub's YAML header. See `write_model_card`."""
    run = checkpoint.absolute().parents[1]
    if not (run / "config.yaml").exists():
        raise InputError(f"{run} has no config.yaml: expected a run folder of pipeline.train")
    settings = run_folder.read_config(run)
    datasets = _local_datasets(settings) if datasets is None else datasets
    settings, state = _escape(settings), _escape(dict(metadata))
    rows = [row for row in read_metrics(run) if row["step"] <= state["step"]]
    try:
        config = ModelConfig.parse(state["model"])
        parts = [
            _header(settings, config),
            _section("Data", _data_facts(settings, datasets)),
            _section("Model", _model_facts(settings, config)),
            _section("Training", _training_facts(settings, state, rows)),
            *_evaluation(run, folder),
            USE,
            _licences(settings, config),
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        why = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"pipeline.train did not write {run}/config.yaml or {checkpoint} ({why:.200})") from error
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _local_datasets(settings: Mapping[str, Any]) -> dict[str, str]:
    shards = settings.get("shards")
    by_name = shards if isinstance(shards, dict) else {"": shards}
    return {name: folder for name, folder in by_name.items() if isinstance(folder, str) and not is_remote(folder)}


def _escape(value: Any) -> Any:
    """Redact texts from files, and replace the characters with a meaning in Markdown or HTML by entities."""
    if isinstance(value, str):
        return re.sub(r"[<>&|`\[\]\\]", lambda sign: f"&#{ord(sign[0])};", " ".join(redact(value).split()))
    if isinstance(value, dict):
        return {_escape(name): _escape(item) for name, item in value.items()}
    return [_escape(item) for item in value] if isinstance(value, list) else value


def _header(settings: Mapping[str, Any], config: ModelConfig) -> str:
    from huggingface_hub import ModelCardData

    tags = ["audio", "audio-generation", "audio-language-model", config.codec["name"]]
    return f"""---
{ModelCardData(library_name="codec-audio-lm", tags=tags).to_yaml()}
---
# {settings["name"]}

A language model over the tokens of a neural audio codec ({config.codec["name"]}, {config.codebooks} codebooks in the
{config.pattern} pattern). Its prompt is the embedding of a sound ({config.embedder["name"]}). It generates the tokens
of a similar sound, and the codec decodes them to audio.
"""


def _data_facts(settings: Mapping[str, Any], datasets: Mapping[str, str]) -> dict[str, str]:
    facts: dict[str, str] = {}
    for folder in datasets.values():
        folder_name = _escape(Path(redact(folder).partition("?")[0]).name)
        try:
            manifest = Manifest.load(folder)
        except Exception:  # each storage raises different errors, and the export must not fail for them
            facts[f"dataset `{folder_name}`"] = "not available when this card was written"
            continue
        name = _escape(str(manifest.data.get("name", folder_name)))
        for split in (settings["data"]["train"], settings["data"]["valid"]):
            clips, hours = manifest.num_samples(split), manifest.hours(split)
            facts[f"{name}, {split}"] = f"{hours:,.3g} hours in {clips:,} clips"
        if corpus := dict(CORPORA.items()).get(name):
            facts[f"{name}, source"] = corpus.credit()
    if settings.get("mixture_weights"):
        facts["mixture weights"] = ", ".join(f"{name} {weight}" for name, weight in settings["mixture_weights"].items())
    return facts


def _model_facts(settings: Mapping[str, Any], config: ModelConfig) -> dict[str, str]:
    counts, pretrained = model_stats.parameter_counts(config), settings["model"].get("pretrained")
    codec, embedder = config.codec, config.embedder
    return {
        "parameters": f"{sum(counts.values()):,} (" + ", ".join(f"{name} {n:,}" for name, n in counts.items()) + ")",
        "architecture": f"GPT-2, {config.layers} layers, {config.heads} heads, width {config.width}, "
        f"{config.positions:,} positions",
        "initialization": f"pretrained weights of {pretrained}" if pretrained else "from scratch",
        "pattern": f"{config.pattern}, {config.codebooks} codebooks of {config.codebook_size:,} codes",
        "end of audio": "learned" if config.end_of_audio else "not learned: clips have the requested length",
        "codec": f"{codec['name']}, {codec['sample_rate']:,} Hz, {codec['frame_rate']} frames per second, weights "
        f"sha256 `{codec['weights'][:16]}`",
        "embedder": f"{embedder['name']}, width {config.prompt_dim}, weights sha256 `{embedder['weights'][:16]}`",
    }


def _training_facts(
    settings: Mapping[str, Any], state: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    trainer, optimizer = settings["trainer"], settings["optim"]
    clips = trainer["micro_batch"] * trainer["gradient_accumulation_steps"] * state["ranks"]
    facts = {
        "steps": f"{state['step']:,} of {trainer['steps']:,}",
        "clips seen": f"{state['place']:,} ({clips:,} per step, {state['ranks']} rank{'s' * (state['ranks'] != 1)})",
        "optimizer": f"AdamW, peak learning rate {optimizer['lr']:g}, {optimizer['schedule']['name']} schedule, weight "
        f"decay {optimizer['weight_decay']:g}",
    }
    if trainer.get("ema"):
        facts["weights"] = f"exponential moving average, decay {trainer['ema']}"
    for split, name in (("train", "training"), ("val", "validation")):
        losses = [(row["step"], row[f"{split}/loss"]) for row in rows if row.get(f"{split}/loss") is not None]
        if losses:
            facts[f"{name} loss"] = f"{losses[-1][1]:.4f} nats per code at step {losses[-1][0]:,}"
    versions = package_versions(PACKAGES)
    return {**facts, "software": ", ".join(f"{name} {version}" for name, version in versions.items())}


def _evaluation(run: Path, folder: Path) -> Iterator[str]:
    """The results of `pipeline.evaluate`, if it evaluated the exported weights."""
    try:
        results = _escape(run_folder.read_evaluation(run / "evaluation" / "evaluate.json"))
    except InputError as error:
        log.warning("the model card shows no evaluation: %s", error)
        return
    if results is None or results["export"]["sha256"] != sha256_file(folder / WEIGHTS):
        return
    losses, settings = results["loss"], results["settings"]
    yield "## Evaluation\n"
    yield f"By `python -m pipeline.evaluate` on {losses['clips']:,} clips of the {settings['split']} split.\n"
    yield _table(
        ["loss (nats per code)", *(f"codebook {k + 1}" for k in range(len(losses["model"]["nats_codebook"])))],
        [
            [f"{name}: {losses[name]['nats']:.3f}", *(f"{x:.3f}" for x in losses[name]["nats_codebook"])]
            for name in ("model", "unigram", "uniform")
        ],
    )
    rows = {"floor": results["floor"]} | {f"temperature {t}": row for t, row in results["temperatures"].items()}
    rows["ceiling (the codec's reconstruction)"] = results["ceiling"]
    names = [name for name in METRIC_TITLES if name in results["ceiling"]]
    yield f"Generated from the prompts of {settings['n']} clips; 95 % confidence intervals in brackets.\n"
    yield _table(
        ["", *(METRIC_TITLES[name] for name in names)],
        [[title, *(_format_metric(row.get(name)) for name in names)] for title, row in rows.items()],
    )


def _format_metric(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return "-"
    low_high = f" [{metric['interval'][0]:.3f}, {metric['interval'][1]:.3f}]" if "interval" in metric else ""
    return f"{metric['mean']:.3f}{low_high}"


def _licences(settings: Mapping[str, Any], config: ModelConfig) -> str:
    codec, embedder = config.codec["name"], config.embedder["name"].partition("/")[0]
    notes = [f"Decoding needs the weights of {codec}."]
    if codec in CODECS.names():
        notes = [f"Decoding needs {_describe_weights(CODECS.get(codec))}"]
    if embedder in EMBEDDERS.names():
        notes.append(f"Prompts need {_describe_weights(EMBEDDERS.get(embedder))}")
    if pretrained := settings["model"].get("pretrained"):
        notes.append(f"Training started from `{pretrained}`, whose licence applies to the result.")
    notes.append("The owner of this model decides about the licence of the weights in this folder.")
    return "## Licences\n\n" + "".join(f"- {note}\n" for note in notes)


def _describe_weights(extension: type[CodecSettings] | type[EmbedderSettings]) -> str:
    text = extension.title + (f" ({extension.citation}), which are not in this folder" if extension.citation else "")
    source = getattr(extension, "default_source", None) or ""
    return text + (f" (`{source}` on the hub)" if "/" in source else "") + f". {extension.licence}"


def _section(title: str, facts: Mapping[str, str]) -> str:
    return f"## {title}\n\n" + _table(["", ""], [[name, value] for name, value in facts.items()])


def _table(header: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"

    return line(header) + line(["---"] * len(header)) + "".join(line(row) for row in rows)
