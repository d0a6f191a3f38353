"""Export a model from a checkpoint of its run, for generation or for publication.

  python -m pipeline.export run=runs/delay_gpt2
  python -m pipeline.export run=RUN checkpoint=best
  python -m pipeline.export run=RUN precision=int8 out=RUN/int8
  python -m pipeline.export run=RUN push=OWNER/NAME

Writes model.safetensors and config.json, all that inference needs of the model, and README.md, its model card, to
RUN/export/. Training does the same at its end. Needs no GPU, and memory for the weights only, whatever the ZeRO stage
and the number of ranks were. `CodecGPT.from_pretrained` loads the folder, or the repository that it was pushed to.

precision=int8 stores matrices in 8 bits: a quarter of the size, and on a CPU one sound takes half of the time.

Main settings: run= checkpoint= weights=last precision= out= push= private=
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pipeline.common.console import print_error
from pipeline.common.errors import InputError
from pipeline.common.files import check_output_folder
from pipeline.common.settings import CommandSettings
from pipeline.config.cli import hydra_command


class ExportSettings(CommandSettings):
    """The settings of this command."""

    command: ClassVar[str] = "export"

    run: str
    checkpoint: str
    weights: Literal["auto", "last"]
    precision: Literal["fp32", "int8"]
    out: str
    push: str | None
    private: bool


@hydra_command(ExportSettings)
def main(settings: ExportSettings) -> int:
    """Check the settings; write the export; push it if `push=` is set."""
    from pipeline.hub import model_card, upload
    from pipeline.models.model_files import WEIGHTS
    from pipeline.training import checkpoint

    if settings.push:
        upload.check_upload(settings.push)
    path, out = checkpoint.select_checkpoint(Path(settings.run), settings.checkpoint), Path(settings.out)
    check_output_folder("out", out)
    if (out / model_card.FILE_NAME).exists() and not (out / WEIGHTS).exists():
        raise InputError(
            f"out={out}: its {model_card.FILE_NAME} is not a model card; give a folder for the export only"
        )
    checkpoint.export(path, out, use_ema=settings.weights == "auto", precision=settings.precision)
    model_card.write_model_card(path, checkpoint.read_metadata(path), out)
    print(f"exported {path} to {out}")
    if settings.push:
        try:
            print(f"pushed to {upload.upload_export(out, settings.push, settings.private)}")
        except upload.HubUploadError as error:
            print_error(str(error))
            return 1
    return 0


if __name__ == "__main__":
    main()
