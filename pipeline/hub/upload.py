"""Upload to the Hugging Face Hub (huggingface.co, or the server that HF_ENDPOINT names)."""

from __future__ import annotations

from pathlib import Path

from pipeline.common.errors import InputError, one_line
from pipeline.hub.model_card import FILE_NAME
from pipeline.models.model_files import CONFIG, WEIGHTS

FILES = [WEIGHTS, CONFIG, FILE_NAME]


class HubUploadError(RuntimeError):
    """The upload failed; the message says why, and how to repeat it."""


def check_upload(repository: str) -> None:
    """Check, before any work, that an upload is possible.

    Raises:
        InputError: The repository is not OWNER/NAME, the hub is set to offline, or there is no token to write with.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"push={repository}: {error}") from error
    if repository.count("/") != 1:
        raise InputError(f"push={repository}: expected OWNER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"push={repository}: HF_HUB_OFFLINE is set; unset it, or push from a machine with a network")
    if not get_token():
        raise InputError(f"push={repository}: there is no token for the hub; run `hf auth login`, or set HF_TOKEN")


def upload_export(folder: Path, repository: str, private: bool) -> str:
    """Upload an export in one commit, creating the repository if necessary.

    Returns:
        The address of the repository.

    Raises:
        HubUploadError: The hub cannot be reached, or refuses the upload.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=FILES, commit_message="codec-audio-lm: export"
        )
    except Exception as error:  # HTTP, TLS, sockets and Xet raise different errors
        raise HubUploadError(
            f"the upload failed ({one_line(error):.300}); the export is in {folder}: upload it by "
            f"`hf upload {repository} {folder}`"
        ) from error
    return str(address)
