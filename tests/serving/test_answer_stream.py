"""The text of an answer whose tokens come one by one."""

import pytest

from finetune.models.base import load_tokenizer
from finetune.serving.answer_stream import TextStream


@pytest.mark.parametrize(
    "text",
    ["Hello  world, again.", "  padded \n\n lines \n", "Zürich 東京 🙂🙃 ẞ", "", "   ", "a\u0301 e\u0301", "\ufffd x"],
)
def test_text_that_comes_token_by_token_is_the_whole_answer_stripped(text, tiny_models):
    tokenizer = load_tokenizer(tiny_models["llama"])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer, {tokenizer.eos_token_id})
    pieces = [stream.add([token]) for token in [*ids, tokenizer.eos_token_id]]
    assert "".join([*pieces, stream.end()]) == tokenizer.decode(ids).strip()
