"""finetune export, as a user runs it, on tiny models: what is written is the model that was trained."""

import json
import re
from pathlib import Path

import hub
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from helpers import drafts_in
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.commands import export
from finetune.data.forms import Turn
from finetune.data.prompts import Template
from finetune.export.tokenizer import alpaca_in_jinja
from finetune.models.base import load_tokenizer

EXPORTED = Path("models/exported")
NO_DIFFERENCE = 2e-3
"""Nats a token: rounding to 16 bits."""


def exported(capsys, *arguments: str) -> dict[str, tuple[float, int]]:
    """Run the command; how each model differs from the checkpoint, by its name: in test loss, in answers."""
    capsys.readouterr()
    export.main(arguments)
    rows = re.findall(r"^(\S.*?)  +[\d.]+ +([+-][\d.]+) \[.*?\] +(\d+)$", capsys.readouterr().out, flags=re.MULTILINE)
    return {name: (float(loss), int(answers)) for name, loss, answers in rows}


@pytest.mark.parametrize(
    ("method", "family", "format_", "name"),
    [
        ("qlora", "llama", ["adapter"], "the adapter over four bits, read by peft"),
        ("qlora", "llama", ["merged"], "merged onto four bits, read by transformers"),
        ("qlora", "llama", ["gguf", "--type", "f16"], "tiny-qlora-f16.gguf, read by transformers"),
        ("qlora", "gpt2", ["merged"], "merged onto four bits, read by transformers"),
        ("lora", "gpt2", ["merged"], "merged onto its base, read by transformers"),
        ("dora", "llama", ["merged"], "merged onto its base, read by transformers"),
        ("full", "qwen2", ["merged"], "the model, read by transformers"),
        ("full", "qwen2", ["gguf", "--type", "f16"], "tiny-full-f16.gguf, read by transformers"),
    ],
)
def test_what_is_read_back_is_what_was_trained(cpu_dtype, at, capsys, method, family, format_, name):
    at(method=method, family=family)
    loss, answers = exported(capsys, *format_)[name]
    assert abs(loss) < NO_DIFFERENCE and answers <= 4  # of 20; a tiny model wavers between two tokens


def test_a_merged_weight_is_the_base_and_the_update_rounded_once(cpu_dtype, at, capsys):
    at()
    found = exported(capsys, "merged")
    exported(capsys, "merged", "--onto", "original")
    layer, scale = "model.layers.1.mlp.down_proj", 2.0
    adapter = load_file("models/tuned/adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{layer}.lora_{factor}.weight"] for factor in "AB")
    rounded = AutoModelForCausalLM.from_pretrained("models/base-4bit", dtype=torch.float32).get_submodule(layer).weight
    rounded.quant_state.dtype = torch.float32
    bases = {"four-bits": dequantize_4bit(rounded.data, rounded.quant_state)}
    bases["original"] = load_file("models/base/model.safetensors")[f"{layer}.weight"].bfloat16().float()
    for onto, base in bases.items():
        merged = load_file(EXPORTED / f"merged-{onto}/model.safetensors")[f"{layer}.weight"]
        assert torch.equal(merged, (base + scale * b @ a).bfloat16())

    # Both were scored, and the card says how they differ.
    card = (EXPORTED / "merged-four-bits/README.md").read_text()
    told = re.search(r"the test loss changes by (\S+) \[(\S+), (\S+)\]", card)
    difference, low, high = map(float, told.groups())
    four, original = found["merged onto four bits, read by transformers"], found["merged onto the original weights"]
    assert low <= difference <= high and difference == pytest.approx(original[0] - four[0], abs=2e-4)
    assert abs(original[0]) > 2 * abs(four[0])


def test_the_smaller_types_are_near_and_small(at, capsys):
    at(method="full", family="qwen2")
    sizes = []
    for kind, most in (("f16", NO_DIFFERENCE), ("q8_0", 0.02), ("q4_0", 0.5)):
        loss, _ = exported(capsys, "gguf", "--type", kind)[f"tiny-full-{kind}.gguf, read by transformers"]
        assert abs(loss) < most
        sizes.append((EXPORTED / f"gguf-{kind}/tiny-full-{kind}.gguf").stat().st_size)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3


def test_a_gguf_file_holds_vocabulary_special_tokens_and_the_prompt(at, capsys):
    from gguf import GGUFReader

    at()
    exported(capsys, "gguf")
    fields = GGUFReader(EXPORTED / "gguf-four-bits-q8_0/tiny-qlora-q8_0.gguf").fields
    told = {name: field.contents() for name, field in fields.items()}
    tokenizer = load_tokenizer(Path("models/tuned"))
    assert told["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert told["tokenizer.ggml.token_type"][:2] == [3, 1]  # <|endoftext|>, then plain ones
    assert told["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert told["tokenizer.ggml.pre"] == "gpt-2" and told["general.file_type"] == 7
    assert told["tokenizer.chat_template"] == alpaca_in_jinja(tokenizer)


def test_the_exported_chat_template_writes_the_prompts_of_training(at, capsys):
    at()
    exported(capsys, "adapter")
    template = Template("alpaca", load_tokenizer(Path("models/tuned")))
    theirs = AutoTokenizer.from_pretrained(EXPORTED / "adapter")
    turns = [
        Turn("system", "Be short."),
        Turn("user", "Name.", "The moon."),
        Turn("assistant", "x"),
        Turn("user", "And?"),
    ]
    for asked in ([Turn("user", "Name 5.")], [Turn("user", "Name.", "At night.")], turns):
        heading = "\n\n### Input:\n"
        messages = [
            {"role": turn.role, "content": turn.text + (heading + turn.input if turn.input else "")} for turn in asked
        ]
        (segments,) = template.segments([asked])
        ours = [id_ for segment in segments for id_ in segment.ids]
        assert theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ours


def test_a_chat_models_own_template_stays(at, capsys):
    at(method="lora", template="chat")
    exported(capsys, "adapter")
    own, theirs = (AutoTokenizer.from_pretrained(folder) for folder in ("models/tuned", EXPORTED / "adapter"))
    assert theirs.chat_template == own.chat_template


def test_an_adapter_and_its_card_name_a_base_that_others_can_get(at, capsys):
    at()
    exported(capsys, "adapter")
    for folder in (Path("models/tuned"), EXPORTED / "adapter"):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == ("me/tiny", hub.COMMIT)
        data = ModelCard.load(folder / "README.md").data
        assert (data.base_model, data.license, data.datasets) == ("me/tiny", "cc-by-nc-4.0", ["tatsu-lab/alpaca"])
        assert (data.language, data.library_name, data.pipeline_tag) == ("en", "peft", "text-generation")
    card = (EXPORTED / "adapter/README.md").read_text()
    assert "`python stages/quantize.py`" in card and "rounded to four bits" in card


def test_a_base_of_this_machine_alone_is_not_named(at, capsys):
    folder = at(method="lora", template="chat")
    facts = (folder / "models/tuned/facts.yaml").read_text()
    (folder / "models/tuned/facts.yaml").write_text(re.sub(r"  hub: me/tiny\n  commit: .*\n", "", facts))
    exported(capsys, "adapter")
    (folder / "models/tuned/facts.yaml").write_text(facts)
    config = json.loads((EXPORTED / "adapter/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (None, None)
    assert "base_model" not in ModelCard.load(EXPORTED / "adapter/README.md").data.to_dict()


def test_costs_are_told_where_they_are_this_checkpoints(at, capsys):
    folder = at(method="full", family="qwen2")
    exported(capsys, "merged")
    card = (EXPORTED / "merged/README.md").read_text()
    assert "Peak device memory (GB)" in card and "learning_rate: 0.01" in card
    assert "- Records: 16 to train on, 4 for validation, 20 to test" in card
    beside = folder / "metrics/train.facts.json"
    facts = beside.read_text()
    beside.write_text(json.dumps(json.loads(facts) | {"weights": "another"}))
    exported(capsys, "merged", "--ckpt", "models/tuned")
    beside.write_text(facts)
    assert "Peak device memory" not in (EXPORTED / "merged/README.md").read_text()


def test_without_prepared_data_it_is_exported_and_said_to_be_unscored(at, capsys):
    folder = at(method="full", family="qwen2")
    (folder / "data/prepared").rename(folder / "data/away")
    export.main(["merged"])
    (folder / "data/away").rename(folder / "data/prepared")
    assert "not scored: data/prepared: no prepared dataset there" in capsys.readouterr().out
    assert "Not scored" in (EXPORTED / "merged/README.md").read_text()
    assert not drafts_in(folder)
