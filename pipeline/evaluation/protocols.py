"""Protocols: which dataset, split and clips an evaluation has to have, so that its figures compare with others'.

A protocol is a file of conf/protocol/.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator

from pipeline.common.errors import InputError
from pipeline.common.setting_types import PositiveInt
from pipeline.common.settings import Settings, format_value
from pipeline.data.manifest import Manifest
from pipeline.evaluation.reference_clips import ReferenceClip
from pipeline.evaluation.results import AppliedProtocol


def _check_patterns(patterns: dict[str, str]) -> dict[str, str]:
    for pattern in patterns.values():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern} is not a regular expression ({error})") from None
    return patterns


Patterns = Annotated[dict[str, str], AfterValidator(_check_patterns)]  # of the keys of clips, by reason


class ProtocolSettings(Settings):
    """A protocol; see conf/protocol/none.yaml."""

    name: str
    title: str | None
    split: str
    n: PositiveInt
    data: dict[str, str | int | float | bool | None]
    left_out: Patterns
    bad_labels: Patterns

    def check(self, manifest: Manifest) -> None:
        """Check that a dataset is the one of the protocol.

        Raises:
            InputError: It was preprocessed with other settings.
        """
        for name, expected in self.data.items():
            if (value := manifest.data.get(name)) != expected:
                settings = " ".join(
                    f"data{f'.{key}' * (key != 'name')}={format_value(v)}" for key, v in self.data.items()
                )
                raise InputError(
                    f"protocol={self.name}: {manifest.path} has data.{name}={format_value(value)}, expected "
                    f"{format_value(expected)}; give a dataset that was preprocessed with {settings}"
                )

    def select(self, clips: Iterable[ReferenceClip]) -> tuple[list[ReferenceClip], AppliedProtocol]:
        """The clips that are measured, and what is recorded about all of them.

        Raises:
            InputError: No clip is left.
        """
        everything = [*clips]
        left_out = matching(everything, self.left_out)
        kept = [clip for clip in everything if clip.sample.key not in left_out]
        if not kept:
            raise InputError(f"protocol={self.name}: all {len(everything)} clips are left out; give a larger n=")
        counts = [dict(Counter(reasons.values())) for reasons in (left_out, matching(kept, self.bad_labels))]
        return kept, AppliedProtocol(name=self.name, title=self.title or "", left_out=counts[0], bad_labels=counts[1])


def matching(clips: Sequence[ReferenceClip], patterns: Mapping[str, str]) -> dict[str, str]:
    """The first reason whose pattern matches the complete key of a clip, by key, of the clips that have one."""
    keys = [clip.sample.key for clip in clips]
    reasons = {key: next((why for why, each in patterns.items() if re.fullmatch(each, key)), None) for key in keys}
    return {key: reason for key, reason in reasons.items() if reason is not None}
