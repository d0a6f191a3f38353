"""Download a published corpus into data.root, in parallel, with resume and verification.

The archives are not unpacked: pipeline.preprocess reads them as they are. A file gets its name when it is complete and
verified. Running the same command again resumes, and downloads nothing that is complete.

  python -m pipeline.download data=nsynth                          # 23 GB into data/nsynth
  python -m pipeline.download data=nsynth splits=[valid,test]      # the small parts only
  python -m pipeline.download data=jamendo quality=audio-low       # 156 GB into data/jamendo
  python -m pipeline.download data=jamendo folders=[0,1,2] data.root=/scratch/jamendo

MTG-Jamendo publishes SHA-256 checksums. NSynth publishes none: its archives are verified by the MD5 that the server
reports or, if it reports none, by reading them to the end.

What people change: data=, data.root=, splits=, folders=, quality=, parallel=, addresses.nsynth= (a mirror).
"""

from __future__ import annotations

from pipeline.common.console import print_error, print_next
from pipeline.common.settings import format_override
from pipeline.config.cli import hydra_command
from pipeline.corpora.download.settings import DownloadSettings


@hydra_command(DownloadSettings)
def main(settings: DownloadSettings) -> int:
    """Download the files that are missing, and return the exit code."""
    from pipeline.corpora.download import corpus
    from pipeline.corpora.download.http import DownloadError

    root = settings.data.root
    try:
        sizes = corpus.list_files_with_sizes(settings)
    except DownloadError as error:
        print_error(str(error))
        return 1
    present, failed = corpus.download_missing(settings, sizes)
    print(f"{root}: {len(sizes) - failed} of {len(sizes)} files complete, {present} of them before")
    if failed:
        print_error("run the same command again: it resumes where this run ended")
        return 1
    overrides = [f"data={settings.data.name}", format_override("data.root", root)]
    print_next(["python", "-m", "pipeline.preprocess", *overrides])
    return 0


if __name__ == "__main__":
    main()
