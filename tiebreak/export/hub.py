"""Pushes an exported folder to the hub, as one commit to an empty repository."""

from __future__ import annotations

from pathlib import Path

from tiebreak.errors import MachineError, ModelError
from tiebreak.export.configuration import ExportArguments
from tiebreak.terminal import say

_EMPTY = {".gitattributes"}
_LATER = "or use --to safetensors, and 'hf upload' later"


def require_login() -> None:
    """Refuse before anything is loaded.

    Raises:
        MachineError: offline, or without a login.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise MachineError(f"HF_HUB_OFFLINE is set, so nothing can be pushed: unset it, {_LATER}")
    if get_token() is None:
        raise MachineError(f"there is no login to the hub: run 'hf auth login', or set HF_TOKEN, {_LATER}")


def push(folder: Path, arguments: ExportArguments) -> str:
    """Push a folder; returns its address.

    Raises:
        ModelError: the repository has files already, or the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api, repo = HfApi(), str(arguments.repo)
    again = f"{folder} is finished: fix the cause, and run the same command again"
    try:
        address = api.create_repo(repo, private=arguments.private, exist_ok=True)
        if set(api.list_repo_files(repo)) - _EMPTY:
            raise ModelError(
                f"{repo} has files already, and nothing is overwritten: give another --repo, or push {folder} yourself "
                f"with 'hf upload {repo} {folder}'"
            )
        say(f"pushing {folder} to {address}")
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Exported by Tiebreak")
    except (HfHubHTTPError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot push to {repo} ({first}); {again}") from error
    return str(address)
