"""DVC's queue, which runs experiments in a temporary copy of the repository."""

import json
import time

import psutil
import pytest
from helpers import clone_of_the_working_tree, command, commit, dvc, write_params


@pytest.fixture(scope="module")
def queued(tmp_path_factory, tiny_models, words):
    """A repository whose queue has run: its data lie beside it, untracked in it, or nowhere."""
    folder = clone_of_the_working_tree(tmp_path_factory.mktemp("queue") / "clone")
    write_params(folder, model={"source": str(tiny_models["llama"])}, data={"source": "../outside.json"})
    commit(folder, "tiny")
    (folder.parent / "outside.json").write_text(json.dumps(words))
    (folder / "untracked.json").write_text(json.dumps(words[:20]))
    for name, settings in {
        "outside": [],
        "untracked": ["-S", "data.source=untracked.json"],
        "lost": ["-S", "data.source=../nowhere.json"],
        "unknown-group": ["-S", "+dta.size=7", "-S", "data.source=./never.json"],
    }.items():
        done = dvc(folder, "exp", "run", "--queue", "-n", name, *settings, "fetch@data")
        assert done.returncode == 0, done.stderr
    dvc(folder, "exp", "run", "--run-all")
    return folder


@pytest.mark.parametrize("name", ["outside", "untracked"])
def test_a_relative_source_is_found_from_the_repository_itself(queued, name):
    log = dvc(queued, "queue", "logs", name).stdout
    assert "fetching the data" in log and "error:" not in log
    shown = json.loads(dvc(queued, "exp", "show", "--json").stdout)
    states = {one["name"]: one["revs"][0]["data"] for row in shown for one in row["experiments"] or []}
    assert states[name] is not None


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("lost", "error: data.source: '../nowhere.json' is no file or folder here; give an existing path"),
        ("unknown-group", "error: dta: unknown key in params.yaml; did you mean data?"),
    ],
)
def test_our_sentence_stands_in_the_log_of_a_failed_run(queued, name, sentence):
    log = dvc(queued, "queue", "logs", name).stdout
    assert sentence in log and "Traceback" not in log


@pytest.mark.slow
def test_a_queued_run_that_is_killed_is_queued_again_and_goes_on(queued, tiny_models):
    settings = ["-S", "data.source=../outside.json", "-S", "methods.qlora.epochs=60"]
    assert dvc(queued, "exp", "run", "--queue", "-n", "killed", *settings, "train").returncode == 0
    assert command("dvc", "queue", "start", cwd=queued, FINETUNE_SNAPSHOT_SECONDS="0").returncode == 0
    for _ in range(3000):
        if list(queued.glob("models/.snapshots/train-*/step-*")):
            break
        time.sleep(0.1)
    for process in psutil.process_iter(["cwd"]):
        if (process.info["cwd"] or "").startswith(str(queued)):
            process.kill()
    assert list(queued.glob("models/.snapshots/train-*/step-*"))
    for how in (["kill", "--force"], ["remove"]):
        assert dvc(queued, "queue", *how, "killed").returncode == 0
    assert dvc(queued, "exp", "run", "--queue", "-n", "killed", *settings, "train").returncode == 0
    dvc(queued, "exp", "run", "--run-all")
    assert "resuming after step" in dvc(queued, "queue", "logs", "killed").stdout
    assert "Success" in dvc(queued, "queue", "status").stdout
    assert not list(queued.glob("models/.snapshots/*"))


def test_a_queue_that_would_hang_is_refused_before_it_starts(tmp_path):
    folder = clone_of_the_working_tree(tmp_path / "größe")
    code = "from finetune import cli\nfrom finetune.experiments import sweep\ncli.run(sweep.check_queue_runs)"
    done = command("python", "-c", code, cwd=folder, PYTHONPATH=str(folder))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "größe/.dvc/cache: DVC's queue hangs where the path of its cache has other letters" in done.stderr
    assert dvc(folder, "cache", "dir", "--local", tmp_path / "plain").returncode == 0
    assert command("python", "-c", code, cwd=folder, PYTHONPATH=str(folder)).returncode == 0
