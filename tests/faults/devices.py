"""Mistakes with devices."""

from collections.abc import Callable
from unittest import mock

import torch
from helpers import stage

from faults import Bench, Fault
from finetune.models import check_model, loading
from finetune.training import shares, trainer

CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: 12 bytes")
"""As torch says it."""

PLACES = {
    "loading": (loading.AutoModelForCausalLM, "from_pretrained"),
    "looking at the model": (check_model, "_own"),
    "training": (trainer, "response_loss"),
    "validating": (shares, "losses_of"),
}


def _out_of_memory(place: str, error: Exception, command: str) -> Callable[[Bench], str]:
    owner, name = PLACES[place]

    def cause(bench: Bench) -> str:
        model = bench.models["llama"]
        stage("prepare", "--model_name", model)
        if command == "infer":
            stage("train", "--model_name", model, "--method", "lora")
        arguments = {
            "train": ["--model_name", model, "--method", "lora"],
            "eval": ["--model_name", model, "--base"],
            "infer": ["--prompt", "Say it."],
        }
        with mock.patch.object(owner, name, side_effect=error):
            return bench.refused(command, *arguments[command])

    return cause


def short(place: str, error: Exception, advice: str, command: str = "train") -> Fault:
    """Memory that runs out at a place: a stand-in, for no test may take a machine's last byte."""
    kind = {MemoryError: "Python's", RuntimeError: "the CPU allocator's"}.get(type(error), "CUDA's")
    return Fault(
        "devices",
        f"{command}: memory runs out while {place} ({kind} error)",
        f"memory of … enough … {advice}",
        _out_of_memory(place, error, command),
    )


LOADING = "smaller model.source … qlora"
LOOKING = "data.max_length … smaller model.source"
TRAINING = "train.tokens_per_micro_batch to "
ANSWERING = "--max_new_tokens … smaller model"
SCORING = "eval.decode_batch_size … eval.max_new_tokens … smaller model"

FAULTS: list[Fault] = [
    *(
        short(place, error, advice)
        for place, advice in (("loading", LOADING), ("looking at the model", LOOKING), ("training", TRAINING))
        for error in (MemoryError(), CPU, torch.OutOfMemoryError("CUDA out of memory."))
    ),
    short("validating", CPU, TRAINING),
    short("loading", CPU, SCORING, "eval"),
    short("looking at the model", MemoryError(), SCORING, "eval"),
    short("loading", CPU, ANSWERING, "infer"),
]
