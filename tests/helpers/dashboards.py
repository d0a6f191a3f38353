"""What the dashboard shows of a run, for the tests that hold it against what a run logs."""

from __future__ import annotations

import re

ON_A_GPU = {"memory/gpu_gib", "speed/mfu"}  # which no CPU has
OF_W_AND_B = {"_step"}


def shown(codebooks: int) -> set[str]:
    """The metrics that its panels name, but for those of GPUs, of W&B itself, and the axis."""
    from pipeline import dashboard

    names = dashboard.metrics(dashboard.to_json(dashboard.workspace("e", "p", "n", codebooks)))
    plain = {re.sub(r"^summary_metrics\.|\.(min|last)$", "", name) for name in names}
    return plain - ON_A_GPU - OF_W_AND_B - {dashboard.STEP}
