"""Generation means the likeliest token up to an end token, whatever else the folder of a base model suggests."""

import json
import shutil

import families
import pytest
import torch
from helpers import FAST, stage, write_params

from finetune import yaml_file
from finetune.generation import greedy
from finetune.models.base import Base, load_tokenizer
from finetune.models.checkpoint import Checkpoint
from finetune.models.loading import add_end_tokens, end_tokens, load_base, load_tuned

SUGGESTED = [
    {"repetition_penalty": 1.3},
    {"min_length": 60},
    {"min_new_tokens": 12},
    {"no_repeat_ngram_size": 1},
    {"num_beams": 3, "length_penalty": 5.0, "early_stopping": True},
    {"forced_bos_token_id": 40},
    {"forced_eos_token_id": 41},
    {"suppress_tokens": list(range(1, 200))},
    {"begin_suppress_tokens": list(range(1, 200))},
    {"bad_words_ids": [[token] for token in range(1, 200)]},
    {"sequence_bias": [[[7], 100.0]]},
    {"max_length": 3},
    {"max_time": 0.0},
    {"stop_strings": ["e"]},
    {"cache_implementation": "static"},
    {"use_cache": False},
    {"num_return_sequences": 2, "num_beams": 2},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"guidance_scale": 4.0},
    {"exponential_decay_length_penalty": [1, 3.0]},
    {"do_sample": True, "temperature": 9.0},
    {"do_sample": False, "temperature": 0.9},
    {"renormalize_logits": True},
    {"watermarking_config": {"bias": 50.0}},
    {"prompt_lookup_num_tokens": 3},
    {"return_dict_in_generate": True, "output_scores": True},
    {"decoder_start_token_id": 9},
    {"remove_invalid_values": True},
]


@pytest.fixture(scope="module")
def lively(tiny_models, tmp_path_factory):
    """A llama whose greedy answers hold many different tokens."""
    return families.with_tokenizer("llama", tmp_path_factory.mktemp("lively"), tiny_models["llama"])


@pytest.fixture
def copy(lively, tmp_path):
    """The lively llama in a folder of its own, with `generation` in its generation_config.json and `config` in config.json."""

    def make(generation: dict | None = None, config: dict | None = None):
        folder = tmp_path / "copy"
        shutil.copytree(lively, folder, dirs_exist_ok=True)
        for name, changes in (("generation_config.json", generation), ("config.json", config)):
            before = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(before | (changes or {})))
        return folder

    return make


def answers(folder, new_tokens: int = 12) -> list[str]:
    model, tokenizer = load_base(Base(folder), torch.float32), load_tokenizer(folder)
    prompts = [tokenizer(text)["input_ids"] for text in ("Name the moon.", "List old ships")]
    return greedy.generate(model, tokenizer, prompts, batch_size=2, max_new_tokens=new_tokens)


@pytest.mark.parametrize("suggested", SUGGESTED, ids=str)
def test_what_the_base_suggests_changes_no_answer(lively, copy, suggested):
    assert answers(copy(suggested)) == answers(lively)


@pytest.mark.parametrize("suggested", [{"repetition_penalty": 1.3}, {"max_length": 3}, {"num_beams": 2}], ids=str)
def test_nor_what_an_old_config_says_of_generation(lively, copy, suggested):
    assert answers(copy(config=suggested)) == answers(lively)


def ids_made(folder) -> list[int]:
    model, tokenizer = load_base(Base(folder), torch.float32), load_tokenizer(folder)
    prompt = torch.tensor([tokenizer("Name the moon.")["input_ids"]])
    made = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)
    return made[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("where", ["a number", "a list", "prepared"])
def test_every_end_token_ends_an_answer_and_none_is_shown(lively, copy, where):
    """The token chosen is an ordinary word: as an end it must be left out all the same."""
    plain = ids_made(lively)
    end = next(token for token in plain[2:] if token not in plain[:2])
    folder = copy({"eos_token_id": {"a number": end, "a list": [0, end]}.get(where, 0)})
    model, tokenizer = load_base(Base(folder), torch.float32), load_tokenizer(folder)
    if where == "prepared":
        add_end_tokens(model, [end])
    prompt = tokenizer("Name the moon.")["input_ids"]
    expected = tokenizer.decode(plain[: plain.index(end)], skip_special_tokens=True).strip()
    assert greedy.generate(model, tokenizer, [prompt], batch_size=1, max_new_tokens=12) == [expected]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_end_tokens_of_the_data_and_of_the_base_reach_the_tuned_model(workspace, copy, method):
    folder = copy({"eos_token_id": [0, 7], "do_sample": False, "temperature": 0.9, "repetition_penalty": 1.3})
    write_params(workspace, methods=FAST)
    stage("prepare", "--model_name", folder)
    facts = workspace / "data/prepared/facts.yaml"
    facts.write_text(yaml_file.text(yaml_file.parse(facts.read_text()) | {"end_tokens": [0, 9]}))
    stage("train", "--model_name", folder, "--method", method)
    tuned = workspace / "models/tuned"
    checkpoint = Checkpoint.read(tuned)
    assert checkpoint.end_tokens == [0, 9]
    model = load_tuned(checkpoint, checkpoint.base())
    assert end_tokens(model) == [0, 7, 9]
    assert model.generation_config.repetition_penalty is None
    if method == "full":
        kept = json.loads((tuned / "generation_config.json").read_text())
        assert kept["eos_token_id"] == [0, 7, 9] and "temperature" not in kept
