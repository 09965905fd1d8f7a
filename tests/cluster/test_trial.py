"""One trial in a clone of its own, without a cluster: what goes there, what comes back, and what a kill leaves."""

import signal

import psutil
from cluster.conftest import git, ok, wait_for


def test_queued_experiments_run_in_other_clones_and_come_back(repository, tmp_path):
    # Edits that are not committed belong to a queued experiment.
    work = repository.folder / "work.py"
    work.write_text(work.read_text().replace("{params['method']}", "größer {params['method']}"))
    repository.queue("lora", "seed=1,2")
    repository.queue("lost", "methods.lora.learning_rate=0.5")
    git(repository.folder, "checkout", "--quiet", "work.py")
    assert "0 lora-1, 1 lora-2, 2 lost" in ok(repository.cluster("write", "trials.json"))

    runs = [repository.cluster("trial", "trials.json", n, "--folder", tmp_path / "node") for n in (0, 1, 2)]
    assert [run.returncode for run in runs] == [0, 0, 1]
    assert runs[2].stderr == "error: dvc exp run failed: the loss is no number at a rate of 0.5\n"
    assert "not finished: lost" in ok(repository.cluster("collect"))
    found = repository.experiments()
    assert {name: one["models/tuned"] for name, one in found.items()} == {
        "lora-1": "words\ngrößer lora 1\n",
        "lora-2": "words\ngrößer lora 2\n",
    }
    assert "0 lost" in ok(repository.cluster("write", "trials.json"))
    # Of the clones the failed one stays, which the next attempt goes on from.
    assert [path.name[:5] for path in (tmp_path / "node").glob("lo*")] == ["lost-"]


def test_an_attempt_that_lives_on_is_waited_for_and_one_that_is_terminated_leaves_nothing(repository, tmp_path):
    pause = tmp_path / "pause"
    repository.queue("slow", f"pause={pause}")
    ok(repository.cluster("write", "trials.json"))
    words = ("trial", "trials.json", 0, "--folder", tmp_path / "node")
    first = repository.start(*words)
    wait_for(pause.exists)
    first.send_signal(signal.SIGTERM)
    first.communicate()
    assert first.returncode == 128 + signal.SIGTERM
    inside = [one for one in psutil.process_iter(["cwd"]) if (one.info["cwd"] or "").startswith(str(tmp_path / "node"))]
    assert not inside
    pause.with_name("pause.seen").unlink()

    second = repository.start(*words)
    wait_for(pause.with_name("pause.seen").exists)
    second.kill()  # and not what it has started
    third = repository.start(*words)
    pause.unlink()
    said, _ = third.communicate()
    assert third.returncode == 0 and "Running stage 'train'" not in said, said
    assert "1 of 1 experiments are here" in ok(repository.cluster("collect"))
    assert list(repository.experiments()) == ["slow"]
