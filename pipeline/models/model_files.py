"""The files of a CodecGPT: `model.safetensors` with its weights and `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.common.errors import InputError, one_line
from pipeline.common.files import is_intact, sha256_file, with_checksum, write_atomic
from pipeline.models.model_config import ModelConfig
from pipeline.models.quantization import dequantize_state, is_quantized
from pipeline.models.weights import save_tensors

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class ModelFiles:
    """The content of the files.

    Attributes:
        config: The config.
        state: The weights in fp32.
        weights_sha256: The sha256 of the weights file.
        is_quantized: Whether the file has weights of 8 bits.
    """

    config: ModelConfig
    state: dict[str, Tensor]
    weights_sha256: str
    is_quantized: bool


def write_pretrained(folder: str | Path, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Write the weights of a model and its config, which contains the sha256 of the weights file and of itself.

    The config is written last: until then the folder has none, or one that does not match the new weights.

    Args:
        folder: Where to write.
        config: The config.
        state: The weights, also those of `quantize_state`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(state, folder / WEIGHTS)
    content = with_checksum({**asdict(config), "files": {WEIGHTS: sha256_file(folder / WEIGHTS)}})
    write_atomic(folder / CONFIG, json.dumps(content, indent=2) + "\n")


def read_pretrained(folder: Path) -> ModelFiles:
    """Read and check the files.

    Raises:
        InputError: the files do not exist, are damaged, or are not those of a CodecGPT.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        content = json.loads((folder / CONFIG).read_text())
        config = ModelConfig.parse(content)
        weights_sha256 = _check_files(folder, content)
        stored = load_file(folder / WEIGHTS)
        state = dequantize_state(stored)
        _check_sizes(config, state)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, RecursionError, SafetensorError) as error:
        raise invalid_export(folder, error) from error
    return ModelFiles(config, state, weights_sha256, is_quantized(stored))


def invalid_export(folder: Path, error: Exception) -> InputError:
    """The error of a folder whose files are not those of a CodecGPT."""
    return InputError(
        f"{folder} is not an exported CodecGPT ({one_line(error):.300}); `python -m pipeline.export run=RUN` writes one"
    )


def _check_files(folder: Path, content: Mapping[str, Any]) -> str:
    """The sha256 of the weights file.

    Raises ValueError if config or weights have changed since they were written; older exports have no checksums.
    """
    if not is_intact(content):
        raise ValueError(f"{CONFIG} has changed since it was written: its sha256 differs")
    files, sha256 = content.get("files"), sha256_file(folder / WEIGHTS)
    if isinstance(files, dict) and files.get(WEIGHTS, sha256) != sha256:
        raise ValueError(f"{WEIGHTS} has changed since it was written: its sha256 differs")
    return sha256


def _check_sizes(config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless the weights have the sizes of the config, before memory is allocated for these."""
    layers = len({name.split(".")[2] for name in state if name.startswith("backbone.h.")})
    sizes: dict[str, tuple[int, ...]] = {
        "codes.weight": (config.codebooks * (config.codebook_size + 1), config.width),
        "backbone.wpe.weight": (config.backbone_positions, config.width),
    }
    sizes |= {"prompt_mean": (config.prompt_dim,)} if "prompt_mean" in state else {}
    faults = [
        f"{name} has shape {list(state[name].shape)}, expected {list(size)}"
        for name, size in sizes.items()
        if state[name].shape != size
    ]
    if layers != config.layers:
        faults.append(f"there are {layers} layers, expected {config.layers}")
    head = sum(value.numel() for name, value in state.items() if name.startswith("head."))
    if not faults and head != (expected := config.head_cost.parameters):
        faults.append(f"the head has {head} parameters, expected {expected}")
    if faults:
        raise ValueError("; ".join(faults))


def download_model(source: str, local_only: bool) -> Path:
    """Download a model from the Hub, or find it in the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=[WEIGHTS, CONFIG], local_files_only=local_only))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        how = f"downloaded before: run `hf download {source}`" if local_only else "available on the Hub"
        raise InputError(f"{source}: not a local folder, and not {how} ({type(error).__name__})") from error
