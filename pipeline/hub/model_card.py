"""A model's card: what it learned from and how, what it is worth, how to play it, and under which licences.

Everything in it is read from the run folder (and the cache, where it is still at hand); what is not known is left out.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.errors import InputError, one_line, redact
from pipeline.common.files import sha256_file, write_atomic
from pipeline.common.metrics_file import read_metrics
from pipeline.common.paths import CONF
from pipeline.common.versions import package_versions
from pipeline.data.manifest import Manifest
from pipeline.data.storage import is_remote
from pipeline.evaluation import run_folder
from pipeline.models import model_stats
from pipeline.models.codec_gpt import WEIGHTS, ModelConfig
from pipeline.training import checkpoint

log = logging.getLogger("pipeline")
NAME = "README.md"
PACKAGES = ("codec-audio-lm", "torch", "transformers", "deepspeed", "encodec")
NAMES = {"fidelity": "prompt fidelity", "pitch": "right pitch", "pitch_class": "right pitch class"}
CORPORA = {
    "nsynth": "NSynth (Engel et al. 2017, arXiv:1704.01279), published under CC BY 4.0",
    "jamendo": "MTG-Jamendo (Bogdanov et al. 2019), each track under the Creative Commons licence of its artist",
    "notes": "General MIDI notes rendered from a soundfont",
}
CODECS = {
    "encodec_24khz": "Decoding takes Meta's EnCodec weights (Défossez et al. 2022, arXiv:2210.13438), which are not in "
    "this folder. The metadata of the `encodec` 0.1.1 package names the Creative Commons "
    "Attribution-NonCommercial 4.0 International licence (CC-BY-NC-4.0).",
    "encodec_embedded": "Decoding takes the small codec that ships with the program, under the program's licence.",
}
TINY = "Prompts take the small embedder that ships with the program, under the program's licence."
MAE = (
    "Prompts take the EnCodecMAE weights of its authors (Pepino, Riera & Ferrer 2023, arXiv:2309.07391), which are not "
    "in this folder and are theirs to license{source}."
)


def write(found: Path, folder: Path | None = None, caches: Mapping[str, str] | None = None) -> Path:
    """Write the card of an exported checkpoint beside its weights, whole or not at all.

    Args:
        found: the checkpoint.
        folder: of the export, `RUN/export` if not given.
        caches: addresses that the user gave. Without them the local ones in the run's settings are read: what a run
            folder names is not fetched.

    Raises:
        InputError: the run folder has no settings, or others than pipeline.train writes.
    """
    folder = folder or found.absolute().parents[1] / "export"
    text = card(found, folder, caches)
    write_atomic(folder / NAME, text)
    return folder / NAME


def card(found: Path, folder: Path, caches: Mapping[str, str] | None = None) -> str:
    """The text of the card, in Markdown with the hub's header.

    Raises InputError for a run folder without its settings, or with others than pipeline.train writes.
    """
    run, state = found.absolute().parents[1], checkpoint.read_metadata(found)
    if not (run / "config.yaml").exists():
        raise InputError(f"{run} has no config.yaml: it is no run folder that pipeline.train wrote")
    settings = run_folder.read_config(run)
    if caches is None:
        named = settings.get("shards")
        named = named if isinstance(named, dict) else {"": named}
        caches = {name: place for name, place in named.items() if isinstance(place, str) and not is_remote(place)}
    settings, state = _plain(settings), _plain(state)
    rows = [row for row in read_metrics(run) if row["step"] <= state["step"]]
    try:
        config = ModelConfig.parse(state["model"])
        parts = [
            _head(settings, config),
            _section("Data", _data(settings, caches)),
            _section("Model", _model(settings, config)),
            _section("Training", _training(settings, state, rows)),
            *_figures(run, folder),
            _use(),
            _licences(settings, config),
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        why = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{run}/config.yaml or {found} is not what pipeline.train writes ({why:.200})") from error
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _plain(value: Any) -> Any:
    """Values of files, redacted and so that no text of them is Markdown or HTML: signs of these become entities."""
    if isinstance(value, str):
        return re.sub(r"[<>&|`\[\]\\]", lambda sign: f"&#{ord(sign[0])};", " ".join(redact(value).split()))
    if isinstance(value, dict):
        return {_plain(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _head(settings: Mapping[str, Any], config: ModelConfig) -> str:
    title = settings["name"]
    return f"""---
tags: [audio, audio-generation, audio-language-model, {json.dumps(config.codec["name"])}]
library_name: codec-audio-lm
---
# {title}

A language model over the tokens of a neural audio codec ({config.codec["name"]}, {config.codebooks} codebooks under
the {config.pattern} pattern). It is given one vector, the embedding of a sound ({config.embedder["name"]}), and
writes the tokens of a sound like it, which the codec turns into audio.
"""


def _data(settings: Mapping[str, Any], caches: Mapping[str, str]) -> dict[str, str]:
    told: dict[str, str] = {}
    for place in caches.values():
        shown = _plain(Path(redact(place).partition("?")[0]).name)
        try:
            manifest = Manifest.load(place)
        except Exception:  # each kind of store has errors of its own, and none is worth a trained model
            told[f"cache `{shown}`"] = "not at hand when this card was written"
            continue
        name = _plain(str(manifest.data.get("name", shown)))
        for split in (settings["data"]["train"], settings["data"]["valid"]):
            clips, hours = manifest.num_samples(split), manifest.hours(split)
            told[f"{name}, {split}"] = f"{hours:,.3g} hours in {clips:,} clips"
        if name in CORPORA:
            told[f"{name}, source"] = CORPORA[name]
    if settings.get("weights"):
        told["shares"] = ", ".join(f"{name} {weight}" for name, weight in settings["weights"].items())
    return told


def _model(settings: Mapping[str, Any], config: ModelConfig) -> dict[str, str]:
    parts, m = model_stats.parameter_counts(config), settings["model"]
    codec, embedder = config.codec, config.embedder
    return {
        "parameters": f"{sum(parts.values()):,} (" + ", ".join(f"{name} {n:,}" for name, n in parts.items()) + ")",
        "shape": f"GPT-2, {config.layers} layers of {config.heads} heads, {config.width} wide, "
        f"{config.positions:,} positions",
        "start": f"pretrained weights of {m['pretrained']}" if m.get("pretrained") else "from scratch",
        "pattern": f"{config.pattern}, {config.codebooks} codebooks of {config.codebook_size:,} codes",
        "end of audio": "learned" if config.end_of_audio else "not learned: clips are as long as asked for",
        "codec": f"{codec['name']}, {codec['sample_rate']:,} Hz, {codec['frame_rate']} frames a second, weights sha256 "
        f"`{codec['weights'][:16]}`",
        "embedder": f"{embedder['name']}, {config.prompt_dim} wide, weights sha256 `{embedder['weights'][:16]}`",
    }


def _training(settings: Mapping[str, Any], state: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, str]:
    t, optim = settings["trainer"], settings["optim"]
    clips = t["micro_batch"] * t["gradient_accumulation_steps"] * state["ranks"]
    told = {
        "steps": f"{state['step']:,} of {t['steps']:,}",
        "clips seen": f"{state['place']:,}, {clips:,} a step on {state['ranks']} ranks",
        "optimizer": f"AdamW, peak learning rate {optim['lr']:g}, {optim['schedule']['name']} schedule, weight decay "
        f"{optim['weight_decay']:g}",
    }
    if t.get("ema"):
        told["weights"] = f"running mean with decay {t['ema']}"
    for split, name in (("train", "training"), ("val", "validation")):
        losses = [(row["step"], row[f"{split}/loss"]) for row in rows if row.get(f"{split}/loss") is not None]
        if losses:
            told[f"{name} loss"] = f"{losses[-1][1]:.4f} nats a code at step {losses[-1][0]:,}"
    packages = package_versions(PACKAGES)
    return {**told, "software": ", ".join(f"{name} {found}" for name, found in packages.items())}


def _figures(run: Path, folder: Path) -> Iterable[str]:
    """What `pipeline.evaluate` measured, if it measured these very weights."""
    try:
        told = _plain(run_folder.read_evaluation(run / "evaluation" / "evaluate.json"))
    except InputError as error:
        log.warning("the card shows no figures: %s", error)
        return
    if told is None:
        return
    if told["export"]["sha256"] != sha256_file(folder / WEIGHTS):
        return
    losses, s = told["loss"], told["settings"]
    yield "## Figures\n"
    yield f"Measured by `python -m pipeline.evaluate` on {losses['clips']:,} clips of the {s['split']} split.\n"
    yield _table(
        ["loss (nats a code)", *(f"codebook {k + 1}" for k in range(len(losses["model"]["nats_codebook"])))],
        [
            [f"{name}: {losses[name]['nats']:.3f}", *(f"{x:.3f}" for x in losses[name]["nats_codebook"])]
            for name in ("model", "unigram", "uniform")
        ],
    )
    rows = {"floor": told["floor"]} | {f"temperature {t}": row for t, row in told["temperatures"].items()}
    rows["ceiling (the codec's reconstruction)"] = told["ceiling"]
    names = [name for name in NAMES if name in told["ceiling"]]
    yield f"Generated from the prompts of {s['n']} clips; brackets hold 95 % intervals.\n"
    yield _table(
        ["", *(NAMES[name] for name in names)],
        [[title, *(_figure(row.get(name)) for name in names)] for title, row in rows.items()],
    )


def _figure(told: Mapping[str, Any] | None) -> str:
    if told is None:
        return "-"
    low_high = f" [{told['interval'][0]:.3f}, {told['interval'][1]:.3f}]" if "interval" in told else ""
    return f"{told['mean']:.3f}{low_high}"


def _use() -> str:
    return """## Use

`FOLDER` is this folder. With the `codec-audio-lm` package installed, from a shell:

```
python -m pipeline.generate run=FOLDER prompt=a.wav out=b.wav seconds=4
```

or from Python:

```python
from pipeline.generation.loaded_run import open_run
from pipeline.models.codec_gpt import CodecGPT

model = CodecGPT.from_pretrained("FOLDER")  # or "OWNER/NAME" on the hub
instrument = open_run("FOLDER")             # the model with the codec and embedder that it was trained with
```
"""


def _licences(settings: Mapping[str, Any], config: ModelConfig) -> str:
    notes = [CODECS.get(config.codec["name"], f"Decoding takes the weights of {config.codec['name']}.")]
    name = config.embedder["name"].partition("/")[0]
    file = CONF / "embedder" / f"{name}.yaml"
    if name == "encodecmae_tiny":
        notes.append(TINY)
    elif file.is_file():
        source = yaml.safe_load(file.read_text())["source"]
        notes.append(MAE.format(source=f": `{source}` on the hub" if "/" in str(source) else ""))
    if settings["model"].get("pretrained"):
        notes.append(
            f"Training started from `{settings['model']['pretrained']}`: its licence holds for what came of it."
        )
    notes.append("The licence of the weights in this folder is for whoever trained them to give.")
    return "## Licences\n\n" + "".join(f"- {note}\n" for note in notes)


def _section(title: str, told: Mapping[str, str]) -> str:
    return f"## {title}\n\n" + _table(["", ""], [[name, value] for name, value in told.items()])


def _table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"

    return line(head) + line(["---"] * len(head)) + "".join(line(row) for row in rows)
