"""What surrounds the numbers: random state, the meter, and cards that have no bf16."""

import pytest
import torch

from finetune import device as devices
from finetune.costs.meter import Meter
from finetune.models import adapters, check_model
from finetune.resume import state
from finetune.training import run as training
from finetune.training import trainer


def test_random_numbers_go_on_where_they_were(device):
    torch.rand(3, device=device)
    states = state.random_states()
    assert len(states["cuda"]) == (torch.cuda.device_count() if device.type == "cuda" else 0)
    first = torch.rand(3), torch.rand(3, device=device)
    state.restore_random(states)
    again = torch.rand(3), torch.rand(3, device=device)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_the_meter_sees_what_the_device_holds(device):
    meter = Meter().start()
    before = meter.device_gb()
    held = torch.ones(50_000_000, device=device)
    assert 0.19 < meter.device_gb() - before < 0.4
    del held
    meter.stop()
    assert meter.peak_device_gb() >= before + 0.19
    assert meter.device_gb() < before + 0.1


@pytest.fixture
def fp16(device, monkeypatch):
    """A card of compute capability 7.5; a CPU as if it had such matrix units."""
    if device.type == "cuda":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
        assert devices.compute_dtype() == torch.float16
    else:
        for module in (devices, adapters, check_model, training, trainer):
            monkeypatch.setattr(module, "compute_dtype", lambda: torch.float16)


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_fp16_learns(device, fp16, run, method):
    """Its weights of fp32, its gradients scaled where they would vanish."""
    found = run("llama", method)
    assert {one.dtype for one in found.weights.values()} == {torch.float32}
    assert all(one.isfinite().all() for one in found.weights.values())
    assert found.result.validation_loss < found.losses[0] - 0.3
