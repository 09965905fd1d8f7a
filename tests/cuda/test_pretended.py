"""The paths that only CUDA takes, run on any machine by a device that is pretended (`pretended_cuda.py`)."""

import pretended_cuda
import pytest
import torch

from finetune.generation.engine import Engine
from finetune.generation.joint_layers import OWN
from finetune.generation.prepared_model import prepared
from finetune.generation.request import Request
from finetune.models import adapters, loading

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real device")

BF16, FP16 = (8, 0), (7, 5)
"""Compute capabilities, of which the latter has no bf16."""


@pytest.fixture
def on_device(monkeypatch):
    """Models are put on the pretended device as they are loaded."""
    real = loading.load_base

    def load(*arguments, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loading, "device", lambda: torch.device("cpu"))
            return pretended_cuda.put_on_cuda(real(*arguments, **options | {"place": None}))

    monkeypatch.setattr(adapters, "load_base", load)


def test_what_lies_elsewhere_is_refused():
    with pretended_cuda.pretended(BF16) as device:
        here, there = torch.ones(3, device=device), torch.ones(3)
        assert (here + 1).device == device and (here * torch.tensor(2.0)).tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
            here + there
        assert torch.equal(here.cpu(), there) and torch.equal(there.to(device), here)


@pytest.mark.parametrize(
    ("capability", "family", "method"),
    [
        (BF16, "llama", "qlora"),
        pytest.param(FP16, "gpt2", "lora", marks=pytest.mark.slow),
        pytest.param(FP16, "llama", "qlora", marks=pytest.mark.slow),
        pytest.param(BF16, "llama", "dora", marks=pytest.mark.slow),
        pytest.param(BF16, "gpt2", "full", marks=pytest.mark.slow),
        pytest.param(FP16, "gpt2", "full", marks=pytest.mark.slow),
    ],
)
def test_a_run_and_answers_mix_no_devices(on_device, run, capability, family, method):
    with pretended_cuda.pretended(capability) as device:
        found = run(family, method, epochs=0.5)
        assert {one.device for one in found.model.parameters()} == {device}
        assert found.result.validation_loss < found.losses[0]
        requests = [Request(ids, 4, [0], OWN) for ids in ([1, 4, 7], [5, 8])]
        with torch.no_grad(), prepared(found.model.eval(), [one.prompt for one in requests], 4) as layers:
            assert layers
            engine = Engine(found.model, layers, slots=2)
            for request in requests:
                engine.submit(request)
            while engine.requests:
                engine.step()
    assert all(one.reason for one in requests)
