"""The device at hand, the precision that suits it, and what a run ran on."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from finetune.errors import UserError, quoted

CPU_DTYPE = "FINETUNE_CPU_DTYPE"
"""Environment variable: `fp32` or `bf16`, the compute dtype on a CPU whatever its instructions. bf16 is then emulated
where they are missing. It lets a machine repeat what a machine of the other kind computes; the tests use it so."""


def device() -> torch.device:
    """CUDA if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype() -> torch.dtype:
    """The dtype of matrix products: bf16 where the hardware multiplies it natively, else fp16 (CUDA) or fp32 (CPU).

    Raises UserError if `FINETUNE_CPU_DTYPE` is set to anything but fp32 or bf16.
    """
    if device().type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    asked = os.environ.get(CPU_DTYPE)
    if asked is None:
        return torch.bfloat16 if _cpu_multiplies_bf16() else torch.float32
    if asked not in ("fp32", "bf16"):
        raise UserError(f"{CPU_DTYPE}: must be fp32 or bf16, got {quoted(asked)}")
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[asked]


def _cpu_multiplies_bf16() -> bool:
    """AVX512-BF16 or AMX on x86. Elsewhere bf16 is emulated, and slower than fp32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is Python's, CUDA's, or the CPU allocator's way to say that memory ran out."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


@contextmanager
def enough_memory(advice: str | Callable[[], str]) -> Iterator[None]:
    """Turn running out of memory within the block into a UserError that gives `advice`, or what that then says."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = advice if isinstance(advice, str) else advice()
        raise UserError(f"the memory of {describe()} isn't enough: {said}") from None


def describe() -> str:
    """The hardware in a few words: 'NVIDIA H200' or 'AMD EPYC, 2 threads'."""
    if device().type == "cuda":
        return torch.cuda.get_device_name()
    return f"{_cpu_name()}, {torch.get_num_threads()} threads"


def versions() -> str:
    """The releases that a run's figures depend on."""
    found = [f"python {platform.python_version()}"]
    for name in ("torch", "transformers", "peft", "bitsandbytes"):
        with suppress(PackageNotFoundError):  # only qlora needs bitsandbytes
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()
