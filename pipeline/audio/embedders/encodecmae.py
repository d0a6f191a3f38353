"""`encodecmae_base`, `encodecmae_mel256_base_st`: released EnCodecMAE checkpoints, from the hub or from local files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pipeline.audio.embedders import EMBEDDERS, EmbedderSettings, offline_embedders
from pipeline.audio.hub_files import hub_file
from pipeline.common.errors import InputError
from pipeline.common.files import sha256_file

if TYPE_CHECKING:
    import torch

    from pipeline.audio.embedders.base import Embedder


class EncodecMaeSettings(EmbedderSettings):
    """Settings of a released checkpoint. source: a hub repository, a file in one, or a local file or folder."""

    title: ClassVar[str] = "the EnCodecMAE weights of its authors"
    citation: ClassVar[str] = "Pepino, Riera & Ferrer 2023, arXiv:2309.07391"
    licence: ClassVar[str] = "Their authors decide about their licence."

    def load(self, device: str | torch.device) -> Embedder:
        """See `EmbedderSettings.load`."""
        from pipeline.audio.encodecmae.checkpoint import load_checkpoint
        from pipeline.audio.encodecmae.embedder import EncodecMaeEmbedder

        file, gin = _locate_checkpoint(self.source or str(self.default_source))
        return EncodecMaeEmbedder(self.name, load_checkpoint(file, gin), sha256_file(file), device, self.frames)


@EMBEDDERS.register("encodecmae_base")
class EncodecMaeBaseSettings(EncodecMaeSettings):
    """EnCodecMAE v1 base, the article's, 768 wide."""

    default_source: ClassVar[str | None] = "lpepino/encodecmae-base"


@EMBEDDERS.register("encodecmae_mel256_base_st")
class EncodecMaeMelSettings(EncodecMaeSettings):
    """EnCodecMAE v2, the checkpoint that its authors recommend, 768 wide."""

    default_source: ClassVar[str | None] = "lpepino/encodecmae-v2/mel256-ec-base_st.pt"


def _locate_checkpoint(source: str) -> tuple[Path, str]:
    """Return the path of the checkpoint, downloaded if needed, and the gin text beside it (v1 only, else empty)."""
    path = Path(source).expanduser()
    if path.is_file():
        return path, _read_text(path.with_name("config.gin"))
    if path.is_dir():
        if not (path / "model.pt").is_file():
            raise InputError(f"embedder.source={source}: there is no model.pt in the folder; name the file itself")
        return path / "model.pt", _read_text(path / "config.gin")
    parts = source.split("/")
    if source.startswith(("/", ".", "~")) or len(parts) not in (2, 3):
        raise InputError(f"embedder.source={source}: no such file or folder, and no hub repository (owner/name)")
    repo = "/".join(parts[:2])
    if len(parts) == 3:
        return _download(repo, parts[2]), ""
    return _download(repo, "model.pt"), _read_text(_download(repo, "config.gin"))


def _read_text(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


def _download(repo: str, name: str) -> Path:
    remedy = f"with the files in a folder: embedder.source=PATH; without either: {offline_embedders()}"
    return hub_file(repo, name, f"embedder.source={repo}", remedy)
