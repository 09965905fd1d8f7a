"""Commands run where there is no network: in a network namespace of their own, every try to leave it noted."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from helpers import command

GUARD = Path(__file__).with_name("security") / "guard"

SECRETS = {
    name: f"secret-of-{name.lower()}"
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "FINETUNE_API_KEY", "DVC_STUDIO_TOKEN")
}
"""What the environment holds meanwhile, and no file may."""


@cache
def namespace() -> tuple[str, ...]:
    """What runs a command without a network; nothing where the system has no such thing, or doesn't allow it."""
    for flags in (("--net",), ("--user", "--map-root-user", "--net")):
        start = ("unshare", *flags, "--")
        if shutil.which("unshare") and subprocess.run([*start, "true"], capture_output=True).returncode == 0:
            return start
    return ()


def need_namespace() -> None:
    """Skip the test where none can be had."""
    if not namespace():
        pytest.skip("no network namespace to be had: `unshare --net` is missing, or neither root nor user may call it")


def guarded(log: Path) -> dict[str, str]:
    """Variables under which Python notes in `log` whom it tries to reach; the Hub's libraries aren't told to be offline."""
    paths = [str(GUARD), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "NETWORK_TRIES": str(log), "HF_HUB_OFFLINE": "", **SECRETS}


def run(*arguments: object, cwd: Path, log: Path) -> subprocess.CompletedProcess:
    """Run a command without a network, if the system can, and note in `log` whom it tries to reach."""
    return command(*namespace(), *arguments, cwd=cwd, **guarded(log))


def tries(log: Path) -> str:
    """Whom commands have tried to reach: nobody, or what the guard has noted."""
    return log.read_text() if log.exists() else ""
