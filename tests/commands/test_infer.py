"""stages/infer.py streams an answer from a checkpoint."""

import pytest
from helpers import FAST, refusal, stage, write_params


@pytest.fixture
def tuned(workspace, tiny_models):
    write_params(workspace, methods=FAST)
    stage("prepare", "--model_name", tiny_models["llama"])
    stage("train", "--model_name", tiny_models["llama-4bit"])
    return workspace


def answer(capsys, *arguments) -> str:
    capsys.readouterr()
    stage("infer", *arguments)
    return capsys.readouterr().out


def test_headings_and_escapes_make_the_same_prompt_as_bare_text(tuned, capsys):
    bare = answer(capsys, "--prompt", "Name the moon.")
    assert bare.strip()
    assert answer(capsys, "--prompt", r"### Instruction:\nName the moon.") == bare
    context = answer(capsys, "--prompt", "### Instruction:\nName the moon.\n\n### Input:\nAt night.")
    assert answer(capsys, "--prompt", r"### Instruction:\nName the moon.\n\n### Input:\nAt night.") == context


def test_the_number_of_tokens_is_a_flag(tuned, capsys):
    assert len(answer(capsys, "--prompt", "Name the moon.", "--max_new_tokens", 1)) < len(
        answer(capsys, "--prompt", "Name the moon.", "--max_new_tokens", 30)
    )
    assert "eval.max_new_tokens: must be at least 1, got 0" in refusal("infer", "--prompt", "x", "--max_new_tokens", 0)


def test_an_empty_prompt_is_refused(tuned):
    assert "--prompt: holds no instruction" in refusal("infer", "--prompt", r"### Instruction:\n")
