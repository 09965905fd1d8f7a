"""params.yaml is validated once, early, with the key's path in the message."""

import pytest
from helpers import ROOT, refusal, write_params

from finetune import params
from finetune.errors import UserError


def test_the_shipped_params_are_valid():
    assert params.load(path=ROOT / "params.yaml").method == "qlora"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "qlorra"}, "method: must be one of qlora, lora, dora, full, got 'qlorra'"),
        ({"train": {"batch_size": 0}}, "train.batch_size: must be at least 1, got 0"),
        ({"train": {"batch_size": 2.5}}, "train.batch_size: must be a whole number, got 2.5"),
        ({"train": {"batch_size": True}}, "train.batch_size: must be a whole number, got True"),
        ({"train": {"batchsize": 2}}, "train.batchsize: unknown key in params.yaml; did you mean batch_size?"),
        ({"data": {"test": 0.6}}, "data.test: must be at most 0.5, got 0.6"),
        ({"data": {"test": 0}}, "data.test: must be above 0, got 0"),
        ({"data": "alpaca"}, "data: must be a group of keys, got 'alpaca'"),
        ({"data": {"on_bad_record": "skip"}}, "data.on_bad_record: must be one of drop, error, got 'skip'"),
        ({"lora": {"target_modules": []}}, "lora.target_modules: must be all-linear or a list of module names"),
        ({"eval": {"tokenize": "spm"}}, "eval.tokenize: must be one of auto, 13a, intl, zh, char, ja-mecab, ko-mecab"),
        ({"methods": {"qlora": {"learning_rate": 0, "epochs": 1}}}, "methods.qlora.learning_rate: must be above 0"),
    ],
)
def test_a_bad_value_is_named_by_its_path(workspace, change, message):
    write_params(workspace, **change)
    assert message in refusal("prepare")


def test_a_missing_key_is_named(workspace):
    text = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(text.replace("  max_length: 256\n", ""))
    assert "data.max_length: missing from params.yaml" in refusal("train")


def test_broken_yaml_and_missing_file(workspace):
    (workspace / "params.yaml").write_text("method: [")
    assert "params.yaml: not valid YAML" in refusal("train")
    (workspace / "params.yaml").write_text("")
    assert "params.yaml: must be a group of keys" in refusal("train")
    (workspace / "params.yaml").unlink()
    assert "params.yaml: not found; run this from the repository's root" in refusal("train")


def test_a_flag_wins_over_the_file_and_is_validated_like_it(workspace):
    assert params.load({"method": "full", "data.size": None}).method == "full"
    with pytest.raises(UserError, match="method: must be one of"):
        params.load({"method": "adapter"})


def test_exponents_without_a_point_are_numbers(workspace):
    write_params(workspace, methods={"full": {"learning_rate": "5e-5", "epochs": 1}})
    assert params.load().methods["full"].learning_rate == 5e-5
