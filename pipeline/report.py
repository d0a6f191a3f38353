"""Write a report about a trained model: one HTML file that contains its sounds, for any browser, also offline.

  python -m pipeline.report run=quickstart/run
  python -m pipeline.report run=RUN shards=DIR n=10 corpus_root=data/nsynth prompts=[moo.wav,drill.mp3]

It repeats the article's studies on your own model: clips through the codec at each bit rate; generations at each
temperature; external prompts (prompts=); interpolations. It also plots the training curves, and the results of
`python -m pipeline.evaluate run=RUN shards=DIR` if they are from this export. Click in a spectrogram to play it.

  python -m pipeline.report run=RUN listening_test=true other_runs=[RUN2] corpus_root=data/nsynth

This writes another page instead, a blind listening test after MUSHRA (ITU-R BS.1534): people rate each model, the
codec, the recording itself and a low-pass anchor from 0 to 100, and save their answers as a file, which
`python -m pipeline.compare ratings=FILES` reads.

What people change: prompts=, corpus_root= (the corpus folder, for the original recordings), n=, temperatures=,
num_interpolations=, split=, seed=, out=.
"""

from __future__ import annotations

from pipeline.config.cli import hydra_command
from pipeline.evaluation.settings import ReportSettings


@hydra_command(ReportSettings)
def main(settings: ReportSettings) -> None:
    """Write the report, and print where it is."""
    from pathlib import Path

    from rich.console import Console

    from pipeline.common.files import check_output_file
    from pipeline.common.settings import format_command
    from pipeline.evaluation.listening.page import build_listening_test
    from pipeline.evaluation.report_builder import build_report

    page = "listening_test.html" if settings.listening_test else "report.html"
    out = Path(settings.run) / page if settings.out == "auto" else Path(settings.out)
    check_output_file("out", out)
    build = build_listening_test if settings.listening_test else build_report
    with Console(stderr=True).status("generating") as status:
        report = build(settings, status.update)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(report.html)
    for line in report.notes:
        print(line)
    print(f"{out}  {report.sounds} sounds, {len(report.html) / 1e6:.1f} MB: open it in any browser")
    if settings.listening_test:
        print("next: let people rate, then: python -m pipeline.compare 'ratings=listening-test-*.json'")
    else:
        print(f"next: {format_command('demo', run=settings.run)}")


if __name__ == "__main__":
    main()
