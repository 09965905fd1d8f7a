"""The shipped model and data through the whole pipeline: minutes, so `make test-slow`."""

import json

import pytest
import yaml
from helpers import clone_of_the_working_tree, dvc, output_hashes


@pytest.mark.slow
def test_it_gains_on_the_base_model_and_comes_out_the_same_twice(tmp_path):
    clone = clone_of_the_working_tree(tmp_path / "clone")
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params["data"] |= {"size": 160}
    params["eval"] |= {"max_new_tokens": 48}
    (clone / "params.yaml").write_text(yaml.safe_dump(params))

    done = dvc(clone, "repro")
    assert done.returncode == 0, done.stderr
    base, tuned = (json.loads((clone / f"metrics/{name}.json").read_text()) for name in ("base", "eval"))
    assert tuned["test_loss"] < base["test_loss"]
    assert tuned["rouge_l"] > base["rouge_l"]

    first = output_hashes(clone)
    done = dvc(clone, "repro", "--force", "--single-item", "train", "eval")
    assert done.returncode == 0, done.stderr
    second = output_hashes(clone)
    for path in ("models/tuned", "data/predictions/tuned.jsonl"):
        assert second[path] == first[path]
    assert json.loads((clone / "metrics/eval.json").read_text()) == tuned
