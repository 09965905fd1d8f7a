"""Every kind of data file, and faults of single records, through stages/prepare.py; those of files are in faults."""

import csv
import json

import pandas
import pytest
from helpers import files_in, refusal, stage, write_params

GOOD = {"instruction": "Say hello.", "input": "", "output": "Hello."}


@pytest.fixture
def prepare(workspace, tiny_models):
    """Run prepare on the tiny Llama with the given arguments."""
    return lambda *arguments: stage("prepare", "--model_name", tiny_models["llama"], *arguments)


@pytest.fixture
def prepare_refuses(workspace, tiny_models):
    return lambda *arguments: refusal("prepare", "--model_name", tiny_models["llama"], *arguments)


def metrics(workspace) -> dict:
    return json.loads((workspace / "metrics/data.json").read_text())


def test_json_jsonl_csv_and_parquet_load_alike(workspace, prepare, words):
    (workspace / "a.json").write_text(json.dumps(words))
    (workspace / "a.jsonl").write_text("\n".join(json.dumps(row) for row in words) + "\n\n")
    with (workspace / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["instruction", "input", "output"])
        writer.writeheader()
        writer.writerows(words)
    pandas.DataFrame(words).to_parquet(workspace / "a.parquet")
    token_ids = {}
    for kind in ("json", "jsonl", "csv", "parquet"):
        prepare("--dataset", f"a.{kind}", "--out_dir", workspace / kind)
        token_ids[kind] = [row["input_ids"] for row in load(workspace / kind)["train"]]
    assert len(token_ids["json"]) == 32
    assert all(ids == token_ids["json"] for ids in token_ids.values())


def load(folder):
    from datasets import load_from_disk

    return load_from_disk(str(folder))


def test_text_with_quotes_commas_and_line_breaks_survives_csv(workspace, prepare, words):
    odd = {"instruction": 'Quote "this", please:\nnow', "input": "", "output": 'He said "a,\nb".\u2028 é 漢字'}
    pandas.DataFrame([odd, *words]).to_csv("odd.csv", index=False)
    write_params(workspace, data={"size": 49})
    prepare("--dataset", "odd.csv")
    rows = [row for split in load(workspace / "data/prepared").values() for row in split]
    assert odd["output"] in [row["reference"] for row in rows]


@pytest.mark.parametrize(
    ("fault", "reason", "sentence"),
    [
        ("text", "not_an_object", "is no object"),
        ({"output": "x"}, "missing_instruction", "has no 'instruction'"),
        ({"instruction": "x"}, "missing_output", "has no 'output'"),
        ({"instruction": "x", "output": None}, "missing_output", "has no 'output'"),
        ({"instruction": "x", "output": 7}, "wrong_type", "that is no text"),
        ({"instruction": "x", "input": ["y"], "output": "z"}, "wrong_type", "that is no text"),
        ({"instruction": "  ", "output": "x"}, "empty_instruction", "has an empty 'instruction'"),
        ({"instruction": "x", "output": "\n"}, "empty_output", "has an empty 'output'"),
    ],
)
def test_a_broken_record_is_counted_or_named(workspace, prepare, prepare_refuses, words, fault, reason, sentence):
    (workspace / "data/raw/words.json").write_text(json.dumps([*words[:5], fault, *words[5:]]))
    prepare()
    assert metrics(workspace)[f"dropped_{reason}"] == 1
    assert metrics(workspace)["records_read"] == 49

    before = files_in(workspace)
    write_params(workspace, data={"on_bad_record": "error"})
    message = prepare_refuses()
    assert "words.json[5]" in message and sentence in message and "-S data.on_bad_record=drop" in message
    (workspace / "params.yaml").write_bytes(before["params.yaml"])
    assert files_in(workspace) == before


def test_a_broken_line_of_jsonl_is_counted_or_named(workspace, prepare, prepare_refuses, words):
    lines = [json.dumps(row) for row in words]
    (workspace / "data/raw/words.json").unlink()
    (workspace / "data/raw/words.jsonl").write_text("\n".join([lines[0], '{"instruction": ', *lines[1:]]))
    prepare()
    assert metrics(workspace)["dropped_broken_line"] == 1
    write_params(workspace, data={"on_bad_record": "error"})
    assert "words.jsonl[1]: is not valid JSON" in prepare_refuses()


def test_duplicates_are_dropped_whatever_their_white_space_and_answer(workspace, prepare, words):
    again = [words[0] | {"output": "Another answer."}, words[1] | {"instruction": f"  {words[1]['instruction']} \n"}]
    (workspace / "data/raw/words.json").write_text(json.dumps([*words, *again]))
    write_params(workspace, data={"on_bad_record": "error", "size": 100})
    prepare()
    assert metrics(workspace)["dropped_duplicate"] == 2
    assert metrics(workspace)["records_kept"] == 48


def test_too_few_records_to_split(workspace, prepare_refuses):
    (workspace / "two.json").write_text(json.dumps([GOOD, GOOD | {"instruction": "Say good-bye."}]))
    assert "2 usable records are too few to split in three" in prepare_refuses("--dataset", "two.json")
