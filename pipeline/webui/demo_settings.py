"""Validation of conf/demo.yaml. It imports nothing slow, so that a wrong setting is reported at once."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from pipeline.common.errors import InputError
from pipeline.common.settings import require_min


def check_settings(cfg: DictConfig) -> None:
    """Raises InputError for numbers that the page cannot work with."""
    limits: dict[str, Any] = {f"limits.{name}": value for name, value in cfg.limits.items()}
    require_min(1, limits, "limits.upload_seconds", "limits.seconds", "limits.samples", "limits.waiting")
    require_min(2, limits, "limits.steps")
    require_min(0.01, limits, "limits.upload_mb")
    require_min(8, limits, "limits.connections", "limits.visitor_connections")  # a browser opens 6
    require_min(0.1, limits, "limits.header_seconds", "limits.body_seconds")
    require_min(1, cfg, "delete_after_seconds", "count")
    for small, large in (("upload_mb", "visitor_mb"), ("visitor_mb", "storage_mb")):
        if cfg.limits[large] < cfg.limits[small]:
            value = cfg.limits[large]
            raise InputError(f"limits.{large}={value}: give limits.{small}={cfg.limits[small]} or more")
    root_path = str(cfg.root_path)
    if root_path and not root_path.startswith(("/", "http://", "https://")):
        raise InputError(f"root_path={root_path}: give a path (/demo) or a full address (https://example.org/demo)")
