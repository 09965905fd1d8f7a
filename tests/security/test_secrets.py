"""Tokens and passwords never reach a sentence, a log, a metric, a report, a card or dvc.lock."""

import json

import offline
import pytest
from helpers import refusal, write_params

from finetune import cli
from finetune.errors import UserError

PASSWORD = "pa55w0rd-pa55w0rd"
SOURCES = [
    f"https://me:{PASSWORD}@huggingface.co/owner/name",
    f"https://me:with@{PASSWORD}@example.org/a.json",
    f"https://huggingface.co/owner/name?token={PASSWORD}",
    f"https://h.blob.example/a.json?sv=2026&sig={PASSWORD}",
    f"https://bucket.example/a.json?X-Amz-Signature={PASSWORD}",
    f"s3://key:{PASSWORD}@bucket/a.json",
    f"owner/name@hf_{PASSWORD}",
]


def test_files_and_logs_of_a_run_hold_no_secret_of_the_environment(clone):
    """`dvc repro` of the fixture ran with them set."""
    texts = [path for path in (*clone.parent.glob("*.log"), *clone.rglob("*")) if path.is_file()]
    assert clone / "dvc.lock" in texts and clone / "metrics/train.json" in texts
    held = [path for path in texts if any(secret.encode() in path.read_bytes() for secret in offline.SECRETS.values())]
    assert not [path for path in held if "tests" not in path.parts]


@pytest.mark.parametrize("wrapped", [str, lambda name: [name, "words.json"], lambda name: {name: 1.0}])
@pytest.mark.parametrize("source", SOURCES[:-1])
def test_a_source_with_a_password_is_refused_and_not_shown(workspace, capfd, source, wrapped):
    write_params(workspace, data={"source": wrapped(source)})
    (workspace / "words.json").write_text(json.dumps([{"instruction": "a", "output": "b"}]))
    sentence = refusal("fetch", "data")
    assert "holds a password or token, which dvc.lock would keep" in sentence
    assert PASSWORD not in sentence + "".join(capfd.readouterr())


@pytest.mark.parametrize("source", SOURCES)
def test_no_sentence_shows_a_secret_whoever_says_it(source, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", f"hf_{PASSWORD}")
    ours = "the key 'instruction' stands twice, and the tokenizer has no end token"

    def main() -> None:
        raise UserError(f"couldn't be pushed to the DVC remote ({source}); {ours}")

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert PASSWORD not in str(ended.value) and ours in str(ended.value)
