"""A repository with recorded answers, servers of the page in it, and a headless Chromium."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import GIT, ROOT, command, commit, dvc, free_port, write_params

from finetune import yaml_file

KEY = "a-kéy"


@pytest.fixture(scope="session")
def recorded(tmp_path_factory, words) -> Path:
    """A DVC repository that holds recorded answers alone: the workspace's (full) and those of experiment qlora-1."""
    folder = tmp_path_factory.mktemp("recorded") / "repository"
    (folder / "data/raw").mkdir(parents=True)
    (folder / "data/raw/words.json").write_text(json.dumps(words))
    write_params(folder, method="full")
    for name, answer in {"full": "The moon is old & round.", "qlora": "The moon is <b>bold</b>.", "base": ""}.items():
        rows = [
            {
                "record": f"words.json[{index}]",
                "prompt": f"### Instruction:\n{row['instruction']}\n\n### Response:\n",
                "reference": row["output"],
                "prediction": answer,
                "rouge_l": 40.0 + index,
                "nats": 30.0,
                "tokens": 20,
            }
            for index, row in reversed(list(enumerate(words[:25])))
        ]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    folders = ["data/prepared", "models/tuned"]
    copy = (
        f"mkdir -p data/predictions {' '.join(folders)} && cp ${{method}}.jsonl data/predictions/tuned.jsonl && "
        "cp base.jsonl data/predictions/"
    )
    outs = ["data/predictions/tuned.jsonl", "data/predictions/base.jsonl", *folders]
    (folder / "dvc.yaml").write_text(
        yaml_file.text({"stages": {"eval": {"cmd": copy, "params": ["method"], "outs": outs}}})
    )
    for step in ([*GIT, "init", "--quiet"], ["dvc", "init", "--quiet"], ["dvc", "repro"]):
        done = command(*step, cwd=folder)
        assert done.returncode == 0, done.stderr
    commit(folder, "answers")
    done = dvc(folder, "exp", "run", "-n", "qlora-1", "-S", "method=qlora")
    assert done.returncode == 0, done.stderr
    subprocess.run(["git", "checkout", "--quiet", "."], cwd=folder, check=True)
    assert dvc(folder, "checkout").returncode == 0
    (folder / "models/mine").mkdir(parents=True)
    return folder


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[tuple[str, Path]]:
    """Address and log of a server of the page that works in `folder`."""
    port = free_port()
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    log = folder.parent / f"{port}.log"
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("serve.py")), str(port), *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": paths},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", log
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def server(chromium, recorded) -> Iterator[tuple[str, Path]]:
    """Address and log of an open server, as on one's own machine."""
    with serving(recorded) as running:
        yield running


@pytest.fixture(scope="session")
def locked_server(chromium, recorded) -> Iterator[tuple[str, Path]]:
    """Address and log of a server with a key."""
    with serving(recorded, KEY) as running:
        yield running


@pytest.fixture
def visit(chromium):
    """Opens an address as a new user. At the end no page may have asked another server for anything."""
    users, asked, faults = [], [], []

    def opened(address: str, **context):
        user = chromium.new_context(**context)
        user.set_default_timeout(30_000)  # ms, on a busy machine
        users.append(user)
        page = user.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if "Content Security Policy" in line.text else None)
        page.goto(address)
        return page

    yield opened
    for user in users:
        user.close()
    assert asked and not [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:"))]
    assert not faults
