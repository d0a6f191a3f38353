"""What this project uses of the `encodec` package, imported from here so that no working torchaudio is needed."""

from __future__ import annotations

from pipeline.common.import_guards import hide_broken_packages

with hide_broken_packages(
    "torchaudio", stand_in=True
):  # encodec/utils.py imports it, for functions that are not used here
    from encodec import EncodecModel
    from encodec.model import ROOT_URL
    from encodec.modules import SEANetEncoder, seanet
    from encodec.quantization import ResidualVectorQuantizer

__all__ = ["ROOT_URL", "EncodecModel", "ResidualVectorQuantizer", "SEANetEncoder", "seanet"]
