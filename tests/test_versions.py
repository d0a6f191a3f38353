"""Versions are known from a clone that is not installed, as in a container with the repository on its path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_our_version_is_known_without_installation() -> None:
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pipeline.common.versions import package_versions
print(package_versions(["codec-audio-lm", "not-installed"]))
"""
    command = [sys.executable, "-S", "-c", code]  # -S: nothing that is installed can be seen
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "{'codec-audio-lm': '0.1.0'}\n"
