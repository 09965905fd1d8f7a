"""The search of learning rates and epochs: its course on made-up losses, and one trial for real."""

import json
import math

import pytest
from helpers import ROOT, command

from finetune import yaml_file
from finetune.errors import UserError
from finetune.experiments import sweep
from finetune.experiments.sweep import Trial
from finetune.methods import METHODS


def searched(loss) -> list[Trial]:
    """The trials of a search over `loss`, in their order."""
    made: dict[Trial, float] = {}

    def run(trials: set[Trial]) -> None:
        assert not trials & set(made), "a trial was made twice"
        made.update({trial: loss(trial) for trial in sorted(trials, key=sweep.name)})

    assert sweep.search(run, lambda: dict(made)) == made
    return list(made)


def valley(lowest: float):
    """Least at learning rate `lowest` and one epoch."""
    return lambda trial: abs(math.log(trial.learning_rate / lowest)) + trial.epochs


@pytest.mark.parametrize("factor", [1 / 8, 1, 4])
def test_the_search_goes_on_until_both_neighbours_are_worse(factor):
    start = METHODS["full"].first_learning_rate
    trials = [trial for trial in searched(valley(start * factor)) if trial.method == "full"]
    rates = {trial.learning_rate for trial in trials if trial.epochs == 1}
    assert min(rates) == start * min(factor, 1) / 2 and max(rates) == start * max(factor, 1) * 2
    assert [trial for trial in trials if trial.epochs == 2] == [Trial("full", start * factor, 2)]


def test_the_best_is_the_least_loss_of_its_method():
    losses = {trial: valley(2e-3)(trial) for trial in searched(valley(2e-3))}
    assert sweep.best(losses, "lora") == Trial("lora", 2e-3, 1)


def test_a_trial_that_diverged_counts_as_the_worst():
    trials = searched(lambda trial: math.inf if trial.learning_rate > 1e-3 else valley(1e-3)(trial))
    assert max(trial.learning_rate for trial in trials) == 2e-3


def test_a_trial_without_a_result_ends_the_search():
    with pytest.raises(UserError, match=r"sweep-dora-0\.0005-1: left no result"):
        sweep.search(lambda trials: None, dict)


def test_queued_trials_are_read_back_and_run_the_library_beside_them(editable):
    """Not the one that is installed, which lacks the mark."""
    with (editable / "finetune/device.py").open("a") as file:
        file.write('\nprint("the library beside it")\n')
    ran = python(
        editable, "from finetune.experiments import sweep; sweep.run_experiments({sweep.Trial('lora', 0.002, 1)}, 1)"
    )
    assert "the library beside it" in ran
    found = python(
        editable,
        "import json; from finetune.experiments import sweep; print(json.dumps(sweep.as_data(sweep.read_experiments())))",
    )
    (trial,) = json.loads(found.splitlines()[-1])["trials"]
    assert (trial["method"], trial["learning_rate"], trial["epochs"]) == ("lora", 0.002, 1)
    assert 0 < trial["validation_loss"] < 7


def python(clone, code: str) -> str:
    done = command("python", "-c", code, cwd=clone, PYTHONPATH=str(clone))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_params_are_the_best_of_the_committed_sweep():
    losses = sweep.from_data(json.loads((ROOT / "benchmarks/results/sweep.json").read_text()))
    methods = yaml_file.read(ROOT / "params.yaml")["methods"]
    for method, settings in methods.items():
        best = sweep.best(losses, method)
        assert (float(settings["learning_rate"]), settings["epochs"]) == (best.learning_rate, best.epochs)
