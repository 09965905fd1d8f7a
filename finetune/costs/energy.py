"""Energy that the CUDA device has drawn, by NVIDIA's management library (NVML)."""

import pynvml
import torch


def joules() -> float | None:
    """Since the driver was loaded, by any process; None without a CUDA device, or where NVML can't tell."""
    if not torch.cuda.is_available():
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    except pynvml.NVMLError:
        return None
