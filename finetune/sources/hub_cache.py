"""What earlier downloads from the Hugging Face Hub have left on this machine, for when the Hub can't be asked."""

from pathlib import Path

from huggingface_hub import constants

from finetune.files import write_text
from finetune.sources.catalogue import DATA_SUFFIXES, HubRepo
from finetune.sources.contents import TAKEN, useful_files

_NEEDED: dict[str, list[tuple[str, ...]]] = {
    "model": [TAKEN],
    "data": [tuple(f"*[tT][rR][aA][iI][nN]*{end}" for end in DATA_SUFFIXES), DATA_SUFFIXES],
}
"""Ends of names: of the repository's files that have one all must be there; of the second only if none has the first."""
_LEFT_OUT = {"model": ["*/*", ".*", "*.bin.index.json"], "data": ["*dataset_info*"]}


def repo_type(kind: str) -> str:
    """The Hub's word for what is here called `kind`."""
    return "model" if kind == "model" else "dataset"


def repository(kind: str, repo_id: str) -> Path:
    """The folder in huggingface_hub's cache for that repository."""
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type=repo_type(kind))


def note_commit(kind: str, source: HubRepo, commit: str) -> None:
    """Note which commit a branch or tag stands for, as huggingface_hub does where it resolves it."""
    if source.revision != commit:
        write_text(repository(kind, source.repo_id) / "refs" / source.revision, commit)


def snapshot(kind: str, source: HubRepo) -> tuple[Path, list[str]]:
    """The folder of `source` in the cache, whose name is the commit, and the useful files in it.

    Raises huggingface_hub's LocalEntryNotFoundError if it isn't there, or known not to be whole.
    """
    from huggingface_hub import snapshot_download

    folder, useful = Path(), list[str]()
    for ends in _NEEDED[kind]:
        if not useful:
            folder = Path(
                snapshot_download(
                    source.repo_id,
                    revision=source.revision,
                    repo_type=repo_type(kind),
                    local_files_only=True,
                    allow_patterns=[f"*{end}" for end in ends],
                    ignore_patterns=_LEFT_OUT[kind],
                )
            )
            held = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
            useful = useful_files(kind, held)
    return folder, useful
