"""Evaluation that is killed at any moment resumes to the same bytes, and makes no answer twice."""

import errno
import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import families
import pytest
from helpers import ROOT, Killed, drafts_in, files_in, interrupt, refusal, signalled, stage, write_params

from finetune import dvc_files, files
from finetune.evaluation import portions, scoring
from finetune.generation.engine import Engine
from finetune.generation.greedy import GreedyAnswers

KEPT = Path("models/.snapshots")
PROMPTS = 16
SETTINGS = {"data": {"test": PROMPTS / 40}, "eval": {"decode_batch_size": 2, "max_new_tokens": 40}}
"""Four portions of answers."""


@pytest.fixture(scope="module")
def lively(tiny_models, tmp_path_factory) -> Path:
    """A llama whose greedy answers hold many different tokens."""
    return families.with_tokenizer("llama", tmp_path_factory.mktemp("lively"), tiny_models["llama"])


@pytest.fixture
def base(workspace, lively) -> list[str]:
    """What eval of a base model is given, in a workspace that is prepared for it."""
    write_params(workspace, **SETTINGS)
    stage("prepare", "--model_name", lively)
    return ["--base", "--model_name", str(lively)]


def outcome() -> dict[str, bytes]:
    """What eval has written; no half-written file is among it."""
    assert not drafts_in(Path())
    return files_in(Path("data/predictions")) | files_in(Path("metrics"))


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """How many prompts each portion was to answer."""
    real, counts = GreedyAnswers.to, []

    def counted(self, prompts, progress):
        counts.append(len(prompts))
        return real(self, prompts, progress)

    monkeypatch.setattr(GreedyAnswers, "to", counted)
    return counts


def interrupted(monkeypatch, arguments: list[str], place: object, name: str, after: int, how: BaseException) -> None:
    """Run eval until the `after`-th call of `place`'s `name`, where `how` is raised."""
    with monkeypatch.context() as patched:
        interrupt(patched, after, place, name, how)
        with pytest.raises((Killed, SystemExit)):
            stage("eval", *arguments)


def taken(asked: list[int], run: Callable[[], None]) -> int:
    """Run; returns how many prompts it answered."""
    asked.clear()
    run()
    return sum(asked)


def test_a_killed_run_ends_with_the_bytes_of_one_that_never_was(base, asked, monkeypatch, capsys):
    monkeypatch.setattr(portions, "SEQUENCES", 5)
    assert taken(asked, lambda: stage("eval", *base)) == PROMPTS
    expected, new_prompts = outcome(), []
    assert json.loads(expected["base.facts.json"])["empty_answers"] == 0
    assert not KEPT.exists()
    for path in ("data/predictions/base.jsonl", "metrics/base.json", "metrics/base.facts.json"):
        Path(path).unlink()
    for place, name, after, how in (
        (portions, "sequence_losses", 3, Killed()),
        (Engine, "step", 60, Killed()),  # in the first portion of answers
        (files, "write_jsonl", 1, Killed()),  # while it is written
        (Engine, "step", 100, Killed()),  # in the second portion that is left
        (files.tempfile, "mkstemp", 1, OSError(errno.ENOSPC, "full")),
        (scoring, "scored_rows", 1, Killed()),
        (files, "write_json", 2, Killed()),  # between the metrics and their facts
    ):
        new_prompts.append(
            taken(asked, lambda: interrupted(monkeypatch, base, place, name, after, how))  # noqa: B023
        )
    assert new_prompts == [0, 4, 4, 8, 4, 12, 0]
    capsys.readouterr()
    assert taken(asked, lambda: stage("eval", *base)) == 0
    printed = capsys.readouterr().out
    assert "16 of 16 losses are done already" in printed and "16 of 16 answers are done already" in printed
    assert outcome() == expected
    assert not KEPT.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_to_a_real_process_loses_no_more_than_a_portion(base, asked, workspace, number):
    """Long answers, so that it is at them when the signal comes."""
    write_params(workspace, **SETTINGS | {"eval": {"decode_batch_size": 2, "max_new_tokens": 120}})
    stage("eval", *base)
    expected = outcome()
    said = signalled([sys.executable, str(ROOT / "stages/eval.py"), *base], number, after="answered 6 of")
    if number != signal.SIGKILL:
        assert re.search(
            r"^error: terminated; (4|8|12) of 16 answers are kept; rerun the same command to resume$", said, re.M
        )
    assert 0 < taken(asked, lambda: stage("eval", *base)) <= PROMPTS - 4
    assert outcome() == expected


def test_a_damaged_portion_is_made_again(base, asked, monkeypatch):
    stage("eval", *base)
    expected = outcome()
    interrupted(monkeypatch, base, scoring, "scored_rows", 1, Killed())
    (run,) = KEPT.glob("baseline-*/")
    answers = sorted(run.glob("answers-*"))
    assert len(answers) == 4
    whole = answers[0].read_bytes()
    for path, left in zip(answers, (b"", whole[:-9], whole[: whole.index(b"\n") + 1], bytes(len(whole))), strict=True):
        path.write_bytes(left)
    assert taken(asked, lambda: stage("eval", *base)) == PROMPTS
    assert outcome() == expected


def test_another_run_never_takes_up_answers(workspace, trained, tiny_models, asked, monkeypatch, words):
    """Of another adapter, of other prompts, or by other settings. Each is killed before its scores."""
    other = shutil.copytree(trained / "models/tuned", workspace / "other")  # with the same facts
    shutil.copy(trained / "other/adapter_model.safetensors", other)
    settings = {"decode_batch_size": 4, "max_new_tokens": 8}
    write_params(workspace, eval=settings)
    first = ["--ckpt", str(trained / "models/tuned"), "--dataset", str(trained / "data/prepared")]

    def answered(arguments: list[str]) -> int:
        return taken(asked, lambda: interrupted(monkeypatch, arguments, scoring, "scored_rows", 1, Killed()))

    assert answered(first) == 4
    assert answered(first) == 0
    assert answered(["--ckpt", str(other), *first[2:]]) == 4
    write_params(workspace, eval=settings | {"max_new_tokens": 9})
    assert answered(first) == 4
    write_params(workspace, eval=settings)
    (workspace / "data/raw/words.json").write_text(json.dumps(words[1:]))
    stage("prepare", "--model_name", tiny_models["llama"])
    assert answered([*first[:2], "--dataset", "data/prepared"]) == 4
    assert answered(first) == 0


def test_what_dvc_has_not_recorded_yet_is_there_still(base, asked, monkeypatch):
    """DVC may be killed after the stage has ended; it then removes the outputs and runs it again."""
    monkeypatch.setenv("DVC_STAGE", "baseline@base")
    stage("eval", *base)
    expected = outcome()
    assert taken(asked, lambda: stage("eval", *base)) == 0
    assert outcome() == expected
    recorded = dvc_files.hash_of(Path("metrics/base.json"))
    Path("dvc.lock").write_text(f"outs: [{{path: metrics/base.json, md5: {recorded}}}]")
    assert taken(asked, lambda: stage("eval", *base)) == PROMPTS


def test_a_prompt_that_does_not_fit_is_refused_before_any_is_answered(base, asked, workspace):
    write_params(workspace, **SETTINGS | {"eval": {"decode_batch_size": 2, "max_new_tokens": 500}})
    assert "more than the model's 512 positions" in refusal("eval", *base)
    assert not asked and not KEPT.exists()
