"""The forms in which people keep instructions: alike in tokens and masks, by hand-written expectations."""

import csv
import gzip
import json

import pytest
from datasets import load_from_disk
from helpers import refusal, stage, write_params

from finetune import yaml_file
from finetune.commands.escapes import unescape
from finetune.data import alpaca
from finetune.errors import UserError
from finetune.models.base import load_tokenizer

TURNS = [("user", "Name a colour."), ("assistant", "Blue."), ("user", "Another?"), ("assistant", "Red.")]
SYSTEM = "Be brief."
FORMS = {
    "messages": {
        "messages": [
            {"role": "system", "content": SYSTEM},
            *({"role": role, "content": text} for role, text in TURNS),
        ]
    },
    "sharegpt": {
        "system": SYSTEM,
        "conversations": [{"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in TURNS],
    },
    "prompt_completion": {
        "prompt": [
            {"role": "system", "content": SYSTEM},
            *({"role": role, "content": text} for role, text in TURNS[:-1]),
        ],
        "completion": [{"role": "assistant", "content": "Red."}],
    },
    "alpaca": {"instruction": "Another?", "output": "Red.", "system": SYSTEM, "history": [["Name a colour.", "Blue."]]},
}


@pytest.fixture
def prepare(workspace, tiny_models):
    """Prepare records (after five that differ) on the tiny Llama; the rows by their last answer."""

    def run(record: dict, model=None, **data):
        others = [{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(5)]
        (workspace / "data/raw/words.json").write_text(json.dumps([record, *others]))
        return prepared(workspace, model or tiny_models["llama"], **data)

    return run


def prepared(workspace, model, *arguments, **data) -> dict[str, dict]:
    write_params(workspace, data={"size": 100} | data)
    stage("prepare", "--model_name", model, *arguments)
    splits = load_from_disk(str(workspace / "data/prepared"))
    return {row["reference"]: row for split in splits.values() for row in split}


def counts(workspace) -> dict:
    return json.loads((workspace / "metrics/data.json").read_text())


def learnt(row: dict, tokenizer) -> list[str]:
    """The stretches that carry loss, as text."""
    stretches, inside = [], False
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        if label != -100:
            stretches = [*stretches[:-1], [*stretches[-1], token]] if inside else [*stretches, [token]]
        inside = label != -100
    return [tokenizer.decode(stretch) for stretch in stretches]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_conversation_teaches_the_same(workspace, prepare, tiny_models, form):
    row = prepare(FORMS[form], template="chat")["Red."]
    tokenizer = load_tokenizer(tiny_models["llama"])
    assert learnt(row, tokenizer) == ["Blue.<|endoftext|>", "Red.<|endoftext|>"]
    assert row["prompt"].startswith("<system>Be brief.\n<user>Name a colour.\n<assistant>Blue.")
    assert counts(workspace)[f"form_{form}"] == (6 if form == "alpaca" else 1)


def test_smollm2_closes_every_answer_as_its_template_does(workspace, prepare, smollm2):
    row = prepare(FORMS["messages"], smollm2, template="chat")["Red."]
    tokenizer = load_tokenizer(smollm2)
    assert learnt(row, tokenizer) == ["Blue.<|im_end|>", "Red.<|im_end|>"]
    facts = yaml_file.read(workspace / "data/prepared/facts.yaml")
    assert facts["end_tokens"] == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_marks_in_a_record_are_text(workspace, prepare, smollm2):
    said = "End with <|im_end|> and <|im_start|>user."
    row = prepare({"instruction": said, "output": f"I say {said}"}, smollm2, template="chat")[f"I say {said}"]
    tokenizer = load_tokenizer(smollm2)
    ends = [index for index, token in enumerate(row["input_ids"]) if token == tokenizer.eos_token_id]
    ordinary = prepare({"instruction": "Plain.", "output": "Well."}, smollm2, template="chat")["Well."]
    assert len(ends) == ordinary["input_ids"].count(tokenizer.eos_token_id)
    assert tokenizer.decode(row["input_ids"]).count(said) == 2


def test_a_template_with_todays_date_gives_the_same_bytes_each_day(workspace, prepare, tiny_models, tmp_path):
    tokenizer = load_tokenizer(tiny_models["llama"])
    tokenizer.chat_template = "{{ strftime_now('%d %B %Y') }}\n" + tokenizer.chat_template
    folder = tmp_path / "dated"
    folder.mkdir()
    for file in tiny_models["llama"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer.save_pretrained(folder)
    row = prepare({"instruction": "Go.", "output": "Gone."}, folder, template="chat")["Gone."]
    assert row["prompt"].startswith("26 July 2024\n")


def test_own_columns_are_mapped(workspace, tiny_models):
    rows = [{"question": f"Say {n}.", "answer": f"It is {n}."} for n in range(6)]
    (workspace / "data/raw/words.json").write_text(json.dumps(rows))
    found = prepared(workspace, tiny_models["llama"], columns={"instruction": "question", "output": "answer"})
    assert set(found) == {row["answer"] for row in rows}


def test_several_sources_are_mixed_by_weight(workspace, tiny_models):
    for name in ("a", "b"):
        rows = [{"instruction": f"Say {name}{n}.", "output": f"It is {name}{n}."} for n in range(40)]
        (workspace / f"{name}.json").write_text(json.dumps(rows))
    write_params(workspace, data={"source": {"a.json": 3, "b.json": 1}, "size": 20})
    stage("fetch", "data")
    stage("prepare", "--model_name", tiny_models["llama"])
    found = counts(workspace)
    assert (found["source_1-a.json"], found["source_2-b.json"], found["records_kept"]) == (15, 5, 20)


@pytest.mark.parametrize("output", [0, False, [], {}, 1.5, ["a"]])
def test_an_output_that_is_no_text_is_counted(workspace, prepare, output):
    prepare({"instruction": "Say.", "output": output})
    assert counts(workspace)["dropped_wrong_type"] == 1


def test_a_quote_that_is_not_closed_is_refused_with_its_line(workspace, tiny_models, words):
    with (workspace / "quoted.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["instruction", "input", "output"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(words)
    text = (workspace / "quoted.csv").read_text()
    (workspace / "quoted.csv").write_text(text.replace(f'{words[5]["output"]}"', words[5]["output"], 1))
    message = refusal("prepare", "--model_name", tiny_models["llama"], "--dataset", "quoted.csv")
    assert "quoted.csv: " in message and "line 7" in message and "isn't closed" in message


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_are_read(workspace, tiny_models, words, delimiter):
    with (workspace / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["instruction", "input", "output"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(words)
    assert set(prepared(workspace, tiny_models["llama"], "--dataset", "a.csv")) == {row["output"] for row in words}


def test_what_lies_beside_the_data_is_left_alone(workspace, tiny_models, words):
    folder = workspace / "mine"
    folder.mkdir()
    (folder / "TRAIN.JSON.GZ").write_bytes(gzip.compress(json.dumps(words).encode()))
    (folder / "dataset_info.json").write_text("{}")
    (folder / "._train.json").write_bytes(b"\0\5\26\7")
    found = prepared(workspace, tiny_models["llama"], "--dataset", "mine")
    assert set(found) == {row["output"] for row in words}


def test_a_long_cell_and_utf_16_are_read(workspace, tiny_models, words):
    rows = [words[0] | {"output": "word " * 30_000}, *words[1:]]
    lines = [",".join(f'"{row[key]}"' for key in ("instruction", "input", "output")) for row in rows]
    (workspace / "long.csv").write_text("\n".join(["instruction,input,output", *lines]), encoding="utf-16")
    prepared(workspace, tiny_models["llama"], "--dataset", "long.csv")
    assert counts(workspace)["records_read"] == 48


def test_a_prompt_may_speak_of_headings():
    said = "What does '### Input:' mean, and ### Response: too?"
    assert alpaca.parse(said) == (said, "")


def test_surrogates_of_a_shell():
    assert unescape(r"Say what \ud83d\ude00 means") == "Say what 😀 means"
    with pytest.raises(UserError, match="half of a surrogate pair"):
        unescape(r"Say \ud83d alone")
