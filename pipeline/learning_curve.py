"""Is it enough data? Train the same small model on parts of a dataset, and say what twice the data would bring.

  python -m pipeline.learning_curve shards=DIR
  python -m pipeline.learning_curve shards=DIR shares=[0.1,0.3,1] "train={model: small, trainer.steps: 2000}"

Each model has the settings of conf/exp/learning_curve.yaml and the same number of steps, so the same compute. Parts are
chosen by recording and nested: 1/4 contains 1/8. Validation loss (the lowest of each training), prompt fidelity and
pitch are measured on the same clips, and extended by a power law to twice the hours, with 95 % prediction intervals.
Writes learning_curve.json and learning_curve.html, a page with plots. The same command resumes.
What people change: out=, shares=, train=, n=, sampling.guidance=, device=.
"""

from __future__ import annotations

from pipeline.training import stop_signals

if __name__ == "__main__":  # before the slow imports: a stop request may come at any time
    stop_signals.install()
from pathlib import Path

from pipeline.config.cli import hydra_command
from pipeline.evaluation.settings import LearningCurveSettings


@hydra_command(LearningCurveSettings)
def main(settings: LearningCurveSettings) -> int:
    """Train and measure a model for each part, then write and print the curve."""
    from rich.console import Console

    from pipeline.common.files import check_output_folder, write_atomic
    from pipeline.common.settings import format_override
    from pipeline.data.manifest import Manifest
    from pipeline.data.subset import write_subset
    from pipeline.evaluation.learning_curve import LearningCurve, measure_point
    from pipeline.evaluation.results import write_results
    from pipeline.train import main as train

    out, points, console = Path(settings.out), [], Console()
    check_output_folder("out", out)
    for share in sorted(set(settings.shares)):
        folder, shards = out / f"share-{share:g}", settings.shards
        if share < 1:
            shards = str(folder / "shards")
            write_subset(settings.shards, shards, share, settings.seed, settings.baseline, settings.split)
        manifest = Manifest.load(shards)
        own = {
            **(settings.train or {}),
            "shards": shards,
            "run": folder / "run",
            "data.train": settings.baseline,
            "data.valid": settings.split,
        }
        own |= {"codec": manifest.codec["name"], "codec.channels": manifest.channels, "seed": settings.seed}
        overrides = [format_override(name, value) for name, value in own.items()]
        if code := train.task(["+exp=learning_curve", *overrides]):
            return code
        stop_signals.begin_start()
        with console.status(f"measuring the model of {share:g} of the data"):
            points.append(measure_point(settings, share, manifest, folder / "run"))
    curve = LearningCurve(points)
    write_results(out / "learning_curve.json", curve.to_dict())
    write_atomic(out / "learning_curve.html", curve.to_html(f"Learning curve of {settings.shards}"))
    curve.print(console)
    print(f"written: {out}/learning_curve.json, {out}/learning_curve.html")
    return 0


if __name__ == "__main__":
    main()
