"""What comes from a DVC remote is checked against dvc.lock before it is used, and stays in its folder."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import GIT, command, commit

from finetune import yaml_file
from finetune.errors import UserError
from finetune.experiments import revisions
from finetune.places import TUNED
from finetune.registry import fetched


@pytest.fixture(scope="module")
def pushed(tmp_path_factory) -> Path:
    """A repository whose models/tuned lies in the remote beside it, and nowhere else."""
    folder = tmp_path_factory.mktemp("pushed") / "repository"
    folder.mkdir()
    made = (
        "mkdir -p models/tuned && echo 'method: lora' > models/tuned/facts.yaml && echo {} > models/tuned/config.json"
    )
    (folder / "dvc.yaml").write_text(yaml_file.text({"stages": {"train": {"cmd": made, "outs": ["models/tuned"]}}}))
    for step in (
        [*GIT, "init", "--quiet"],
        ["dvc", "init", "--quiet"],
        ["dvc", "remote", "add", "--default", "shared", folder.parent / "remote"],
        ["dvc", "repro", "--quiet"],
        ["dvc", "push", "--quiet"],
    ):
        done = command(*step, cwd=folder)
        assert done.returncode == 0, done.stderr
    commit(folder, "trained")
    shutil.rmtree(folder / ".dvc/cache")
    shutil.rmtree(folder / "models")
    return folder


def brought(folder: Path, monkeypatch) -> Path:
    """models/tuned of HEAD, from the remote."""
    monkeypatch.chdir(folder)
    shutil.rmtree(folder / ".dvc/tmp", ignore_errors=True)
    shutil.rmtree(folder / ".dvc/cache", ignore_errors=True)
    with revisions.repository("HEAD") as repo:
        locked = fetched.lock(repo, repo.scm.get_rev(), "HEAD")
        return fetched.output(repo, repo.scm.get_rev(), locked, TUNED, "HEAD")


def test_what_the_lock_names_is_taken(pushed, monkeypatch):
    assert yaml_file.read(brought(pushed, monkeypatch) / "facts.yaml") == {"method": "lora"}


@pytest.mark.parametrize("name", ["facts.yaml", "../../../../../escaped.yaml"])
def test_what_a_remote_has_changed_is_refused(pushed, monkeypatch, tmp_path, name):
    """A file's content, or a listing that leads out of the folder."""
    remote = pushed.parent / "remote"
    kept = shutil.copytree(remote, tmp_path / "kept")
    (listing,) = remote.rglob("*.dir")
    entries = json.loads(listing.read_text())
    facts = next(entry for entry in entries if entry["relpath"] == "facts.yaml")
    for file in (listing, remote / "files/md5" / facts["md5"][:2] / facts["md5"][2:]):
        file.chmod(0o644)
    if name == "facts.yaml":
        file.write_text("method: full\n")
    else:
        facts["relpath"] = name
        listing.write_text(json.dumps(entries))
    before = sorted(pushed.parent.rglob("*escaped*"))
    try:
        with pytest.raises(UserError, match=r"HEAD: .*(is damaged in the remote|another than its dvc\.lock)"):
            brought(pushed, monkeypatch)
    finally:
        shutil.rmtree(remote)
        shutil.copytree(kept, remote)
    assert sorted(pushed.parent.rglob("*escaped*")) == before
    assert not list((pushed / fetched.FETCHED).iterdir())
