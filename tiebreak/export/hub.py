"""Pushes models to the hub, as one commit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tiebreak.errors import MachineError, ModelError
from tiebreak.export.configuration import ExportArguments
from tiebreak.terminal import say

_EMPTY = {".gitattributes"}
_LATER = "or use 'tiebreak export RUN --to safetensors', and 'hf upload' later"


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


def require_repository(repo: str, *, private: bool, replace: bool) -> None:
    """Check the login and the repository before any work. Nothing is created yet.

    Raises:
        MachineError: the hub does not accept the login, or is not reached.
        ModelError: the repository has files already, or is public where a private one is wanted, or the reverse.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    try:
        user = api.whoami()["name"]
        try:
            found = api.repo_info(repo)
        except RepositoryNotFoundError:
            return
        files = set(api.list_repo_files(repo)) - _EMPTY
    except Exception as error:
        raise MachineError(
            f"the hub does not accept the login, or is not reached ({_first_line(error)}); nothing is done yet"
        ) from error
    if bool(found.private) != private:
        state, flag = (
            ("private", "--private true") if found.private else ("public", "--private false, if the model may be")
        )
        raise ModelError(f"{repo} is {state} already: give {flag}, or another repository (the login is {user})")
    if files and not replace:
        raise ModelError(
            f"{repo} has files already: give another repository, or --replace true, which keeps them in its history"
        )


def push_files(repo: str, files: Mapping[str, Path | bytes], *, private: bool) -> str:
    """Push files, by their path in the repository, as one commit that removes what else is there; returns the address.

    Raises:
        MachineError: the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi

    api = HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        stale = set(api.list_repo_files(repo)) - _EMPTY - files.keys()
        operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
            *(CommitOperationAdd(name, file if isinstance(file, bytes) else str(file)) for name, file in files.items()),
            *(CommitOperationDelete(name) for name in sorted(stale)),
        ]
        api.create_commit(repo, operations, commit_message="Pushed by Tiebreak")
    except Exception as error:
        raise MachineError(
            f"cannot push to {repo} ({_first_line(error)}); the export is finished: fix the cause, and run it again"
        ) from error
    return str(address)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
