"""How a tokenizer cuts text into words, by llama.cpp's name for it."""

import pytest
from tokenizers import Regex, Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, Sequence, Split
from transformers import PreTrainedTokenizerFast

from finetune.errors import UserError
from finetune.export.tokenizer import _SPLITS, vocabulary

QWEN2 = next(pattern for pattern, name in _SPLITS.items() if name == "qwen2")


def tokenizer(cut) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    made.pre_tokenizer = cut
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


@pytest.mark.parametrize(
    ("cut", "name"),
    [
        (ByteLevel(add_prefix_space=False), "gpt-2"),
        (Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]), "smollm"),
        (Sequence([Split(Regex(QWEN2), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]), "qwen2"),
    ],
)
def test_known_ways_have_their_names(cut, name):
    found = vocabulary(tokenizer(cut), 6)
    assert found.words == name and found.merges == ["a b"]
    assert found.tokens == ["a", "b", "ab", "<end>", "[PAD4]", "[PAD5]"] and found.types == [1, 1, 1, 3, 5, 5]


@pytest.mark.parametrize(
    "cut",
    [
        Metaspace(),
        ByteLevel(add_prefix_space=True),
        Sequence([Digits(individual_digits=False), ByteLevel(add_prefix_space=False)]),
        Sequence([Split(Regex("x"), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]),
    ],
)
def test_others_are_refused_with_the_way_out(cut):
    with pytest.raises(UserError, match="convert_hf_to_gguf"):
        vocabulary(tokenizer(cut), 6)
