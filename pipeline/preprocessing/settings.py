"""The settings of preprocessing, and which of them are recorded in a dataset's plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pipeline.audio.audio_io import RESAMPLER
from pipeline.audio.codecs import CODECS, CodecSettings
from pipeline.audio.embedders import EMBEDDERS, EmbedderSettings
from pipeline.common.errors import InputError
from pipeline.common.setting_types import Count, PositiveInt, Seconds
from pipeline.common.settings import Choice, CommandSettings, flatten_settings
from pipeline.corpora import CORPORA, CorpusSettings
from pipeline.data.build_state import BuildPlan
from pipeline.data.storage import Storage
from pipeline.preprocessing.preparation import PrepareSettings

# Older names that plan.json keeps, so that existing datasets stay valid.
RECORDED_NAMES = {"max_seconds": "longest_seconds", "min_seconds": "shortest_seconds"}


class PreprocessSettings(CommandSettings):
    """The settings of `python -m pipeline.preprocess`; see conf/preprocess.yaml."""

    command: ClassVar[str] = "preprocess"

    data: Annotated[CorpusSettings, Choice(CORPORA)]
    codec: Annotated[CodecSettings, Choice(CODECS)]
    embedder: Annotated[EmbedderSettings, Choice(EMBEDDERS)]
    out: str
    samples_per_shard: PositiveInt
    max_seconds: Seconds
    bad_amplitude: Literal["scale", "skip", "keep"]
    decode_timeout: Seconds
    truncated: Literal["skip", "keep"]
    prepare: PrepareSettings
    devices: str | list[str]
    encoder_workers: PositiveInt | Literal["auto"]
    decode_workers: Count | Literal["auto"]
    batch: PositiveInt | Literal["auto"]
    part: str
    examine_clips: Count
    reembed: bool

    def requested(self) -> dict[str, object]:
        """The settings that a dataset's contents depend on, by their recorded names."""
        unset = [name for name in self.data.label_settings if not getattr(self.data, name)]
        return {
            "data": self._data_without(unset),
            "codec": self.codec.recorded(),
            "embedder": self.embedder.recorded(),
            **self._sample_settings(),
        }

    def without_models(self) -> dict[str, object]:
        """Those of `requested` that shape the samples and need no model, and the name of the resampler."""
        data = self._data_without((*self.data.location_settings, *self.data.label_settings))
        data["resampler"] = RESAMPLER
        return {"data": data, **self._sample_settings()}

    def source_paths(self) -> list[str]:
        """The folder of the corpus, and files and folders of it that are elsewhere."""
        paths = [getattr(self.data, name) for name in sorted(self.data.location_settings)]
        return [self.data.root, *(path for path in paths if path)]

    def _data_without(self, names: Iterable[str] = ()) -> dict[str, object]:
        """The settings of the corpus that are recorded, without some."""
        unset = {name for name in self.data.optional_settings if getattr(self.data, name) is None}
        ignored = {"root", "scan_cache_dir", *names, *unset}
        return _recorded({name: value for name, value in self.data.to_dict().items() if name not in ignored})

    def _sample_settings(self) -> dict[str, object]:
        names = ("samples_per_shard", "max_seconds", "bad_amplitude", "truncated")
        prepare = self.prepare.recorded()
        return _recorded({name: getattr(self, name) for name in names}) | ({"prepare": prepare} if prepare else {})


def changed_settings(plan: BuildPlan, settings: Mapping[str, Any]) -> list[str]:
    """The dotted names of the recorded settings that differ from those of a plan. settings: all of them, or some."""
    names = {*settings, "prepare"}  # which is recorded only where something is done
    before, now = flatten_settings({name: plan.resolved.get(name, {}) for name in names}), flatten_settings(settings)
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def check_settings_unchanged(
    store: Storage, plan: BuildPlan | None, settings: Mapping[str, Any], reembed: bool
) -> None:
    """Raises InputError if an existing dataset was built with other settings.

    settings: all that are recorded, or those that are known yet. reembed: whether the embedder may change.
    """
    if plan is None:
        return
    changed, before, now = changed_settings(plan, settings), flatten_settings(plan.resolved), flatten_settings(settings)
    if reembed:
        changed = [name for name in changed if not name.startswith("embedder.")]
    if changed:
        differences = ", ".join(
            f"{_setting_name(name)}={_shorten(before.get(name))} (now {_shorten(now.get(name))})" for name in changed
        )
        embedder_only = all(name.startswith("embedder.") for name in changed)
        hint = "; reembed=true computes new prompts and keeps the codes" if embedder_only else ""
        raise InputError(f"{store.display_path()} was made with {differences}: give another out=, or remove it{hint}")


def _recorded(settings: Mapping[str, Any]) -> dict[str, object]:
    return {RECORDED_NAMES.get(name, name): value for name, value in settings.items()}


def _setting_name(recorded: str) -> str:
    """The name on the command line of a setting of a plan: `data.shortest_seconds` -> `data.min_seconds`."""
    group, dot, name = recorded.rpartition(".")
    names = {old: new for new, old in RECORDED_NAMES.items()}
    return f"{group}{dot}{names.get(name, name)}"


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."
