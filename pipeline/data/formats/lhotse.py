"""Lhotse Shar: a folder a split, whose cuts have `codes` as an array over time [T, K], and `prompt`.

Time is the first dimension, since lhotse cuts parts out of arrays along the first one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.data.formats import FORMATS, ConvertedClip, DatasetFormat, optional_import
from pipeline.data.labels import Vocabularies
from pipeline.data.manifest import Manifest

SHARD_SIZE = 1000  # cuts


@FORMATS.register("lhotse")
class LhotseFormat(DatasetFormat):
    """Cuts whose labels are custom fields of their supervision; the cut lasts as long as its frames."""

    reader = "lhotse.CutSet.from_shar(in_dir='{out}/{split}')"

    def __init__(self, folder: Path, manifest: Manifest, labels: Vocabularies) -> None:
        super().__init__(folder, manifest, labels)
        with optional_import("lhotse"):
            import lhotse
            from lhotse import shar
        self._lhotse, self._shar = lhotse, shar

    def write(self, split: str, clips: Iterator[ConvertedClip]) -> None:
        """Write the cuts and the arrays of a split."""
        frame_shift = 1 / float(self.manifest.frame_rate)
        fields = {"codes": "numpy", "prompt": "numpy"}
        (self.folder / split).mkdir()
        with self._shar.SharWriter(str(self.folder / split), fields=fields, shard_size=SHARD_SIZE) as file:
            for clip in clips:
                whole = clip.codes.shape[1] * frame_shift
                supervision = self._lhotse.SupervisionSegment(
                    clip.key, clip.key, start=0, duration=min(clip.seconds, whole), custom=clip.labels
                )
                custom = {"seconds": clip.seconds, "source": clip.source, "start_in_source": clip.start}
                custom["sampling_rate"] = round(self.manifest.codec["sample_rate"])  # to cut without a recording
                cut = self._lhotse.MonoCut(
                    clip.key, start=0, duration=whole, channel=0, supervisions=[supervision], custom=custom
                )
                cut = cut.attach_tensor("codes", clip.codes.T.copy(), frame_shift=frame_shift, temporal_dim=0)
                file.write(cut.attach_tensor("prompt", clip.prompt))
