"""A checkpoint's weights, put together from DeepSpeed's files: no GPU, no ranks, and nothing run that they say.

    mp_rank_00_model_states.pt                     ZeRO 0-2: the weights that compute (bf16 or fp32), and the buffers
    zero_pp_rank_{r}_mp_rank_00_model_states.pt    ZeRO 3: buffers and shapes
    *zero_pp_rank_{r}_mp_rank_00_optim_states.pt   ZeRO 1-3: rank r's share of the fp32 weights, flat; the moments
    ema.safetensors                                the running mean of the weights, where there is one

The files are pickles. They are opened by PyTorch's restricted unpickler, which makes tensors, plain containers and the
three inert DeepSpeed classes named below, and refuses the rest; and they are mapped, so that moments are never read.
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


def consolidated_state_dict(checkpoint: Path, mean: bool = True) -> dict[str, Tensor]:
    """The state of a CodecGPT in fp32, buffers included. mean: the running mean of the weights where there is one.

    Raises InputError for files that are missing, damaged, or not those of a checkpoint.
    """
    models, shares = _files(checkpoint, "model_states"), _files(checkpoint, "optim_states")
    if not models:
        raise InputError(f"{checkpoint} has no *_model_states.pt: it is no checkpoint of this trainer")
    first = _open(models[0])
    try:
        module, buffers = first["module"], set(first["buffer_names"] or ())
        if mean and (checkpoint / ema.FILE).is_file():
            found = load_file(checkpoint / ema.FILE)
            del found["updates"]
        elif shares:
            found = _from_shares(checkpoint, shares, first["param_shapes"])
        else:
            found = {name: value for name, value in module.items() if name not in buffers}
            found |= _masters(found, (first["optimizer"] or {}).get("fp32_groups", ()))
    except (KeyError, TypeError, AttributeError, StopIteration, RuntimeError) as error:
        raise InputError(f"{checkpoint} is not laid out as DeepSpeed does ({error!r})") from error
    state = {name: found[name] if name in found else module[name] for name in module}
    if missing := [name for name in module if name not in buffers and name not in found]:
        raise InputError(f"{checkpoint} holds no weights of {', '.join(missing)}")
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def check_pickles_are_safe(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Open every `part`th of so many of a folder's pickles: DeepSpeed's own reader would run whatever they say.

    Raises InputError for a file that holds more than a checkpoint does, or is damaged.
    """
    for file in sorted(folder.rglob("*.pt"))[part::parts]:
        _open(file)


def _files(checkpoint: Path, kind: str) -> list[Path]:
    """DeepSpeed's files of a kind, by rank."""
    found = [(re.search(r"rank_(\d+)_mp", path.name), path) for path in checkpoint.glob(f"*{kind}.pt")]
    return [path for _, path in sorted((int(rank.group(1)) if rank else 0, path) for rank, path in found)]


def _open(file: Path) -> Any:
    """A file's contents, mapped. Raises InputError where it is damaged, or holds what a checkpoint does not."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            return torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = one_line(error)
        raise InputError(f"{file} holds more than a checkpoint does, and is not opened: {reason:.300}") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{file} is damaged ({first_line(error)}): take another checkpoint") from error


def _from_shares(checkpoint: Path, files: list[Path], shapes: list[Mapping[str, torch.Size]]) -> dict[str, Tensor]:
    """The fp32 weights from all ranks' shares of them; shapes: of each group of the optimizer, in order."""
    states = [_open(file)["optimizer_state_dict"] for file in files]
    told = states[0]["partition_count"]
    ranks = max(told) if isinstance(told, (list, tuple)) else int(told)
    if len(files) != ranks:
        raise InputError(f"{checkpoint} has the shares of {len(files)} ranks, and {ranks} ranks saved it")
    if int(states[0]["zero_stage"]) == 3:
        flat = [state["fp32_flat_groups"] for state in states]
        return _gathered(flat, {name: shape for group in shapes for name, shape in group.items()})
    found: dict[str, Tensor] = {}
    for g, group in enumerate(shapes):
        found |= _cut(torch.cat([state["single_partition_of_fp32_groups"][g] for state in states]), group, ranks)
    return found


def _cut(flat: Tensor, shapes: Mapping[str, torch.Size], ranks: int) -> dict[str, Tensor]:
    """ZeRO 1 and 2: the ranks' shares of a group, joined, hold its parameters one after another, then padding."""
    found, at = {}, 0
    for name, shape in shapes.items():
        found[name] = flat[at : at + shape.numel()].view(shape)
        at += shape.numel()
    if not at <= len(flat) < at + 2 * ranks:  # DeepSpeed aligns to twice the ranks
        raise InputError(f"a group of {len(flat)} numbers does not hold parameters of {at}: written in another layout")
    return found


def _gathered(flat: list[list[Tensor]], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """ZeRO 3: each rank has 1/N of each parameter, in as many flat pieces as sub-groups; the last rank's is padded."""
    found, piece, at = {}, 0, 0
    for name, shape in shapes.items():
        if at == len(flat[0][piece]):
            piece, at = piece + 1, 0
        share = math.ceil(shape.numel() / len(flat))
        found[name] = torch.cat([own[piece][at : at + share] for own in flat])[: shape.numel()].view(shape)
        at += share
    return found


def _masters(module: Mapping[str, Tensor], groups: Iterable[list[Tensor]]) -> dict[str, Tensor]:
    """ZeRO 0 in bf16 keeps fp32 weights by group, without names: each is the next that rounds to the one named."""
    found = {}
    for group in groups:
        names = iter(module)
        for value in group:
            name = next(n for n in names if torch.equal(value.to(module[n].dtype), module[n]))
            found[name] = value
    return found
