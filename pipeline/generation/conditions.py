"""Values of a model's conditions, from the setting `conditions`."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from pipeline.common.errors import InputError
from pipeline.common.messages import nearest, suggest
from pipeline.common.settings import format_value
from pipeline.generation.guidance import check_scale
from pipeline.generation.settings import GenerateSettings
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.conditions import PROMPT
from pipeline.models.conditions.base import ValueChoices as ValueChoices

log = logging.getLogger("pipeline")


def encode_conditions(conditions: Mapping[str, object], model: CodecGPT) -> dict[str, Tensor]:
    """The values of a clip's labels [...], by the condition's name. A value of None is left out.

    Numbers outside the range of the training data are logged.

    Raises:
        InputError: The model has no such condition, or does not know a value; the message names the nearest.
    """
    known, values = model.label_conditions, dict[str, Tensor]()
    for name, value in conditions.items():
        if name not in known:
            raise InputError(f"conditions.{name}={format_value(value)}: {_explain_unknown(name, list(known))}")
        if value is not None:
            values[name] = known[name].encode(value)
            if note := known[name].warning(value):
                log.warning("conditions.%s=%s: %s", name, format_value(value), note)
    return values


def check_prompt(prompt: object, model: CodecGPT) -> None:
    """Raises InputError if there is a prompt, but the model was trained without prompts."""
    names = [each.name for each in model.condition_list]
    if prompt is not None and PROMPT not in names:
        raise InputError(
            f"prompt={format_value(prompt)}: the model has no prompts, only the conditions {', '.join(names)}: "
            f"give conditions.{names[0]}=VALUE"
        )


def read_conditions(settings: GenerateSettings, model: CodecGPT, prompt: object) -> dict[str, Tensor]:
    """The values of a clip's labels [...] by the condition's name, after all settings of conditions are checked.

    Args:
        settings: Those of `pipeline.generate`.
        model: The model whose conditions they are.
        prompt: The prompt, as a user wrote it; None: there is none.

    Raises:
        InputError: A setting does not fit the model.
    """
    check_scale(settings.sampling.guidance, [each.name for each in model.condition_list])
    check_prompt(prompt, model)
    return encode_conditions(settings.conditions, model)


def _explain_unknown(name: str, known: list[str]) -> str:
    if name == PROMPT:
        return "a prompt is a sound: give prompt=a.wav"
    if not known:
        return f"the model has no conditions on labels: train one with conditions=[{PROMPT},{name}]"
    suggestion = suggest(nearest(name, known))
    return f"the model has no such condition; {suggestion}its conditions on labels are {', '.join(known)}"
