"""The pipeline in a temporary clone, on a tiny random model."""

import json
import subprocess

import pytest
from helpers import clone_of_the_working_tree, commit, dvc, write_params


@pytest.fixture(scope="session")
def clone(tmp_path_factory, tiny_models, words):
    """A clone of this repository, sources and params made small, reproduced and committed."""
    folder = clone_of_the_working_tree(tmp_path_factory.mktemp("pipeline") / "clone")
    (folder / "words.json").write_text(json.dumps(words))
    write_params(folder, model={"source": str(tiny_models["llama"])}, data={"source": "words.json", "size": 40})
    done = dvc(folder, "repro")
    assert done.returncode == 0, done.stderr
    commit(folder, "tiny")
    return folder


@pytest.fixture
def editable(clone):
    """The clone, brought back to its commit afterwards."""
    yield clone
    subprocess.run(["git", "checkout", "--quiet", "."], cwd=clone, check=True)
    assert dvc(clone, "checkout", "--force").returncode == 0
