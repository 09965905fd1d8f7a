"""An export onto the Hugging Face Hub. huggingface_hub uploads, so its token, endpoint and proxy settings hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from finetune import network
from finetune.errors import UserError


def check_access(repository: str) -> None:
    """Raise UserError if nobody is logged in at the Hub, or may not write to `repository` (owner/name)."""
    owner, _, name = repository.partition("/")
    try:
        validate_repo_id(repository)
    except HFValidationError:
        name = ""
    if not name:
        raise UserError(f"--push: {repository!r} is no id on the Hugging Face Hub; give one as owner/name")
    with _sentences(repository, "nothing was exported"):
        me = HfApi().whoami()
    names = [me["name"], *(org["name"] for org in me.get("orgs", []))]
    if owner not in names:
        raise UserError(
            f"--push: you are logged in at the Hugging Face Hub as {me['name']}, who doesn't belong to {owner}; "
            f"give an owner among {', '.join(names)}"
        )
    token = (me.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise UserError("--push: your token may only read; make one that may write, and run `hf auth login` again")


def push(folder: Path, repository: str) -> str:
    """Upload `folder` to the model `repository`, which is made if it isn't there; returns its address.

    Raises UserError if the Hub can't be reached, or refuses.
    """
    with _sentences(repository, f"the export is whole in {folder}: `hf upload {repository} {folder}` tries again"):
        api = HfApi()
        url = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export")
    return str(url)


@contextmanager
def _sentences(repository: str, kept: str) -> Iterator[None]:
    try:
        with network.asked_for():
            yield
    except LocalTokenNotFoundError:
        raise UserError(f"--push: you aren't logged in at the Hugging Face Hub; run `hf auth login`; {kept}") from None
    except OfflineModeIsEnabled:
        raise UserError(f"--push: HF_HUB_OFFLINE is set; unset it; {kept}") from None
    except HfHubHTTPError as error:
        reason = _line(error.server_message or str(error))
        raise UserError(f"--push: the Hugging Face Hub refuses {repository} ({reason}); {kept}") from None
    except ValueError as error:
        if "README.md" not in str(error):  # its check of the card
            raise
        raise UserError(f"--push: the Hugging Face Hub refuses the card ({_line(str(error))}); {kept}") from None
    except (HTTPError, OSError) as error:
        raise UserError(
            f"--push: the Hugging Face Hub can't be reached ({type(error).__name__}); check the network and the proxy; {kept}"
        ) from None


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
