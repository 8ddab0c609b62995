"""Models on the Hugging Face Hub: ``org/name`` stands for the folder of a model wherever a folder is expected.

    load_generator("org/name")                 # the newest revision; "org/name@v1" or "org/name@COMMIT" another one
    model.push_to_hub("org/name", private=True)

Only settings, weights in the format safetensors, and texts are downloaded: nothing in a model repository is executed.
The library ``huggingface_hub`` (extra ``hub``) keeps what it downloaded in its cache, reads the token of ``hf auth
login`` or ``HF_TOKEN``, and the address of another server from ``HF_ENDPOINT``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict, Unpack

from flowportrait import __version__
from flowportrait.errors import BadInput
from flowportrait.extras import require_extra

DOWNLOADED_FILES = ["*.json", "*.safetensors", "*.md", "*.txt"]
"""Patterns of the files that are downloaded."""

_HUB_ID = re.compile(r"(?P<model>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?")
_CLIENT = {"library_name": "flowportrait", "library_version": __version__}


def is_hub_id(name: str | Path) -> bool:
    """Return whether a name is ``org/name`` or ``org/name@revision`` and no path: no file or folder ``org`` exists."""
    text = Path(name).as_posix() if isinstance(name, Path) else name
    return bool(_HUB_ID.fullmatch(text)) and not Path(Path(text).parts[0]).exists()


def model_folder(name: str | Path) -> Path:
    """Return the folder of a model: the given one, or that of the downloaded files of a model on the Hub.

    Args:
        name: a folder, ``org/name`` or ``org/name@revision``. A name is resolved once per process, so that all parts of
            a run read the same revision.

    Raises:
        BadInput: the model does not exist on the Hub, cannot be accessed or cannot be downloaded.
    """
    return _download(*_split(name)) if is_hub_id(name) else Path(name)


def read_hub_config(name: str | Path) -> dict[str, Any]:
    """Return the ``config.json`` of a model on the Hub; empty if there is none, or it cannot be read now."""
    model, revision = _split(name)
    try:
        library = require_extra("hub", "huggingface_hub")
        with _one_sentence(model, revision):
            path = library.hf_hub_download(model, "config.json", revision=revision, **_CLIENT)
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (BadInput, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class UploadSettings(TypedDict, total=False):
    """The settings of an upload, each of which may be left out."""

    private: bool
    """Whether a new repository is private; by default as the organisation's settings say."""
    token: str
    """Access token with the right to write; by default that of ``hf auth login`` or ``HF_TOKEN``."""
    commit_message: str
    """First line of the commit."""


def upload_folder(folder: Path, name: str, **settings: Unpack[UploadSettings]) -> str:
    """Upload a folder as one commit to a model repository on the Hub, which is created if it does not exist.

    Args:
        folder: the folder of a model, with its card ``README.md``.
        name: ``org/name``.
        **settings: see ``UploadSettings``.

    Returns:
        The address of the model.

    Raises:
        BadInput: the name is none, the token is missing or lacks the right, or the upload failed.
    """
    if not re.fullmatch(_HUB_ID.pattern.partition("(?:@")[0], name):
        raise BadInput(f"Cannot upload to {name!r}: give ORGANISATION/NAME or USER/NAME.")
    library = require_extra("hub", "huggingface_hub")
    api = library.HfApi(token=settings.get("token"), **_CLIENT)
    with _one_sentence(name, None, "write"):
        address = api.create_repo(name, private=settings.get("private"), exist_ok=True)
        message = settings.get("commit_message") or f"Upload with FlowPortrait {__version__}"
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    return str(address)


def _split(name: str | Path) -> tuple[str, str | None]:
    model, _, revision = (name.as_posix() if isinstance(name, Path) else name).partition("@")
    return model, revision or None


@lru_cache
def _download(model: str, revision: str | None) -> Path:
    library = require_extra("hub", "huggingface_hub")
    with _one_sentence(model, revision):
        return Path(library.snapshot_download(model, revision=revision, allow_patterns=DOWNLOADED_FILES, **_CLIENT))


@contextmanager
def _one_sentence(model: str, revision: str | None, right: str = "read") -> Iterator[None]:
    """Raise the errors of ``huggingface_hub`` as ``BadInput``."""
    import httpx2
    from huggingface_hub import errors

    login = "log in with hf auth login or set HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError as error:
        message = f"The owners of {model} have to grant you access: ask for it on the page of the model, then {login}."
        raise BadInput(message) from error
    except errors.RevisionNotFoundError as error:
        raise BadInput(f"The model {model} on the Hub has no revision {revision}: check it.") from error
    except errors.RepositoryNotFoundError as error:
        what = f"There is no folder {model}, and the Hub has no such model" if right == "read" else f"No model {model}"
        raise BadInput(f"{what} that you may {right}: check the name; if the model is private, {login}.") from error
    except errors.IncompleteSnapshotError as error:
        raise BadInput(
            f"Only a part of {model} was downloaded before, and the Hub cannot be reached: try again with a connection."
        ) from error
    except (OSError, ValueError, httpx2.HTTPError) as error:
        status = getattr(getattr(_cause(error), "response", None), "status_code", None)
        if status in (401, 403):
            message = f"The Hub refuses to {right} {model} ({status}): {login}, with a token that may {right} it."
        elif isinstance(error, errors.LocalEntryNotFoundError):
            message = (
                f"There is no folder {model}, and the Hub cannot be asked for a model of this name: check the name, "
                "the connection and HF_HUB_OFFLINE."
            )
        else:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            message = f"{'Downloading' if right == 'read' else 'Uploading'} {model} failed ({reason}): try again."
        raise BadInput(message) from error


def _cause(error: BaseException) -> BaseException:
    """Return the error of the server that an error was raised from; the error itself if there is none."""
    while not hasattr(error, "response") and error.__cause__ is not None:
        error = error.__cause__
    return error
