"""The parts of the `encodec` package that this project uses, importable without a working torchaudio."""

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
