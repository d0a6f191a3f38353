"""NumPy files: `{split}/{key}.npy` and `{split}/{key}.prompt.npy`, and a table of all clips, `{split}.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from pipeline.data.formats import FORMATS, ConvertedClip, DatasetFormat


@FORMATS.register("npy")
class NpyFormat(DatasetFormat):
    """Two files a clip, which any program reads."""

    reader = "[numpy.load(f'{out}/{{row[\"codes\"]}}') for row in map(json.loads, open('{out}/{split}.jsonl'))]"

    def write(self, split: str, clips: Iterator[ConvertedClip]) -> None:
        """Write the files of each clip and its row."""
        (self.folder / split).mkdir()
        with (self.folder / f"{split}.jsonl").open("w", encoding="utf-8") as rows:
            for clip in clips:
                files = {"codes": f"{split}/{clip.key}.npy", "prompt": f"{split}/{clip.key}.prompt.npy"}
                np.save(self.folder / files["codes"], clip.codes, allow_pickle=False)
                np.save(self.folder / files["prompt"], clip.prompt, allow_pickle=False)
                row = {
                    "key": clip.key, **files, "frames": clip.codes.shape[1], "seconds": clip.seconds, "split": split,
                    "labels": clip.labels, "source": clip.source, "start": clip.start,
                }  # fmt: skip
                rows.write(json.dumps(row) + "\n")
