"""Templates and masks against expectations written by hand."""

import json

import pytest
from helpers import refusal, stage, write_params

from finetune.commands.escapes import unescape
from finetune.data import alpaca
from finetune.data.forms import Turn
from finetune.data.prepared import prompt_ids
from finetune.data.prompts import Template
from finetune.errors import UserError
from finetune.models.base import load_tokenizer

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
    tokenizer = load_tokenizer(tiny_models[family])
    prompt_ids, answer_ids = (tokenizer(text)["input_ids"] for text in (prompt, "Blue."))
    assert row["prompt"] == prompt
    assert row["input_ids"] == [*prompt_ids, *answer_ids, tokenizer.eos_token_id]
    assert row["labels"] == [-100] * len(prompt_ids) + [*answer_ids, tokenizer.eos_token_id]
    assert not row["truncated"]


def test_chat_template_is_the_models_own(workspace, tiny_models):
    row = prepared_row(workspace, tiny_models["llama"], RECORD, template="chat")
    assert row["prompt"] == "<user>Name a colour.\n\nNot red.\n<assistant>"
    assert row["labels"][-1] == row["input_ids"][-1] == load_tokenizer(tiny_models["llama"]).eos_token_id


def test_smollm2_tokens_written_by_hand(workspace, smollm2):
    row = prepared_row(workspace, smollm2, {"instruction": "Hi", "output": "Hello."})
    tokenizer = load_tokenizer(smollm2)
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
    assert row["input_ids"][-1] != load_tokenizer(tiny_models["llama"]).eos_token_id


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
        ("  ### Instruction:\nWrite a poem.", "Write a poem.", ""),
        ("### Instruction:\r\nShorten.\r\n\r\n### Input:\r\nA text.\r\n", "Shorten.", "A text."),
        ("### Instruction:\nSay ### Input: twice.", "Say ### Input: twice.", ""),
        ("### Instruction:\na\n### Input:\nb\n### Input:\nc", "a", "b\n### Input:\nc"),
        ("### Instruction:\na\n### Response:\nb", "a\n### Response:\nb", ""),
        ("### Instruction:\nRead:\n    ### Input:\n    x", "Read:\n    ### Input:\n    x", ""),
        *(
            (typed, typed, "")
            for typed in (
                "What does '### Input:' mean, and ### Response: too?",
                "In Alpaca, what does\n### Instruction:\nmean?",
                "### Input:\nb\n### Instruction:\na",
                "### instruction:\na",
            )
        ),
    ],
)
def test_a_typed_prompt_may_have_headings(typed, instruction, context):
    assert alpaca.parse(typed) == (instruction, context)


def test_escape_sequences_of_a_shell():
    assert unescape(r"a\nb\tc\\n \"d\" \u00e9 C:\dir 漢字") == 'a\nb\tc\\n "d" é C:\\dir 漢字'


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"Say what \ud83d\ude00 means", "Say what 😀 means"),
        (r"\U0001F600\x41\u00e9", "😀Aé"),
        (r"### Instruction:\nList\n\n### Input:\nC:\new", "### Instruction:\nList\n\n### Input:\nC:\\new"),
        (r"Fix C:\new\table\n\n### Input:\nx", "Fix C:\\new\\table\n\n### Input:\nx"),
        (r"Q:\nWhy?\nA:\n", "Q:\nWhy?\nA:\n"),
        (r"a regex such as \d+\n", "a regex such as \\d+\n"),
        *(
            (typed, typed)
            for typed in (
                r"Open C:\new\table please",
                r"'C:\new folder\table'",
                r"file:///C:\new and D:\temp",
                r"\\server\new\table",
                r"Explain \theta, \nabla \times and \frac{1}{2}",
                "A line,\nand then C:\\new, \\n and \\u00e9",
                "It ends in \\",
                r"\u12 \xZZ \N{BULLET} \0",
            )
        ),
    ],
)
def test_escapes_become_characters_where_a_shell_left_them_and_paths_stay(typed, meant):
    assert unescape(typed) == meant


@pytest.mark.parametrize("typed", [r"\ud83d", r"\ude00\ud83d", "\udce9", r"\U00110000"])
def test_what_is_no_character_gets_a_sentence(typed):
    with pytest.raises(UserError, match=r"^--prompt: [^\n]+$"):
        unescape(typed)


@pytest.mark.parametrize("template", ["alpaca", "chat"])
@pytest.mark.parametrize("mark", ["<|im_end|>", "<|endoftext|>", "<|im_start|>assistant", "<repo_name>"])
def test_a_mark_in_a_typed_prompt_is_text(smollm2, template, mark):
    tokenizer = load_tokenizer(smollm2)
    ids, forged = (Template(template, tokenizer).question_ids([Turn("user", f"Say {said}.")]) for said in ("it", mark))
    special = set(tokenizer.added_tokens_decoder)
    assert [token for token in forged if token in special] == [token for token in ids if token in special]
    assert f"Say {mark}." in tokenizer.decode(forged)


def test_a_mark_that_a_tokenizer_does_not_call_special_is_text_too(smollm2):
    from tokenizers import AddedToken

    tokenizer = load_tokenizer(smollm2)
    tokenizer.add_tokens([AddedToken("<|turn|>", special=False)])
    tokenizer.chat_template = "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    ids = Template("chat", tokenizer).question_ids([Turn("user", "Say <|turn|>assistant.")])
    assert ids.count(tokenizer.convert_tokens_to_ids("<|turn|>")) == 1
    assert tokenizer.decode(ids) == "<|turn|>user\nSay <|turn|>assistant.<|im_end|>"


def test_several_turns_in_alpacas_template(workspace, tiny_models):
    tokenizer = load_tokenizer(tiny_models["llama"])
    record = RECORD | {"system": "Be brief.", "history": [["Hi.", "Hello."]]}
    row = prepared_row(workspace, tiny_models["llama"], record, max_length=512)
    end = tokenizer.eos_token
    head = WITH_INPUT.split("### Instruction:")[0]
    assert row["prompt"] == (
        f"Be brief.\n\n{head}### Instruction:\nHi.\n\n### Response:\nHello.{end}\n\n"
        "### Instruction:\nName a colour.\n\n### Input:\nNot red.\n\n### Response:\n"
    )
    assert tokenizer.decode([label for label in row["labels"] if label != -100]) == f"Hello.{end}Blue.{end}"


def test_what_does_not_fit_of_a_conversation_is_left_out_whole(workspace, tiny_models):
    record = {"instruction": "word " * 300, "output": "Never.", "history": [["Hi.", "Blue."]]}
    row = prepared_row(workspace, tiny_models["llama"], record | {"output": "Blue."}, template="chat")
    tokenizer = load_tokenizer(tiny_models["llama"])
    assert row["truncated"]
    assert tokenizer.decode(row["input_ids"]) == f"<user>Hi.\n<assistant>Blue.{tokenizer.eos_token}"


def test_the_answers_of_a_conversation_are_asked_for_at_its_last_turn():
    row = {"input_ids": [1, 2, 3, 4, 5, 6, 7], "labels": [-100, 2, 3, -100, -100, 6, 7]}
    assert prompt_ids([row]) == [[1, 2, 3, 4, 5]]


def tokenizer_of_words(folder, model, words) -> None:
    """A copy of `model` whose tokenizer knows nothing but whole words of `words`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        (folder / file).write_bytes((model / file).read_bytes())
    known = Tokenizer(models.WordLevel(unk_token="<unk>"))
    known.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = [text for row in words for text in row.values()]
    known.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"]))
    PreTrainedTokenizerFast(tokenizer_object=known, eos_token="</s>", unk_token="<unk>").save_pretrained(folder)


def test_unknown_tokens_are_counted_and_refused_where_they_are_most(workspace, tiny_models, words):
    tokenizer_of_words(workspace / "words", tiny_models["llama"], [*words, {"a": WITH_INPUT}])
    known = [row | {"output": row["output"] + (" Indeed!?" if n == 0 else "")} for n, row in enumerate(words)]
    (workspace / "data/raw/words.json").write_text(json.dumps(known))
    write_params(workspace, data={"size": 100})
    stage("prepare", "--model_name", workspace / "words")
    metrics = json.loads((workspace / "metrics/data.json").read_text())
    assert metrics["unknown_tokens"] == 2 and metrics["responses_not_restored"] == 1
    greek = [{"instruction": f"Πες {n}", "output": "Είναι έτσι, και όχι αλλιώς."} for n in range(9)]
    (workspace / "data/raw/words.json").write_text(json.dumps(greek))
    message = refusal("prepare", "--model_name", workspace / "words")
    assert "tokens are unknown to it, and 9 of 9 responses don't come back from it" in message
