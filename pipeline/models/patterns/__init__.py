"""Codebook patterns, one file each: how K streams of codes become one sequence.

pattern = build_pattern("delay", codebooks=8)      in pipeline.models.pattern
pattern.build_sequence(tokens)                     [B, K, T] -> [B, K, S]
"""

from __future__ import annotations

from pipeline.common.registry import Registry
from pipeline.models.patterns.base import PatternSettings

PATTERNS: Registry[type[PatternSettings]] = Registry("pattern", __name__)
