"""Experiments on a real Ray cluster of two nodes on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.conftest import RACERS, check_all_have_arrived, check_search, clones_in_training, ok, wait_for
from helpers import dvc

pytest.importorskip("ray", reason="Ray is not installed; pip install -e '.[ray]'")

from cluster.ray_nodes import RayCluster, start_cluster


@pytest.fixture
def two_nodes(tmp_path, monkeypatch) -> Iterator[RayCluster]:
    monkeypatch.setenv("FINETUNE_SNAPSHOT_SECONDS", "0")
    cluster = start_cluster()
    cluster.add_node(tmp_path / "n1")
    cluster.add_node(tmp_path / "n2")
    yield cluster
    cluster.end()


def test_all_trials_arrive_though_a_node_dies_and_one_fails(repository, two_nodes, tmp_path):
    pause = tmp_path / "pause"
    repository.queue("lost", "methods.lora.learning_rate=0.5")
    repository.queue("lora", "seed=1", f"pause={pause}")
    repository.queue("full", "method=full", "seed=1,2")
    submitted = repository.start("ray", "--address", two_nodes.address)
    wait_for(pause.exists)
    at_work = next(home for home in two_nodes.homes if list(home.glob(".cache/finetune/trials/lora-*")))
    two_nodes.kill_node(at_work)
    said, errors = submitted.communicate(timeout=300)
    assert submitted.returncode == 1, said + errors
    assert "3 of 4 experiments are here" in said
    assert "  lost: dvc exp run failed: the loss is no number at a rate of 0.5" in said
    assert errors.splitlines()[-1].startswith("error: 1 of 4 have failed: lost; they are queued still")
    assert {name: one["models/tuned"] for name, one in repository.experiments().items()} == {
        "lora": "words\nlora 1\n",
        "full-1": "words\nfull 1\n",
        "full-2": "words\nfull 2\n",
    }
    (other,) = [home for home in two_nodes.homes if home != at_work]
    assert not list(other.glob(".cache/finetune/trials/lora-*"))
    assert "lost" in ok(dvc(repository.folder, "queue", "status"))


@pytest.mark.slow
def test_the_race_arrives_though_a_node_dies_in_mid_training(race, two_nodes):
    submitted = race.start("ray", "--address", two_nodes.address, "--retries", 1)

    def in_training() -> list[Path]:
        return [home for home in two_nodes.homes if clones_in_training(home / ".cache/finetune/trials")]

    two_nodes.kill_node(wait_for(in_training, 900)[0])
    said, errors = submitted.communicate(timeout=1800)
    assert submitted.returncode == 0, said + errors
    assert f"{len(RACERS)} of {len(RACERS)} experiments are here" in said
    check_all_have_arrived(race)


@pytest.mark.slow
def test_the_search_runs_on_the_cluster_and_a_trial_that_diverges_counts_as_the_worst(repository, two_nodes):
    said = ok(repository.cluster("ray", "--sweep", "--address", two_nodes.address))
    check_search(repository, said)
