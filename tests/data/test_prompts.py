"""Templates and masks against expectations written by hand."""

import json

import pytest
from helpers import refusal, stage, write_params

from finetune.commands.escapes import unescape
from finetune.data import alpaca
from finetune.models import tokenizer as tokenizers

RECORD = {"instruction": "Name a colour.", "input": "Not red.", "output": "Blue."}

WITH_INPUT = """Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
Name a colour.

### Input:
Not red.

### Response:
"""
WITHOUT_INPUT = """Below is an instruction that describes a task. \
Write a response that appropriately completes the request.

### Instruction:
Name a colour.

### Response:
"""


def prepared_row(workspace, model, record, **data) -> dict:
    """What prepare makes of `record`, found by its answer."""
    from datasets import load_from_disk

    rows = [record, *({"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(5))]
    (workspace / "data/raw/words.json").write_text(json.dumps(rows))
    write_params(workspace, data={"size": 6} | data)
    stage("prepare", "--model_name", model)
    splits = load_from_disk(str(workspace / "data/prepared"))
    return next(row for split in splits.values() for row in split if row["reference"] == record["output"])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("context", "prompt"), [("Not red.", WITH_INPUT), ("", WITHOUT_INPUT)])
def test_alpaca_prompts_are_masked_up_to_the_response(workspace, tiny_models, family, context, prompt):
    row = prepared_row(workspace, tiny_models[family], RECORD | {"input": context})
    tokenizer = tokenizers.load(tiny_models[family])
    prompt_ids, answer_ids = (tokenizer(text)["input_ids"] for text in (prompt, "Blue."))
    assert row["prompt"] == prompt
    assert row["input_ids"] == [*prompt_ids, *answer_ids, tokenizer.eos_token_id]
    assert row["labels"] == [-100] * len(prompt_ids) + [*answer_ids, tokenizer.eos_token_id]
    assert not row["truncated"]


def test_chat_template_is_the_models_own(workspace, tiny_models):
    row = prepared_row(workspace, tiny_models["llama"], RECORD, template="chat")
    assert row["prompt"] == "<user>Name a colour.\n\nNot red.\n<assistant>"
    assert row["labels"][-1] == row["input_ids"][-1] == tokenizers.load(tiny_models["llama"]).eos_token_id


def test_smollm2_tokens_written_by_hand(workspace, smollm2):
    row = prepared_row(workspace, smollm2, {"instruction": "Hi", "output": "Hello."})
    tokenizer = tokenizers.load(smollm2)
    pieces = [tokenizer.decode([token]) for token in row["input_ids"]]
    assert pieces[-10:] == ["Hi", "\n", "\n", "###", " Response", ":", "\n", "Hello", ".", "<|im_end|>"]
    assert [label != -100 for label in row["labels"][-5:]] == [False, False, True, True, True]


def test_chat_without_a_chat_template_is_refused(workspace, tiny_models):
    write_params(workspace, data={"template": "chat"})
    message = refusal("prepare", "--model_name", tiny_models["gpt2"])
    assert "data.template: this model has no chat template; use -S data.template=alpaca" in message


def test_a_long_response_is_cut_without_an_end_token(workspace, tiny_models):
    record = {"instruction": "Count.", "output": "one two three four five six seven" * 40}
    row = prepared_row(workspace, tiny_models["llama"], record, max_length=200)
    assert row["truncated"] and len(row["input_ids"]) == len(row["labels"]) == 200
    assert row["input_ids"][-1] != tokenizers.load(tiny_models["llama"]).eos_token_id


def test_a_prompt_without_room_for_a_response_is_dropped_and_counted(workspace, tiny_models):
    rows = [{"instruction": "Read: " + "word " * 300, "output": "Yes."}]
    rows += [{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(6)]
    (workspace / "data/raw/words.json").write_text(json.dumps(rows))
    stage("prepare", "--model_name", tiny_models["llama"])
    metrics = json.loads((workspace / "metrics/data.json").read_text())
    assert metrics["dropped_prompt_too_long"] == 1 and metrics["records_kept"] == 6


@pytest.mark.parametrize(
    ("typed", "instruction", "context"),
    [
        ("Write a poem.", "Write a poem.", ""),
        ("### Instruction:\nWrite a poem.", "Write a poem.", ""),
        ("### Instruction:\nShorten.\n\n### Input:\nA long text.\n\n### Response:\n", "Shorten.", "A long text."),
        (WITH_INPUT, "Name a colour.", "Not red."),
    ],
)
def test_a_typed_prompt_may_have_headings(typed, instruction, context):
    assert alpaca.parse(typed) == (instruction, context)


def test_escape_sequences_of_a_shell():
    assert unescape(r"a\nb\tc\\n \"d\" \u00e9 C:\dir 漢字") == 'a\nb\tc\\n "d" é C:\\dir 漢字'
