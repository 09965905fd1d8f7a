"""The shipped model, data and params through the whole pipeline: ten minutes, so `make test-slow`."""

import json

import pytest
from helpers import clone_of_the_working_tree, dvc


@pytest.mark.slow
def test_the_defaults_gain_on_the_base_model(tmp_path):
    clone = clone_of_the_working_tree(tmp_path / "clone")
    done = dvc(clone, "repro")
    assert done.returncode == 0, done.stderr
    base, tuned = (json.loads((clone / f"metrics/{name}.json").read_text()) for name in ("base", "eval"))
    assert tuned["test_loss"] < base["test_loss"]
    assert tuned["rouge_l"] > base["rouge_l"]
