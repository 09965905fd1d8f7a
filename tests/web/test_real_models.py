"""`finetune serve` with real models, in the browser."""

import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT

pytest.importorskip("starlette", reason="starlette is not installed")


@pytest.fixture(scope="module")
def address(trained):
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "finetune.commands.main", "serve", "--port", "0", "--ckpt", "workspace", "other"]
    running = subprocess.Popen(
        command, cwd=trained, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True
    )
    yield re.search(r"http://[\d.:]+", running.stdout.readline())[0]
    running.terminate()
    running.wait()


def test_models_answer_side_by_side(address, visit):
    page = visit(address)
    page.get_by_text("Settings").click()
    page.get_by_label("Max new tokens").fill("8")
    page.get_by_label("Instruction").fill("Name the moon.")
    page.get_by_role("button", name="Ask", exact=True).click()
    for name in ("base", "workspace"):
        column = page.get_by_role("region", name=f"Answer of {name}", exact=True)
        column.locator("[aria-busy=false]").wait_for(state="attached")
        figures = r"\d tokens?( · [\d.]+ tokens/s)? · first after \d+\.\d\d s · 0\.\d{3} GB held"
        assert re.search(figures, column.inner_text())
        assert column.get_by_role("alert").count() == 0
