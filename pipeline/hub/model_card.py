"""The model card: training data, model, training, evaluation, use and licences.

All facts come from the run folder, and from the datasets where they are still available; licences and citations from
the registries of corpora, codecs and embedders. `model_card.md.jinja` is its text. Unknown facts are left out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from markupsafe import Markup
from safetensors import safe_open

from pipeline.audio.codecs import CODECS
from pipeline.audio.embedders import EMBEDDERS
from pipeline.common.errors import InputError, one_line, redact
from pipeline.common.files import sha256_file, write_atomic
from pipeline.common.metrics_file import read_metrics
from pipeline.common.versions import THIS_PACKAGE, package_versions
from pipeline.corpora import CORPORA
from pipeline.data.manifest import Manifest
from pipeline.data.storage import is_remote
from pipeline.evaluation import run_folder
from pipeline.evaluation.metrics import list_metrics
from pipeline.evaluation.results import read_evaluation
from pipeline.models import model_stats
from pipeline.models.model_config import ModelConfig
from pipeline.models.model_files import WEIGHTS
from pipeline.models.quantization import is_quantized

log = logging.getLogger("pipeline")
FILE_NAME = "README.md"  # as the hub expects it
PACKAGES = (THIS_PACKAGE, "torch", "transformers", "deepspeed", "encodec")


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
    try:
        config = ModelConfig.parse(metadata["model"])
        card: str = _TEMPLATE.render(
            header=Markup(_header(config)),
            settings=settings,
            trainer=settings["trainer"],
            optim=settings["optim"],
            pretrained=settings["model"].get("pretrained"),
            base=_describe_base(settings, metadata),
            state=metadata,
            config=config,
            codec=config.codec,
            embedder=config.embedder,
            conditions=[each.describe() for each in config.condition_settings],
            datasets=[_describe_dataset(address, settings["data"]) for address in datasets.values()],
            parameters=model_stats.parameter_counts(config),
            losses=_last_losses([row for row in read_metrics(run) if row["step"] <= metadata["step"]]),
            versions=package_versions(PACKAGES),
            weights=list(_weights(config)),
            is_quantized=_is_quantized(folder / WEIGHTS),
            **_evaluation(run, folder),
        )
        return card
    except (KeyError, TypeError, ValueError, AttributeError, TemplateError) as error:
        if isinstance(error, InputError):
            raise
        why = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"pipeline.train did not write {run}/config.yaml or {checkpoint} ({why:.200})") from error


def _describe_base(settings: Mapping[str, Any], metadata: Mapping[str, Any]) -> str | None:
    """The repository or the name of the folder of the fine-tuned model, and its sha256; no local path is published."""
    source = settings.get("finetune", {}).get("from")
    if source is None:
        return None
    folder = Path(source)  # absolute, or a repository
    name = source if not folder.is_absolute() else folder.parent.name if folder.name == "export" else folder.name
    return f"{name}, {metadata['settings']['finetune.from']}"


def _is_quantized(weights: Path) -> bool:
    if not weights.exists():
        return False
    with safe_open(weights, "pt") as file:
        return is_quantized(file.keys())


def _local_datasets(settings: Mapping[str, Any]) -> dict[str, str]:
    shards = settings.get("shards")
    by_name = shards if isinstance(shards, dict) else {"": shards}
    return {name: folder for name, folder in by_name.items() if isinstance(folder, str) and not is_remote(folder)}


def _escape(value: Any) -> Any:
    """Redact a text, and replace the characters with a meaning in Markdown or HTML by entities."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return Markup(re.sub(r"[<>&|`\[\]\\]", lambda sign: f"&#{ord(sign[0])};", " ".join(redact(value).split())))
    return value


def _header(config: ModelConfig) -> str:
    from huggingface_hub import ModelCardData

    tags = ["audio", "audio-generation", "audio-language-model", str(_escape(config.codec["name"]))]
    return str(ModelCardData(library_name=THIS_PACKAGE, tags=tags).to_yaml())


def _describe_dataset(address: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The name of a dataset, the clips and hours of its splits, and its source, where it is available."""
    name = Path(redact(address).partition("?")[0]).name
    try:
        manifest = Manifest.load(address)
    except Exception:  # each storage raises different errors, and the export must not fail for them
        return {"name": name, "splits": None}
    name = str(manifest.data.get("name", name))
    splits = {split: (manifest.num_samples(split), manifest.hours(split)) for split in (data["train"], data["valid"])}
    corpus = dict(CORPORA.items()).get(name)
    return {"name": name, "splits": splits, "source": corpus.credit() if corpus else None}


def _last_losses(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, float]]:
    """The last step and value of each loss."""
    names = {"train/loss": "training", "val/loss": "validation"}
    return {title: (row["step"], row[name]) for name, title in names.items() for row in rows if name in row}


def _weights(config: ModelConfig) -> Iterator[tuple[str, str, Any]]:
    """What needs which weights: a phrase, the name of a codec or embedder, and its class if it is registered."""
    codec, embedder = str(config.codec["name"]), str(config.embedder["name"])
    yield "Decoding", codec, dict(CODECS.items()).get(codec)
    yield "Prompts", embedder, dict(EMBEDDERS.items()).get(embedder.partition("/")[0])


def _evaluation(run: Path, folder: Path) -> dict[str, Any]:
    """The results of `pipeline.evaluate` as values of the template, if it evaluated the exported weights."""
    try:
        result = read_evaluation(run / "evaluation" / "evaluate.json")
    except InputError as error:
        log.warning("the model card shows no evaluation: %s", error)
        result = None
    if result is None or result.export.sha256 != sha256_file(folder / WEIGHTS):
        return {"evaluation": None}
    metrics = {name: metric for name, metric in list_metrics().items() if name in result.ceiling}
    rows = {
        title: [Markup(metric.format(values.get(name))) for name, metric in metrics.items()]
        for title, values in result.rows().items()
    }
    return {"evaluation": result, "metrics": [metric.heading for metric in metrics.values()], "rows": rows.items()}


def _load_template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, finalize=_escape,
    )  # fmt: skip
    environment.filters["thousands"] = "{:,}".format
    return environment.get_template("model_card.md.jinja")


_TEMPLATE = _load_template()
