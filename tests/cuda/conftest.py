"""Each test runs on the CPU in the default suite, and on a CUDA device where there is one (marker `cuda`).

Nothing here needs DVC, datasets or evaluate; only what trains in four bits needs bitsandbytes.
"""

import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import families
import pytest
import torch
from helpers import FAST, ROOT
from transformers import AutoModelForCausalLM

from finetune import params
from finetune.costs.meter import Meter
from finetune.kernels.packing import longest_micro_batch
from finetune.methods import METHODS
from finetune.models.adapters import as_trained, trainable
from finetune.models.base import Base
from finetune.models.loading import load_base
from finetune.training.run import train

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS promises no determinism

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
)


@contextmanager
def without_cuda():
    """As on a machine without a CUDA device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture
def on_cpu():
    return without_cuda


@pytest.fixture(params=["cpu", CUDA])
def device(request):
    """The device that this package finds."""
    if request.param == "cuda":
        yield torch.device("cuda")
        return
    with without_cuda():
        yield torch.device("cpu")


@pytest.fixture
def deterministic():
    """What torch's algorithms promise the same bytes from, those alone."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Rows(list):
    """Rows as the trainer reads them, without the package datasets."""

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)

    def select_columns(self, names):
        return self


@pytest.fixture(autouse=True)
def _lengths_of_rows(monkeypatch):
    """Of `Rows`, which have no column to read them from."""
    from finetune.data import prepared
    from finetune.training import shares

    for place in (prepared, shares):
        monkeypatch.setattr(place, "lengths", lambda rows: [len(row["input_ids"]) for row in rows])


@pytest.fixture(scope="session")
def splits() -> dict[str, Rows]:
    """24 sequences to train on and 4 to validate, in which each token follows from the one before."""
    draw = torch.Generator().manual_seed(0)
    rows = Rows()
    for length in [12, 40, 7, 90, 33, 21, 64] * 4:
        first = int(torch.randint(20, (), generator=draw))
        ids = [(first + 3 * place) % 20 + 1 for place in range(length)]
        rows.append({"input_ids": ids, "labels": [-100] * (length // 3) + ids[length // 3 :]})
    return {"train": Rows(rows[4:]), "validation": Rows(rows[:4])}


@pytest.fixture(scope="session")
def tokenizer():
    """Of as many words as the tiny models have."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<end>": 0} | {f"word{number}": number for number in range(1, 384)}
    inner = Tokenizer(WordLevel(words, unk_token="<end>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>")


@pytest.fixture(scope="session")
def bases(tmp_path_factory, splits):
    """The folder of a tiny model for a family and a method; in four bits, which the CPU has made, where it wants them.

    Weights are lively (`families.LIVELY`), or as the family draws them, from where training gets ahead.
    """
    folder = tmp_path_factory.mktemp("bases")

    def base(family: str, method: str, lively: bool = True) -> Path:
        whole = folder / f"{family}-{lively}"
        if not whole.exists():
            random_model(family, lively).save_pretrained(whole)
        if not METHODS[method].quantized:
            return whole
        pytest.importorskip("bitsandbytes", reason="qlora needs bitsandbytes, which is not installed")
        made = folder / f"{whole.name}-4bit"
        if not made.exists():
            with without_cuda():
                in_4_bits(whole, made, splits)
        return made

    return base


def random_model(family: str, lively: bool):
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if lively:
        return families.model(family, **ends)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(families.config(family, **ends), dtype=torch.float32)


def in_4_bits(whole: Path, folder: Path, splits) -> None:
    """The model in `whole`, as the quantize stage rounds it."""
    from finetune.quantization.quantise import quantise

    folder.mkdir()
    quantise(Base(whole), splits["train"]["input_ids"][:8], settings().quantization, folder)


@pytest.fixture
def quantised():
    return in_4_bits


def settings() -> params.Params:
    """The shipped params with small adapters."""
    p = params.load(path=ROOT / "params.yaml")
    return replace(p, lora=replace(p.lora, r=4, alpha=8))


@pytest.fixture
def shipped():
    return settings()


@pytest.fixture
def drawn(bases, shipped):
    """A tiny model in fp32 as a method trains it, its adapters drawn at random, the same on every device."""

    def model(family: str, method: str):
        made = as_trained(load_base(Base(bases(family, method)), torch.float32), METHODS[method], shipped.lora)
        return draw_adapters(made)

    return model


def draw_adapters(model):
    """B starts at zero, and would leave A without a gradient."""
    draw = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model.eval()  # without GPT-2's dropout


@pytest.fixture
def adapters_drawn():
    return draw_adapters


@pytest.fixture
def run(bases, splits, tokenizer):
    """Train a tiny model by a method; its weights, losses, and what the run came to."""

    def once(family: str, method: str, unfinished: Path | None = None, epochs: float = 2) -> SimpleNamespace:
        p, losses = settings(), []
        torch.manual_seed(0)
        tokens = longest_micro_batch(
            map(len, splits["train"]["input_ids"]), p.train.batch_size, p.train.tokens_per_micro_batch
        )
        model = trainable(Base(bases(family, method, lively=False)), METHODS[method], p.lora, tokens)
        meter = Meter().start()
        try:
            result = train(
                model,
                tokenizer,
                splits,
                settings=p.train,
                method=replace(p.methods[method], learning_rate=FAST[method]["learning_rate"], epochs=epochs),
                seed=0,
                packed=True,
                meter=meter,
                log=lambda step, values: losses.append(values.get("train/loss")),
                unfinished=unfinished,
            )
        finally:
            meter.stop()
        weights = {name: one.detach().cpu() for name, one in model.named_parameters() if one.requires_grad}
        return SimpleNamespace(model=model, weights=weights, losses=losses, result=result, meter=meter)

    return once
