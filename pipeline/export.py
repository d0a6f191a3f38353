"""Put a trained model together from a checkpoint of its run, for generation or for others.

  python -m pipeline.export run=runs/delay_gpt2
  python -m pipeline.export run=RUN checkpoint=best
  python -m pipeline.export run=RUN push=OWNER/NAME

Writes RUN/export/: model.safetensors and config.json, all that inference needs of the model, and README.md, its card
(data, model, training, the figures of pipeline.evaluate where it has run, licences). Training writes the same at its
end. It takes neither a GPU nor the ranks that trained, whatever the ZeRO stage was, and memory for the weights alone.
`CodecGPT.from_pretrained` reads the folder, or the repository that it was pushed to.

What people change: run=, checkpoint=, weights=last, out=, push=, private=.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from pipeline.common.console import print_error
from pipeline.common.errors import InputError
from pipeline.common.files import check_output_folder
from pipeline.config.cli import hydra_command


def select_checkpoint(run: Path, wanted: str) -> Path:
    """The checkpoint to export: `newest`, `best`, or its path. Raises InputError where there is none."""
    from pipeline.training import checkpoint

    if wanted not in ("newest", "best"):
        path = Path(wanted)
        if not (path / checkpoint.COMPLETE).is_file():
            raise InputError(f"checkpoint={wanted} is no complete checkpoint: give newest, best, or a step-N folder")
        return path
    if not run.is_dir():
        raise InputError(f"run={run}: there is no such folder; pipeline.train writes runs/NAME")
    found = checkpoint.list_checkpoints(run)
    if not found:
        raise InputError(f"run={run} has no complete checkpoint: pipeline.train writes one every trainer.save_every")
    if wanted == "newest":
        return found[-1]
    best = checkpoint.best_of(found)
    if best is None:
        raise InputError(f"run={run} has no checkpoint with a validation loss: give checkpoint=newest")
    return best


@hydra_command("export")
def main(cfg: DictConfig) -> int:
    """Check, put together, write, and push if asked to."""
    from pipeline.hub import model_card, upload
    from pipeline.models.codec_gpt import WEIGHTS
    from pipeline.training import checkpoint

    if cfg.weights not in ("auto", "last"):
        raise InputError(f"weights={cfg.weights}: give auto or last")
    if cfg.push:
        upload.check(cfg.push)
    run, folder = Path(cfg.run), Path(cfg.out)
    found = select_checkpoint(run, str(cfg.checkpoint))
    check_output_folder("out", folder)
    if (folder / model_card.NAME).exists() and not (folder / WEIGHTS).exists():
        raise InputError(
            f"out={folder}: {model_card.NAME} there is no model's card; give the export a folder of its own"
        )
    checkpoint.export(found, folder, mean=cfg.weights == "auto")
    model_card.write(found, folder)
    print(f"{found} is exported to {folder}")
    if cfg.push:
        try:
            print(f"pushed to {upload.push(folder, cfg.push, cfg.private)}")
        except upload.HubUploadError as error:
            print_error(str(error))
            return 1
    return 0


if __name__ == "__main__":
    main()
