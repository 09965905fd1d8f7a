"""A registered model's name in `artifacts:` of dvc.yaml, in the commit that bears the tag.

DVC (`dvc artifacts get`) finds a model only by the two together. An experiment can't have the name, which is given
afterwards.
"""

import io
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune import places
from finetune.errors import UserError
from finetune.registry import fetched


def annotated(repo: Any, commit: str, model: str) -> str:
    """`commit` if its dvc.yaml has `model` among its artifacts; else a new commit on top of it, which adds that.

    Neither a branch nor the user's files are touched. Raises UserError if that name is another artifact's.
    """
    from ruamel.yaml import YAML

    style = YAML()
    style.width = sys.maxsize  # no line of the user's is folded
    style.indent(mapping=2, sequence=4, offset=2)
    pipeline = style.load(fetched.read(repo, commit, "dvc.yaml", model))
    artifacts = pipeline.setdefault("artifacts", {})
    if model in artifacts:
        if artifacts[model].get("path") != places.TUNED.as_posix():
            raise UserError(f"{model}: is {artifacts[model].get('path')} in dvc.yaml; choose another name")
        return commit
    artifacts[model] = {"path": places.TUNED.as_posix(), "type": "model"}
    text = io.StringIO()
    style.dump(pipeline, text)
    return _commit_on_top(
        commit, fetched.in_git(repo, "dvc.yaml"), text.getvalue(), f"Register {model}: {places.TUNED}"
    )


def _commit_on_top(commit: str, path: str, text: str, message: str) -> str:
    """A commit that differs from `commit`, its parent, in one file."""
    with TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        _git("read-tree", commit, **index)
        blob = _git("hash-object", "-w", "--stdin", given=text)
        _git("update-index", "--cacheinfo", f"100644,{blob},{path}", **index)
        tree = _git("write-tree", **index)
    return _git("commit-tree", tree, "-p", commit, "-m", message)


def _git(*arguments: str, given: str | None = None, **environment: str) -> str:
    """What Git's plumbing prints."""
    done = subprocess.run(
        ["git", *arguments],
        input=given,
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return done.stdout.strip()
