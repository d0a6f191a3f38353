"""Inputs for the conditions of the models: a dropdown, a slider or a multiple choice for each label.

Each model has a group of inputs, which is shown while the model is selected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from pipeline.generation.conditions import ValueChoices
from pipeline.generation.loaded_run import LoadedRun

NO_VALUE = "—"
MAX_LABEL = 200  # characters
MIN_STEPS = 10  # a slider of fewer whole numbers has fractions


def condition_inputs(loaded_runs: Mapping[str, LoadedRun], run: gr.Dropdown) -> list[Any]:
    """Create the inputs of all models; none for models without conditions on labels.

    Args:
        loaded_runs: The models, by name.
        run: The choice of a model.
    """
    inputs, groups = list[Any](), dict[str, gr.Group]()
    for name, loaded in loaded_runs.items():
        if loaded.model.label_conditions:
            with gr.Group(visible=name == run.value) as groups[name]:
                for label, condition in loaded.model.label_conditions.items():
                    inputs += _build(label, condition.choices)
    if groups and len(loaded_runs) > 1:
        outputs = [*groups.values()]

        def show_group(selected: str) -> Any:
            updates = [gr.update(visible=name == selected) for name in groups]
            return updates if len(updates) > 1 else updates[0]

        run.change(show_group, run, outputs, queue=False, api_visibility="private")
    return inputs


def split_conditions(
    loaded_runs: Mapping[str, LoadedRun], values: Sequence[Any]
) -> tuple[Sequence[Any], dict[str, Any]]:
    """Split the values of inputs, the first of them the model and the last those of `condition_inputs`.

    Returns:
        The values of the other inputs, and the setting `conditions` of the model, without labels that have no value.
    """
    labels = [
        (name, label, condition.choices)
        for name, loaded in loaded_runs.items()
        for label, condition in loaded.model.label_conditions.items()
    ]
    first = len(values) - sum(_count(choices) for _, _, choices in labels)
    remaining, conditions = iter(values[first:]), dict[str, Any]()
    for name, label, choices in labels:
        value = _read(choices, remaining)
        if name == values[0] and value not in (None, []):
            conditions[label] = value
    return values[:first], conditions


def _count(choices: ValueChoices | None) -> int:
    """The number of inputs of a label: a number has a checkbox and a slider."""
    return 1 if choices is None or choices.values else 2


def _build(label: str, choices: ValueChoices | None) -> list[Any]:
    if choices is None:
        return [gr.Textbox("", label=label, max_length=MAX_LABEL)]
    if choices.values and choices.limit == 1:
        return [gr.Dropdown([NO_VALUE, *choices.values], value=NO_VALUE, label=label)]
    if choices.values:
        return [gr.Dropdown([*choices.values], value=[], multiselect=True, max_choices=choices.limit, label=label)]
    low, high = choices.low, choices.high
    step = 1 if low.is_integer() and high.is_integer() and high - low >= MIN_STEPS else None
    with gr.Row():
        is_used = gr.Checkbox(False, label=f"Set {label}", min_width=110)
        return [is_used, gr.Slider(low, high, low, step=step, label=label)]


def _read(choices: ValueChoices | None, values: Iterator[Any]) -> Any:
    """The value of one label; None: it has none."""
    value = next(values)
    if choices is None or choices.values:
        return None if value in (NO_VALUE, "") else value
    number = next(values)
    return number if value else None
