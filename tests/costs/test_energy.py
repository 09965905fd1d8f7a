"""Energy by NVML, on a stand-in for the device."""

from types import SimpleNamespace

import pynvml
import pytest
import torch

from finetune.costs import energy


@pytest.fixture
def device(monkeypatch):
    """A CUDA device whose counter stands at 5,000 mJ."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(uuid="1-2"))
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", {"GPU-1-2": 5000}.__getitem__)
    return monkeypatch


def test_millijoules_of_the_device_in_use_are_joules(device):
    assert energy.joules() == 5.0


def test_a_device_that_does_not_count_has_no_figure(device):
    def refuse(handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    device.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", refuse)
    assert energy.joules() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_a_machine_without_one_has_no_figure():
    assert energy.joules() is None
