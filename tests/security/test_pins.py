"""What `make setup` installs is pinned by version and, where one hash fits every machine, by SHA-256."""

import re

from helpers import ROOT

PIN = re.compile(r"^([\w.-]+)==([^\s;\\]+)", re.MULTILINE)


def test_every_pinned_package_but_torch_has_its_hashes():
    """torch's builds for CPU and CUDA share a version, and no index has them all."""
    pinned = dict(PIN.findall((ROOT / "constraints.txt").read_text()))
    del pinned["torch"]
    blocks = re.split(r"\n(?=\w)", (ROOT / "requirements.lock").read_text())
    locked = {name.lower(): version for block in blocks for name, version in PIN.findall(block)}
    plain = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pinned.items()}
    assert {re.sub(r"[-_.]+", "-", name): version for name, version in locked.items()} == plain, "run `make lock`"
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", block) for block in blocks if PIN.match(block))
    assert "://" not in "".join(blocks)


def test_make_installs_them_by_hash():
    assert "--no-deps --require-hashes --requirement requirements.lock" in (ROOT / "Makefile").read_text()
