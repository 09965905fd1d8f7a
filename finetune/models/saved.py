"""A fine-tuned model on disk: weights, tokenizer, how it was made, and a model card."""

import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.errors import UserError
from finetune.files import read_yaml, whole_folder, write_text, write_yaml
from finetune.methods import METHODS
from finetune.places import FACTS


def save(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: dict,
    base_source: dict,
    folder: Path,
) -> None:
    """Write adapter or full model with its tokenizer; the same bytes for the same weights.

    `facts` says how the model was made (method, base, template, quantization), `base_source` is the
    base model's provenance. A full model is stored in bf16, the size of its base. A folder `plots`,
    where the run may have left its curves, stays.
    """
    with whole_folder(folder, keep="plots") as draft:
        if isinstance(model, PeftModel):
            model.peft_config["default"].base_model_name_or_path = facts["base"]
            model.save_pretrained(str(draft))
            _sort_adapter_config(draft / "adapter_config.json")
        else:
            model.to(torch.bfloat16).save_pretrained(draft)  # type: ignore[arg-type]  # transformers' `wraps`
        tokenizer.save_pretrained(draft)
        write_yaml(draft / FACTS, facts)
        write_text(draft / "README.md", _model_card(facts, base_source))


def read_facts(folder: Path) -> dict:
    """What `save` noted. Raises UserError if `folder` is no checkpoint of ours."""
    facts = read_yaml(folder / FACTS) if (folder / FACTS).exists() else {}
    if "method" not in facts:
        raise UserError(f"{folder}: no fine-tuned model there; run `dvc repro train` or `python stages/train.py` first")
    return facts


def size_gb(folder: Path) -> float:
    """Size of the weights that must be kept or sent, in GB."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9


def _sort_adapter_config(path: Path) -> None:
    """peft keeps the target modules in a set, whose order changes from process to process."""
    config = json.loads(path.read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _model_card(facts: dict, base_source: dict) -> str:
    return f"""---
library_name: {"peft" if METHODS[facts["method"]].adapters else "transformers"}
pipeline_tag: text-generation
tags: [{facts["method"]}, sft]
---

# {base_source["source"]} fine-tuned by {METHODS[facts["method"]].label}

- Base model: {base_source["source"]}, licence: {base_source["licence"]}
- Instructions: {facts["data"]["source"]}, licence: {facts["data"]["licence"]}
- Prompt template: {facts["template"]}; seed {facts["seed"]}

The licence of the instructions bounds what these weights may be used for.
"""
