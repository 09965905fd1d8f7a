"""Wheels for a machine without a network: what the kit uses and images with torch seldom have."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from finetune.errors import UserError

PACKAGES = (
    "bitsandbytes",
    "datasets",
    "dill",
    "multiprocess",
    "trl",
    "liger-kernel==0.8.5",
    "cut-cross-entropy==25.1.1",
)
"""Without their needs, which such images have. The first ones' versions are those of constraints.txt. flash-attn has no
wheels on PyPI; torch brings its kernels."""

PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28)))


def pack(folder: Path, python: str) -> None:
    """Download the wheels for Linux on x86-64 and that Python into `folder`, and say what to carry."""
    if find_spec("pip") is None:
        raise UserError("--pack: pip is not installed here; run `python -m ensurepip` first")
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    done = subprocess.run([*command, "--dest", str(folder), *_pinned()], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"--pack: pip failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    wheels = sorted(folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    print(f"{len(wheels)} wheels, {size:.0f} MB, in {folder}. Carry this repository and that folder, and run there:")
    print(f"  python3 -m pip install --no-index --no-deps --target packages {folder}/*.whl")
    print("  PYTHONPATH=packages python3 -m benchmarks.gpu --minutes 10")


def _pinned() -> list[str]:
    lines = Path("constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.split("==")[0]: line for line in lines if "==" in line}
    return [pins.get(name, name) for name in PACKAGES]
