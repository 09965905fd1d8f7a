"""Fine-tuned models in memory, each under the name that the user gave: adapters over one base where they can share it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, cast

import torch

from finetune.data.forms import Turn
from finetune.data.prompts import Template
from finetune.device import compute_dtype
from finetune.errors import UserError
from finetune.generation.engine import Engine
from finetune.generation.joint_layers import OWN, JointLayers
from finetune.generation.kv_cache import GROWTH
from finetune.generation.prepared_model import prepared
from finetune.generation.request import Request, Sampling
from finetune.models.base import Base
from finetune.models.checkpoint import Checkpoint
from finetune.models.loading import end_tokens, load_base, load_tuned
from finetune.registry.checkpoints import find
from finetune.serving.adapter_file import is_plain, read_adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BASE = "base"
"""Name of the untouched base model."""


@dataclass(frozen=True)
class Served:
    """A model that answers under a name."""

    name: str
    method: str | None
    """Key of `METHODS`; None for the untouched base."""
    answers_file: str
    """Name of the recorded answers that are its own: tuned, base or base-4bit."""
    engine: Engine
    adapter: str | None
    """Name of its adapter, as the joint layers have it; None: the base alone."""
    tokenizer: PreTrainedTokenizerBase
    template: Template
    ends: Collection[int]
    positions: int | None
    """Tokens that prompt and answer may have together; None: any number."""
    gigabytes: float
    """Memory that it takes in addition to what it shares with others (10^9 bytes)."""

    def request(
        self, prompt: Sequence[Turn] | str, sampling: Sampling, max_new_tokens: int, *, fitting: bool = False
    ) -> Request:
        """The request to submit to the engine: a conversation by the model's template, or text that is taken as it is.

        With `fitting` the answer may be as long as there are positions, if these are fewer than `max_new_tokens`. Raises
        UserError for an empty prompt, or one that doesn't fit the model.
        """
        if not (prompt if isinstance(prompt, str) else prompt and prompt[-1].content.strip()):
            raise UserError("the prompt holds no instruction; write what the model should do")
        if isinstance(prompt, str):
            ids = cast("list[int]", self.tokenizer(prompt)["input_ids"])
        else:
            ids = self.template.question_ids(prompt)
        if self.positions and fitting:
            max_new_tokens = max(1, min(max_new_tokens, self.positions - len(ids)))
        if self.positions and len(ids) + max_new_tokens > self.positions:
            raise UserError(
                f"{max_new_tokens} tokens after a prompt of {len(ids)} are more than the {self.positions} positions of "
                f"{self.name}; lower max_new_tokens, shorten the prompt, or in a chat /reset"
            )
        return Request(ids, max_new_tokens, self.ends, self.adapter, sampling)


@dataclass(frozen=True)
class _Loaded:
    """A model in memory."""

    model: PreTrainedModel | PeftModel
    engine: Engine
    layers: JointLayers | None


class Models:
    """The models that answer, by name."""

    def __init__(self, slots: int) -> None:
        """Each base model answers at most `slots` requests at a time."""
        self._slots = slots
        self._served: dict[str, Served] = {}
        self._bases: dict[str, _Loaded] = {}
        self._number = count(1)
        self._open = ExitStack()  # joint layers stay joint as long as the process lives

    @property
    def names(self) -> list[str]:
        """The names of all models, in the order in which they were added."""
        return list(self._served)

    def __getitem__(self, name: str) -> Served:
        """The model called `name`. Raises UserError if there is none."""
        if name not in self._served:
            raise UserError(f"{name}: no model of this name here; there are {', '.join(self._served) or 'none'}")
        return self._served[name]

    def add(self, name: str) -> Served:
        """Load the checkpoint called `name` (`checkpoints.find`), unless it is there already.

        The base of the first adapter is then there as well, as `BASE`. Raises UserError if there is no such checkpoint,
        or if it can't be loaded, for example over another base than it was trained on.
        """
        if name in self._served:
            return self._served[name]
        found = find(name)
        checkpoint, base, tokenizer = found.checkpoint, found.base(), found.checkpoint.tokenizer
        template = Template(checkpoint.template, tokenizer)
        shared = self._over_base(name, checkpoint, base, template) if base else None
        loaded, adapter, gigabytes = shared or self._whole(checkpoint, base, template)
        ends = {tokenizer.eos_token_id, *end_tokens(loaded.model), *checkpoint.end_tokens}

        def served(name: str, method: str | None, file: str, adapter: str | None, gigabytes: float) -> Served:
            parts = tokenizer, template, ends, _positions(loaded.model)
            return Served(name, method, file, loaded.engine, adapter, *parts, gigabytes)

        method = checkpoint.method
        if shared and BASE not in self._served:
            file = "base-4bit" if method.quantized else "base"
            self._served[BASE] = served(BASE, None, file, None, _gigabytes(loaded.model))
        self._served[name] = served(name, method.name, "tuned", adapter, gigabytes)
        return self._served[name]

    def _over_base(
        self, name: str, checkpoint: Checkpoint, base: Base, template: Template
    ) -> tuple[_Loaded, str, float] | None:
        """`base` with the checkpoint's adapter over it; None if that can't share its base with others."""
        if not is_plain(checkpoint.folder):
            return None
        if base.fingerprint not in self._bases:
            self._bases[base.fingerprint] = self._loaded(load_base(base, compute_dtype()), template)
        loaded = self._bases[base.fingerprint]
        if loaded.layers is None:
            return None
        adapter, parts = f"{name}, {next(self._number)}", read_adapter(checkpoint.folder)
        try:
            held = loaded.layers.load(adapter, parts)
        except ValueError as error:
            raise UserError(f"{checkpoint.folder}: the adapter can't be loaded: {error}; train it again") from None
        return loaded, adapter, held / 1e9

    def _whole(self, checkpoint: Checkpoint, base: Base | None, template: Template) -> tuple[_Loaded, str, float]:
        """The checkpoint as a model that shares nothing."""
        model = load_tuned(checkpoint, base)
        return self._loaded(model, template), OWN, _gigabytes(model)

    def _loaded(self, model: PreTrainedModel | PeftModel, template: Template) -> _Loaded:
        model.eval()
        tried = [
            template.question_ids([Turn("user", text)]) for text in ("Say hello.", "Name three colours of the sky.")
        ]
        with torch.no_grad():
            layers = self._open.enter_context(prepared(model, tried, max_new_tokens=1))
        return _Loaded(model, Engine(model, layers, self._slots), layers)


def _positions(model: PreTrainedModel | PeftModel) -> int | None:
    config = model.config
    window = getattr(config, "sliding_window", None)
    # Blocks of slots are laid out a little longer than their sequences, and none may be longer than the window.
    limits = getattr(config, "max_position_embeddings", None), window and window - 2 * GROWTH
    return min((limit for limit in limits if limit), default=None)


def _gigabytes(model: PreTrainedModel | PeftModel) -> float:
    return sum(one.numel() * one.element_size() for one in model.parameters()) / 1e9
