"""The way to the hub (huggingface.co, or what HF_ENDPOINT names)."""

from __future__ import annotations

from pathlib import Path

from pipeline.common.errors import InputError, one_line
from pipeline.hub.model_card import NAME
from pipeline.models.codec_gpt import CONFIG, WEIGHTS

FILES = [WEIGHTS, CONFIG, NAME]


class HubUploadError(RuntimeError):
    """The hub did not take what was sent; the message says why, and how to send it again."""


def check(repository: str) -> None:
    """Raises InputError, before any work, for what is no OWNER/NAME, and where there is no token to write with."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"push={repository}: {error}") from error
    if repository.count("/") != 1:
        raise InputError(f"push={repository}: give OWNER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"push={repository}: HF_HUB_OFFLINE is set; unset it, or push from where there is a network")
    if not get_token():
        raise InputError(f"push={repository}: there is no token for the hub; run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload an export in one commit, making the repository if need be; its address. Raises Unreached."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=FILES, commit_message="codec-audio-lm: export"
        )
    except Exception as error:  # each layer below has errors of its own: HTTP, TLS, sockets, Xet
        reason = one_line(error)
        raise HubUploadError(
            f"the hub did not take it ({reason:.300}); it lies at {folder}: `hf upload {repository} {folder}` sends it"
        ) from error
    return str(address)
