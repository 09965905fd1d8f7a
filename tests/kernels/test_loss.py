"""The response-only loss equals the model's own, values and gradients."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.kernels import loss
from finetune.kernels.layers import replace_layers
from finetune.kernels.packing import micro_batches, pack
from finetune.models.base import Base
from finetune.models.loading import load_base

IGNORE = -100


def rows(vocabulary: int) -> list[dict[str, list[int]]]:
    """Four sequences of unlike length, prompts masked."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for prompt, length in [(4, 12), (0, 9), (6, 7), (30, 90)]:
        ids = torch.randint(1, vocabulary, (length,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [IGNORE] * prompt + ids[prompt:]})
    return made


@pytest.fixture(params=["llama", "gpt2"])
def model(request, tiny_models):
    return load_base(Base(tiny_models[request.param]), torch.float32).eval()


def plain_loss(model) -> torch.Tensor:
    """Mean over targets of the model's own losses, each sequence alone."""
    total, targets = 0.0, 0
    for row in rows(model.config.vocab_size):
        ids, labels = (torch.tensor([row[key]]) for key in ("input_ids", "labels"))
        count = int((labels[:, 1:] != IGNORE).sum())
        total += model(input_ids=ids, labels=labels).loss * count
        targets += count
    return total / targets


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("tokens", [30, 1000])
def test_equals_the_models_own_loss_and_gradients(model, tokens, replaced, checkpointing):
    expected_loss = plain_loss(model)
    expected_loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    if replaced:
        replace_layers(model)
    if checkpointing:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):  # GPT-2's own
                module.p = 0.0
        model.gradient_checkpointing_enable()
        model.train()
    batch = pack(rows(model.config.vocab_size))
    targets = (batch["labels"] != IGNORE).sum()
    total = 0.0
    for part in micro_batches(batch, tokens):
        value = loss.response_loss(model, part) / targets
        value.backward()
        total += value.item()

    assert total == pytest.approx(expected_loss.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_llamas_norms_mlps_and_linear_layers_are_replaced(tiny_models, dtype):
    model = load_base(Base(tiny_models["llama"]), dtype)
    replace_layers(model)
    replaced = {type(module).__name__ for module in model.modules() if "forward" in vars(module)}
    assert replaced == {"LlamaRMSNorm", "LlamaMLP", "Linear"}


def test_chunks_of_any_size_give_the_same(model, monkeypatch):
    (inputs,), found = micro_batches(pack(rows(model.config.vocab_size) * 3), 1000), []
    for size in (1, 32, 1000):
        monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * model.config.vocab_size * size)
        model.zero_grad()
        value = loss.response_loss(model, inputs)
        value.backward()
        found.append((value, model.get_output_embeddings().weight.grad.clone()))
    for value, gradient in found[1:]:
        torch.testing.assert_close(value, found[0][0])
        torch.testing.assert_close(gradient, found[0][1])


def test_the_logits_of_a_whole_batch_never_exist(model, monkeypatch):
    """In training and in evaluation alike no tensor has more than a chunk's rows of the vocabulary."""
    vocabulary = model.config.vocab_size
    monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * vocabulary * 64)
    monkeypatch.setattr(loss, "WIDE_BYTES", 4 * vocabulary * 64)
    (batch,) = micro_batches(pack(rows(vocabulary) * 3), 1000)
    with LargestRows(model.get_output_embeddings().weight) as seen:
        loss.response_loss(model, batch).backward()
        loss.sequence_losses(model, rows(vocabulary) * 3, 1000)
    # A head that learns is given twice as many; the batch has 231 targets.
    assert seen.largest == 128


class LargestRows(TorchDispatchMode):
    """Notes the most rows of any result that is as wide as the vocabulary, the transposed head left out."""

    def __init__(self, head: torch.Tensor) -> None:
        super().__init__()
        self.head, self.largest = head, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        wide = torch.is_tensor(result) and result.ndim >= 2 and result.shape[-1] == len(self.head)
        if wide and result.data_ptr() != self.head.data_ptr():
            self.largest = max(self.largest, result[..., 0].numel())
        return result


@pytest.mark.parametrize("tokens", [1, 30, 1000])
def test_each_sequence_has_its_loss_however_many_share_a_pass(model, monkeypatch, tokens):
    """Also where a forward takes several chunks of logits."""
    monkeypatch.setattr(loss, "CHUNK_BYTES", 1)
    vocabulary = model.config.vocab_size
    losses = loss.sequence_losses(model, rows(vocabulary), tokens)
    assert [found.tokens for found in losses] == [8, 8, 1, 60]
    for found, row in zip(losses, rows(vocabulary), strict=True):
        ids, labels = (torch.tensor([row[key]]) for key in ("input_ids", "labels"))
        assert found.nats / found.tokens == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=1e-5)
    assert loss.mean_loss(losses) == pytest.approx(plain_loss(model).item(), rel=1e-6)
