"""The prepared dataset: splits without leaks, the same bytes for the same seed, honest counts."""

import json

import pytest
from datasets import load_from_disk
from helpers import files_in, refusal, stage, write_params


@pytest.fixture
def prepare(workspace, tiny_models):
    def run(*arguments, **data):
        write_params(workspace, data={"size": 40} | data)
        stage("prepare", "--model_name", tiny_models["llama"], *arguments)
        return load_from_disk(str(workspace / "data/prepared"))

    return run


def test_no_question_is_in_two_splits(prepare):
    splits = prepare(validation=0.25, test=0.25)
    prompts = {name: set(split["prompt"]) for name, split in splits.items()}
    assert {name: len(split) for name, split in splits.items()} == {"train": 20, "validation": 10, "test": 10}
    assert len(set.union(*prompts.values())) == 40


def test_same_seed_same_bytes_and_another_seed_another_sample(workspace, prepare):
    prepare()
    first = files_in(workspace)
    prepare()
    assert files_in(workspace) == first
    other = prepare(seed=1)
    assert files_in(workspace) != first
    assert len(other["train"]) == 32


def test_counts_are_those_of_the_dataset(workspace, prepare, words):
    long = {"instruction": "Count.", "output": "one two three four " * 60}
    (workspace / "data/raw/words.json").write_text(json.dumps([*words, long]))
    splits = prepare(size=49, max_length=150)
    rows = [row for split in splits.values() for row in split]
    metrics = json.loads((workspace / "metrics/data.json").read_text())
    assert metrics["records_read"] == len(words) + 1
    assert metrics["records_kept"] == len(rows) == sum(metrics[f"{name}_records"] for name in splits)
    assert metrics["tokens"] == sum(len(row["input_ids"]) for row in rows)
    assert metrics["response_tokens"] == sum(label != -100 for row in rows for label in row["labels"])
    assert metrics["length_max"] == max(len(row["input_ids"]) for row in rows) <= 150
    assert metrics["truncated_share"] == round(sum(row["truncated"] for row in rows) / len(rows), 4) > 0


def test_the_histogram_is_a_picture(workspace, prepare):
    prepare()
    assert (workspace / "plots/lengths.png").read_bytes().startswith(b"\x89PNG")


def test_size_flag_wins_and_out_dir_takes_everything(workspace, tiny_models):
    stage("prepare", "--model_name", tiny_models["llama"], "--size", 12, "--out_dir", "mine")
    assert json.loads((workspace / "mine/metrics/data.json").read_text())["records_kept"] == 12
    assert (workspace / "mine/plots/lengths.png").exists()
    assert not (workspace / "data/prepared").exists() and not (workspace / "metrics").exists()


def test_a_folder_with_other_things_is_never_replaced(workspace, tiny_models):
    (workspace / "diary").mkdir()
    (workspace / "diary/today.txt").write_text("dear")
    message = refusal("prepare", "--model_name", tiny_models["llama"], "--out_dir", "diary")
    assert "diary: holds other files, which would be lost" in message
    assert (workspace / "diary/today.txt").read_text() == "dear"


def test_a_dataset_of_another_tokenizer_is_refused(workspace, prepare, smollm2):
    prepare()
    message = refusal("train", "--model_name", smollm2, "--method", "lora")
    assert "data/prepared: was tokenised for another model; prepare it again" in message


def test_training_before_preparing_is_refused(workspace, tiny_models):
    assert "no prepared dataset there; run `python stages/prepare.py` first" in refusal(
        "train", "--model_name", tiny_models["llama"], "--method", "lora"
    )
    assert "models/base: no base model there" in refusal("train")


def test_more_tokens_than_the_model_has_positions_are_refused(workspace, tiny_models):
    write_params(workspace, data={"max_length": 513})
    message = refusal("prepare", "--model_name", tiny_models["gpt2"])
    assert "data.max_length: 513 tokens are more than the model's 512 positions" in message
    small = {"data": {"max_length": 256}}
    write_params(workspace, **small, eval={"max_new_tokens": 500})
    before_training = refusal("prepare", "--model_name", tiny_models["gpt2"])
    assert "eval.max_new_tokens: 500 tokens after a prompt of" in before_training
    write_params(workspace, **small)
    stage("prepare", "--model_name", tiny_models["gpt2"])
    write_params(workspace, **small, eval={"max_new_tokens": 500})
    assert "eval.max_new_tokens: 500 tokens after a prompt of" in refusal(
        "eval", "--base", "--model_name", tiny_models["gpt2"]
    )
    assert not (workspace / "data/predictions").exists() and not (workspace / "metrics/base.json").exists()
