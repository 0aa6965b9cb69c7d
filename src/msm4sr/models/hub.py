"""Models on the Hugging Face hub: upload a model folder, and load one by its name ("organisation/name")."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msm4sr.errors import InputError, first_line

REQUIRED = ("config.json", "model.safetensors")
FILES = (*REQUIRED, "items.json", "rows.json", "README.md")
"""The files of a model that are uploaded and downloaded; others are ignored."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LOG_IN = "run `hf auth login`, or set HF_TOKEN"


def model_folder(source: str | Path) -> Path:
    """The folder of a model: `source` itself, or where the model of that name on the hub is downloaded to.

    A folder that exists is preferred to a model of the same name on the hub, and a `Path` is always a folder.

    Raises:
        InputError: the model does not exist, is incomplete, or the hub cannot be reached.
    """
    if isinstance(source, Path) or Path(source).exists() or not _NAME.fullmatch(source):
        return Path(source)
    hub = _import(f"{source}: there is no folder of that name, and to load it from the hub")
    with _errors(source, f"there is neither a folder of that name nor a model on the hub; for a private one {LOG_IN}"):
        folder = Path(hub.snapshot_download(source, allow_patterns=list(FILES)))
    for name in REQUIRED:
        if not (folder / name).is_file():
            raise InputError(f"{source}: no model of msm4sr: {name} is missing in this repository of the hub")
    return folder


def push_to_hub(folder: str | Path, repo_id: str, private: bool = False) -> str:
    """Upload a model folder to the hub; the repository is created if it does not exist.

    Args:
        folder: what `save_pretrained` wrote, or `RUN/model`. Only `FILES` are uploaded.
        repo_id: "organisation/name".
        private: whether a new repository is private.

    Returns:
        The address of the model.

    Raises:
        InputError: the folder is incomplete, `repo_id` is malformed, no token permits the upload, or the hub cannot be
            reached.
    """
    for name in REQUIRED:
        if not (Path(folder) / name).is_file():
            raise InputError(f"{folder}: no model here ({name} is missing)")
    if not _NAME.fullmatch(repo_id):
        raise InputError(f"push_to_hub: {repo_id!r} is no name of a repository; give 'organisation/name'")
    hub = _import("push_to_hub")
    if hub.get_token() is None:
        raise InputError(f"push_to_hub: no token for the hub; {LOG_IN}")
    with _errors(repo_id, "the repository is missing, or the token does not permit to see it"):
        address = hub.create_repo(repo_id, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repo_id, folder_path=folder, allow_patterns=list(FILES), commit_message="Upload the model"
        )
    return str(address)


def _import(what: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(f"{what}: huggingface_hub is not installed: pip install 'msm4sr[hub]'") from None
    return huggingface_hub


@contextmanager
def _errors(repo_id: str, not_found: str) -> Iterator[None]:
    """Raise InputError for the errors of the hub and of the network."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is that of its HTTP client
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise InputError(f"{repo_id}: access to this model must be requested on its page of the hub") from None
    except RepositoryNotFoundError:
        raise InputError(f"{repo_id}: {not_found}") from None
    except HFValidationError as error:
        raise InputError(f"{repo_id}: {first_line(error)}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise InputError(f"{repo_id}: the token of the hub does not permit this ({status}); {LOG_IN}") from None
        raise InputError(f"{repo_id}: the hub answered {status}: {first_line(error)}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError) as error:
        raise InputError(
            f"{repo_id}: the hub ({constants.ENDPOINT}) cannot be reached ({first_line(error)}); "
            "check the network, or give a folder"
        ) from None
