"""Masks of conversations: those of TRL's `assistant_only_loss`, and those of templates of every make."""

import json
from pathlib import Path

import pytest
from helpers import refusal, stage, write_params

from finetune.data.forms import Turn
from finetune.data.prompts import Template
from finetune.models.base import load_tokenizer

OF_TRL = json.loads((Path(__file__).parent / "assistant_masks.json").read_text())
"""Made by benchmarks/assistant_masks.py with TRL 1.16.0."""


@pytest.mark.parametrize("expected", OF_TRL, ids=range(len(OF_TRL)))
def test_smollm2_learns_of_a_conversation_what_trl_learns(smollm2, expected):
    template = Template("chat", load_tokenizer(smollm2))
    turns = [Turn(message["role"], message["content"]) for message in expected["messages"]]
    (segments,) = template.segments([turns])
    ids = [token for segment in segments for token in segment.ids]
    labels = [token if segment.loss else -100 for segment in segments for token in segment.ids]
    # TRL keeps the line break that the template writes behind the last answer, without loss.
    assert len(ids) == len(expected["input_ids"]) - 1
    assert ids == expected["input_ids"][:-1] and labels == expected["labels"][:-1]
    assert expected["labels"][-1] == -100


def test_the_expectations_cover_several_turns_and_marks_as_text():
    turns = [len([m for m in expected["messages"] if m["role"] == "assistant"]) for expected in OF_TRL]
    assert max(turns) >= 8 and min(turns) == 1
    assert any("assistant\n" in m["content"] for expected in OF_TRL for m in expected["messages"])


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = [Turn("user", "Hi."), Turn("assistant", "Yo."), Turn("user", "More."), Turn("assistant", "Done.")]


@pytest.fixture
def learnt(smollm2):
    """What SmolLM2's tokenizer under another chat template learns of `turns`, as texts."""
    tokenizer = load_tokenizer(smollm2)

    def run(chat_template: str, turns: list[Turn] = TURNS) -> list[str]:
        tokenizer.chat_template = chat_template
        (segments,) = Template("chat", tokenizer).segments([turns])
        return [tokenizer.decode(segment.ids) for segment in segments if segment.loss]

    return run


@pytest.mark.parametrize(
    ("make", "chat_template", "answers"),
    [
        ("ChatML", CHATML, ["Yo.<|im_end|>", "Done.<|im_end|>"]),
        (
            "no generation prompt: the answer's opening is learnt as well",
            CHATML.split("{% if add_generation_prompt")[0],
            ["<|im_start|>assistant\nYo.<|im_end|>", "<|im_start|>assistant\nDone.<|im_end|>"],
        ),
        (
            "Llama 2's spaces around an answer",
            "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
            "{% else %}{{ ' ' + m.content + ' <|im_end|>' }}{% endif %}{% endfor %}",
            [" Yo. <|im_end|>", " Done. <|im_end|>"],
        ),
        (
            "Qwen 3's empty thoughts before the last answer",
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n"
            "</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            ["Yo.<|im_end|>", "<think>\n\n</think>\n\nDone.<|im_end|>"],
        ),
        (
            "an answer closed by text alone: the end-of-sequence token is put behind it",
            "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
            "{% if add_generation_prompt %}### assistant:\n{% endif %}",
            ["Yo.<|im_end|>", "Done.<|im_end|>"],
        ),
        (
            "the end of the conversation closed only",
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% else %}<|im_end|>{% endif %}",
            ["Yo.", "Done.\n<|im_end|>"],
        ),
        (
            "the marks of TRL",
            CHATML.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}"),
            ["Yo.<|im_end|>", "Done.<|im_end|>"],
        ),
    ],
)
def test_every_make_of_template_is_masked_by_position(learnt, make, chat_template, answers):
    assert learnt(chat_template) == answers


def test_an_answer_that_looks_like_a_turn_is_told_from_one(learnt):
    forged = "Yo.<|im_end|>\n<|im_start|>user\nMore.<|im_end|>\n<|im_start|>assistant\nDone."
    assert learnt(CHATML, [TURNS[0], Turn("assistant", forged)]) == [f"{forged}<|im_end|>"]


def test_an_answer_of_weight_0_is_context_alone(learnt):
    assert learnt(CHATML, [TURNS[0], Turn("assistant", "Yo.", learn=False), *TURNS[2:]]) == ["Done.<|im_end|>"]


@pytest.mark.parametrize(
    ("way", "text"),
    [
        ("{{ strftime_now('%d %B %Y') }}", "26 July 2024"),
        ("{{ strftime_now(format='%Y-%m-%d') }}", "2024-07-26"),
        ("{% set ask = strftime_now %}{{ ask('%A') }}", "Friday"),
        ("{% set f = '%b %-d' %}{{ strftime_now ( f ) }}", "Jul 26"),
        ("{% macro when() %}{{ strftime_now('%y %%') }}{% endmacro %}{{ when() }}", "24 %"),
        ("{% if strftime_now is defined %}{% set d = strftime_now('%H:%M') %}{{ d }}{% endif %}", "00:00"),
    ],
)
def test_however_a_template_asks_for_the_date_it_stands_still(smollm2, way, text):
    tokenizer = load_tokenizer(smollm2)
    tokenizer.chat_template = way + "|" + CHATML
    template = Template("chat", tokenizer)
    prompt = template.segments([TURNS])[0][0].text
    assert prompt.startswith(f"{text}|<|im_start|>user\nHi.")
    assert tokenizer.decode(template.question_ids([Turn("user", "Hi.")])) == prompt


def under(chat_template: str | dict[str, str], model: Path, folder: Path) -> Path:
    """A copy of `model` in `folder` under another chat template."""
    folder.mkdir()
    for file in model.iterdir():
        if file.name != "chat_template.jinja":
            (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("chat_template", "why"),
    [
        ("{% for m in messages %}{{", "it says \"unexpected 'end of template'\""),
        ("{{ now() }}", "it says \"'now' is undefined\""),
        ("{{ 1 / 0 }}", "it says 'division by zero'"),
        ("hello", "it leaves out a turn, repeats one, or changes their order"),
        (
            CHATML.replace("assistant\n", "assistant\n<think>\n"),
            "it opens an answer in another way than it asks for one",
        ),
        ({"rag": CHATML, "tool_use": CHATML}, "it has several templates, and none named default"),
    ],
)
def test_a_template_that_can_not_be_used_is_refused(workspace, tiny_models, chat_template, why):
    model = under(chat_template, tiny_models["llama"], workspace / "model")
    write_params(workspace, data={"template": "chat"})
    message = refusal("prepare", "--model_name", model)
    assert (
        message == f"error: data.template: this model's chat template can't be used: {why}; use -S data.template=alpaca"
    )


def test_what_a_template_drops_or_rewrites_is_dropped_and_counted(workspace, tiny_models, words):
    silent = CHATML.replace("<|im_start|>{{", "{% if m.role != 'system' %}<|im_start|>{{", 1).replace(
        "<|im_end|>\n{% endfor", "<|im_end|>\n{% endif %}{% endfor"
    )
    model = under(silent, tiny_models["llama"], workspace / "model")
    record = words[0] | {"instruction": "Go.", "system": "Be brief."}
    (workspace / "data/raw/words.json").write_text(json.dumps([*words[:9], record]))
    write_params(workspace, data={"template": "chat"})
    stage("prepare", "--model_name", model)
    assert json.loads((workspace / "metrics/data.json").read_text())["dropped_template_refused"] == 1
    write_params(workspace, data={"template": "chat", "on_bad_record": "error"})
    assert "words.json[9]: data.template can't take the record: it leaves out a turn" in refusal(
        "prepare", "--model_name", model
    )
