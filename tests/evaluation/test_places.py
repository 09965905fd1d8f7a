"""Evaluation needs nothing of the machine but the folders that it writes to: hours of answers hang on it."""

import json
import sys

import pytest
from helpers import ROOT, command, refusal, stage

from finetune.evaluation import scoring
from finetune.generation.greedy import GreedyAnswers

NOWHERE = "/dev/null/nowhere"
"""A path at which not even root can make a folder."""

HOMES = [
    "HOME",
    "HF_HOME",
    "HF_METRICS_CACHE",
    "HF_EVALUATE_CACHE",
    "HF_MODULES_CACHE",
    "HF_DATASETS_CACHE",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "TMPDIR",
    "MPLCONFIGDIR",
    "NLTK_DATA",
    "TORCH_HOME",
]


@pytest.fixture
def prepared(workspace, tiny_models):
    stage("prepare", "--model_name", tiny_models["llama"])
    return workspace


def test_no_home_no_cache_and_no_temporary_folder_are_needed(prepared, tiny_models):
    done = run_eval(prepared, tiny_models["llama"], **dict.fromkeys(HOMES, NOWHERE))
    assert done.returncode == 0, done.stderr
    assert json.loads((prepared / "metrics/base.json").read_text())["test_loss"] > 0


def run_eval(folder, model, **environment):
    return command(sys.executable, ROOT / "stages/eval.py", "--base", "--model_name", model, cwd=folder, **environment)


def test_scoring_leaves_no_file_in_the_home(prepared, tiny_models, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    clean = {name: str(home / name) for name in HOMES if name not in ("HOME", "TMPDIR")}
    assert run_eval(prepared, tiny_models["llama"], HOME=str(home), **clean).returncode == 0
    assert not [path for path in home.rglob("*") if path.suffix in (".arrow", ".lock")]


def test_scoring_is_tried_before_the_model_answers(prepared, tiny_models, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("no scores today")

    monkeypatch.setattr(scoring.Bleu, "_compute", broken)
    monkeypatch.setattr(GreedyAnswers, "to", lambda *args, **kwargs: pytest.fail("answered first"))
    assert "no scores today" in refusal("eval", "--base", "--model_name", tiny_models["llama"])


def test_answers_outlive_scores_that_fail(prepared, tiny_models, monkeypatch):
    compute, calls = scoring.Bleu._compute, []

    def broken_at_last(self, predictions, references):
        calls.append(predictions)
        if len(calls) > 1:
            raise MemoryError
        return compute(self, predictions, references)

    monkeypatch.setattr(scoring.Bleu, "_compute", broken_at_last)
    assert "MemoryError" in refusal("eval", "--base", "--model_name", tiny_models["llama"])
    rows = (prepared / "data/predictions/base.jsonl").read_text().splitlines()
    assert [json.loads(row)["prediction"] for row in rows] == calls[1]
    assert not (prepared / "metrics/base.json").exists()


def test_two_evaluations_at_once_do_not_meet():
    one, other = scoring.Bleu(), scoring.Bleu()
    one.add_batch(predictions=["the cat sat down"], references=["the cat sat down"])
    other.add_batch(predictions=["a dog ran far"], references=["the cat sat down"])
    assert one.compute()["bleu"] == pytest.approx(100) and other.compute()["bleu"] == 0
