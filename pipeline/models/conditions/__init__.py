"""Conditions of a model, one file each: what stands in the prefix that the model reads before the first step.

Each kind is a class of settings, which are stored in the model's config.json, and the module that they build:

    prompt     the vectors of the embedder                     one position for each vector of a clip
    category   one of the values of a label: a table of vectors
    number     a number within a range: features of its value
    tags       a set of values of a label: the mean of their vectors

Letters: B clips, D width.
"""

from __future__ import annotations

from pipeline.common.registry import Registry
from pipeline.models.conditions.base import ConditionSettings

CONDITIONS: Registry[type[ConditionSettings]] = Registry("condition", __name__)
PROMPT = "prompt"  # the name of the condition that every dataset has
