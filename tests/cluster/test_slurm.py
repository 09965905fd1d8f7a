"""Experiments as a job array of a real Slurm on this machine, two nodes of one CPU; minutes, and root."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from cluster.conftest import RACERS, check_all_have_arrived, check_search, clones_in_training, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, ("sbatch", "slurmctld", "slurmd", "munged"))),
        reason="Slurm is not installed; on Debian: apt-get install slurm-wlm munge",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="Slurm's own daemons are started, which root alone may"),
]
HERE = Path(__file__).parent


@pytest.fixture
def slurm(tmp_path) -> Iterator[list[object]]:
    """What starts Slurm for the command behind it. Nothing of it is left afterwards."""
    folder = tmp_path / "slurm"
    yield ["bash", HERE / "slurm_on_one_machine.sh", folder]
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("SLURM_CONF") == str(folder / "slurm.conf") or str(folder) in process.cmdline():
                process.kill()


def kill_node(name: str) -> None:
    """Kill a node's daemons and all that runs there. They are stopped first, the daemons before the others, so that none
    can report another's death: to the rest of the cluster the node is gone at once."""
    here: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cmdline()[-2:] == ["-N", name]:
                here.add(process)
            elif process.environ().get("SLURMD_NODENAME") == name:
                # What watches over a step doesn't say whose it is.
                here |= {process, *(one for one in process.parents() if one.name() == "slurmstepd")}
    daemons_first = sorted(here, key=lambda process: not process.name().startswith("slurm"))
    for act in (psutil.Process.suspend, psutil.Process.kill):
        for process in daemons_first:
            with suppress(psutil.NoSuchProcess):
                act(process)


def test_a_node_dies_in_mid_training_and_its_trial_goes_on_elsewhere(race, slurm, tmp_path):
    words = ("slurm", "--folder", tmp_path / "shared")
    submitted = race.start(*words, by=slurm, FINETUNE_SNAPSHOT_SECONDS="0")
    at_work, *_ = wait_for(lambda: clones_in_training(tmp_path / "shared"), 900)
    where = [one for one in psutil.process_iter(["cwd", "environ"]) if one.info["cwd"] == str(at_work)]
    kill_node(where[0].info["environ"]["SLURMD_NODENAME"])
    said, errors = submitted.communicate(timeout=1800)
    assert submitted.returncode == 0, said + errors
    assert f"{len(RACERS)} of {len(RACERS)} experiments are here" in said
    assert any("resuming after step" in log.read_text() for log in race.folder.glob(".dvc/tmp/cluster/*/*.log"))
    check_all_have_arrived(race)


def test_the_search_runs_as_job_arrays(repository, slurm, tmp_path):
    submitted = repository.start(*("slurm", "--sweep", "--folder", tmp_path / "shared"), by=slurm)
    said, errors = submitted.communicate(timeout=1800)
    assert submitted.returncode == 0, said + errors
    check_search(repository, said)


def test_which_trials_failed_and_why_is_said_at_the_end(repository, slurm, tmp_path):
    repository.queue("lost", "methods.lora.learning_rate=0.5")
    repository.queue("lora")
    submitted = repository.start(*("slurm", "--folder", tmp_path / "shared"), by=slurm)
    said, errors = submitted.communicate(timeout=1800)
    assert submitted.returncode == 1, said + errors
    assert "1 of 2 experiments are here" in said
    assert "  lost: dvc exp run failed: the loss is no number at a rate of 0.5" in said
