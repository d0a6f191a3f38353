"""The fp32 weights of a checkpoint from DeepSpeed's files, without a GPU, ranks, or running code from the files.

    mp_rank_00_model_states.pt                     ZeRO 0-2: the weights of computation (bf16 or fp32), and buffers
    zero_pp_rank_{r}_mp_rank_00_model_states.pt    ZeRO 3: buffers and shapes
    *zero_pp_rank_{r}_mp_rank_00_optim_states.pt   ZeRO 1-3: the fp32 weights of rank r, flattened, and its moments
    ema.safetensors                                the moving average of the weights, if there is one

The files are pickles. They are opened by PyTorch's restricted unpickler, which allows tensors, plain containers and the
three harmless DeepSpeed classes named below, and refuses everything else. They are memory-mapped, so the moments are
never read.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.common.errors import InputError, first_line, one_line
from pipeline.training import ema

Shapes = Mapping[str, torch.Size]


def consolidated_state_dict(checkpoint: Path, use_ema: bool = True) -> dict[str, Tensor]:
    """The state dict of a CodecGPT in fp32, including buffers.

    Args:
        checkpoint: a folder that `checkpoint.start_save` wrote.
        use_ema: the moving average of the weights if there is one.

    Raises:
        InputError: files are missing, damaged, or not those of a checkpoint.
    """
    model_files, optimizer_files = _files(checkpoint, "model_states"), _files(checkpoint, "optim_states")
    if not model_files:
        raise InputError(f"{checkpoint} has no *_model_states.pt: it is not a checkpoint of this trainer")
    states = open_states(model_files[0])
    try:
        module, buffers = states["module"], set(states["buffer_names"] or ())
        if use_ema and (checkpoint / ema.FILE).is_file():
            weights = load_file(checkpoint / ema.FILE)
            del weights["updates"]
        elif optimizer_files:
            weights = _merge_shards(checkpoint, optimizer_files, states["param_shapes"])
        else:
            weights = {name: value for name, value in module.items() if name not in buffers}
            weights |= _fp32_copies(weights, (states["optimizer"] or {}).get("fp32_groups", ()))
    except (KeyError, TypeError, AttributeError, StopIteration, RuntimeError) as error:
        raise InputError(f"{checkpoint} does not have DeepSpeed's file layout ({error!r})") from error
    state_dict = {name: weights[name] if name in weights else module[name] for name in module}
    if missing := [name for name in module if name not in buffers and name not in weights]:
        raise InputError(f"{checkpoint} has no weights of {', '.join(missing)}")
    return {name: value.float() if value.is_floating_point() else value for name, value in state_dict.items()}


def check_pickles_are_safe(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Open the pickles of a folder with the restricted unpickler; DeepSpeed's reader would run any code in them.

    Args:
        folder: a checkpoint.
        part: only every `parts`-th file is opened, starting with this one.
        parts: number of ranks that share the work.

    Raises:
        InputError: a file is damaged, or contains more than the data of a checkpoint.
    """
    for file in sorted(folder.rglob("*.pt"))[part::parts]:
        open_states(file)


def _files(checkpoint: Path, kind: str) -> list[Path]:
    """DeepSpeed's files of a kind, by rank."""
    ranks = [(re.search(r"rank_(\d+)_mp", path.name), path) for path in checkpoint.glob(f"*{kind}.pt")]
    return [path for _, path in sorted((int(rank.group(1)) if rank else 0, path) for rank, path in ranks)]


def open_states(file: Path) -> Any:
    """Memory-map a file. Raises InputError if it is damaged, or contains more than the data of a checkpoint."""
    try:
        with torch.serialization.safe_globals(_deepspeed_classes()):
            return torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file} contains more than the data of a checkpoint and is not opened: {one_line(error):.300}"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{file} is damaged ({first_line(error)}): give another checkpoint") from error


def _deepspeed_classes() -> list[Any]:
    """The harmless classes in DeepSpeed's files; those of ZeRO-0 in fp32, which are read without it too, have none."""
    try:
        from deepspeed.runtime.fp16.loss_scaler import LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address
    except ImportError:
        return []
    return [LossScaler, ZeroStageEnum, fragment_address]


def _merge_shards(checkpoint: Path, files: list[Path], groups: list[Shapes]) -> dict[str, Tensor]:
    """The fp32 weights from the shards of all ranks; groups: the shapes of each group of the optimizer, in order."""
    states = [open_states(file)["optimizer_state_dict"] for file in files]
    partitions = states[0]["partition_count"]
    ranks = max(partitions) if isinstance(partitions, (list, tuple)) else int(partitions)
    if len(files) != ranks:
        raise InputError(f"{checkpoint} has the files of {len(files)} ranks, but was saved by {ranks} ranks")
    if int(states[0]["zero_stage"]) == 3:
        flat = [state["fp32_flat_groups"] for state in states]
        return _unflatten_zero3(flat, {name: shape for group in groups for name, shape in group.items()})
    weights: dict[str, Tensor] = {}
    for g, shapes in enumerate(groups):
        shards = [state["single_partition_of_fp32_groups"][g] for state in states]
        weights |= _unflatten_group(torch.cat(shards), shapes, ranks)
    return weights


def _unflatten_group(flat: Tensor, shapes: Shapes, ranks: int) -> dict[str, Tensor]:
    """ZeRO 1 and 2: the joined shards of a group are its parameters, one after another, and padding."""
    weights, offset = {}, 0
    for name, shape in shapes.items():
        weights[name] = flat[offset : offset + shape.numel()].view(shape)
        offset += shape.numel()
    if not offset <= len(flat) < offset + 2 * ranks:  # DeepSpeed aligns to twice the number of ranks
        raise InputError(f"a group has {len(flat)} numbers, but its parameters have {offset}: unknown file layout")
    return weights


def _unflatten_zero3(flat: list[list[Tensor]], shapes: Shapes) -> dict[str, Tensor]:
    """ZeRO 3: each rank has 1/N of each parameter, in flat pieces, one per sub-group; that of the last is padded."""
    weights, piece, offset = {}, 0, 0
    for name, shape in shapes.items():
        if offset == len(flat[0][piece]):
            piece, offset = piece + 1, 0
        size = math.ceil(shape.numel() / len(flat))
        shards = [pieces[piece][offset : offset + size] for pieces in flat]
        weights[name] = torch.cat(shards)[: shape.numel()].view(shape)
        offset += size
    return weights


def _fp32_copies(module: Mapping[str, Tensor], groups: Iterable[list[Tensor]]) -> dict[str, Tensor]:
    """ZeRO 0 in bf16: the fp32 weights have no names; each is the next that rounds to a named bf16 weight."""
    weights = {}
    for group in groups:
        names = iter(module)
        for value in group:
            name = next(n for n in names if torch.equal(value.to(module[n].dtype), module[n]))
            weights[name] = value
    return weights
