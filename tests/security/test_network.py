"""Nothing is fetched after `fetch`: every command runs without a network, and none so much as tries to reach it."""

import os
import subprocess
import sys

import offline
import pytest


@pytest.fixture
def log(tmp_path):
    offline.need_namespace()
    return tmp_path / "tries.log"


def test_a_try_to_leave_is_noted_and_fails(log, tmp_path):
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"
    done = offline.run(sys.executable, "-c", code, cwd=tmp_path, log=log)
    assert done.returncode != 0 and "192.0.2.1" in offline.tries(log)


def test_the_stages_after_fetch_run_without_a_network(clone):
    """`dvc repro` of the fixture ran so, all but its first stage."""
    offline.need_namespace()
    assert (clone / "metrics/eval.json").exists()
    assert offline.tries(clone.parent / "tries.log") == ""


@pytest.mark.parametrize("told", [("chat", "--prompt", "Name the moon."), ("compare",)], ids=lambda told: told[0])
def test_a_command_runs_without_a_network(clone, log, told):
    done = offline.run(sys.executable, "-m", "finetune.commands.main", *told, cwd=clone, log=log)
    assert done.returncode == 0, done.stderr
    assert offline.tries(log) == ""


def test_the_server_starts_without_a_network(clone, log):
    pytest.importorskip("starlette", reason="starlette is not installed")
    serve = [*offline.namespace(), sys.executable, "-m", "finetune.commands.main", "serve", "--port", "0"]
    environment = os.environ | offline.guarded(log)
    with subprocess.Popen(serve, cwd=clone, env=environment, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        process.terminate()
    assert line.startswith("serving ") and "workspace" in line
    assert offline.tries(log) == ""
