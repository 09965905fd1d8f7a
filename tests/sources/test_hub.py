"""The Hugging Face Hub, as stages/fetch.py finds it: one on loopback, with its refusals and a line that fails."""

import json
import random
import re
import shutil
import sys

import hub
import hub_files
import pytest
from helpers import ROOT, command, drafts_in, files_in, refusal, stage, write_params

from finetune import yaml_file
from finetune.models.base import load_tokenizer

MODEL, PINNED = hub_files.repository("distilgpt2")
DATA, PINNED_DATA = hub_files.repository("alpaca")
WEIGHTS = "model.safetensors"


@pytest.fixture
def served(tiny_models, words, tmp_path):
    """A hub with a tiny DistilGPT-2, whose main has moved on, and with Alpaca's layout."""
    newer = shutil.copytree(tiny_models["llama"], tmp_path / "newer")
    alpaca = tmp_path / "alpaca"
    (alpaca / "data").mkdir(parents=True)
    (alpaca / "data/train-00000-of-00001.json").write_text(json.dumps(words))
    (alpaca / "data/test-00000-of-00001.json").write_text("[]")
    (alpaca / "README.md").write_text("a card")
    shelf = {MODEL: {PINNED: tiny_models["gpt2"], hub.COMMIT: newer}, DATA: {PINNED_DATA: alpaca}}
    (tmp_path / "gated").mkdir()
    shutil.copytree(tiny_models["llama"], tmp_path / "gated", dirs_exist_ok=True)
    with hub.serve(shelf | {"models/me/shy": tmp_path / "gated", "models/me/llama": newer}) as running:
        yield running


@pytest.fixture
def fetch(workspace, served):
    """What runs stages/fetch.py in a process of its own, away from any other cache."""

    def run(*arguments, **environment):
        away = {"HF_ENDPOINT": served.endpoint, "HF_HOME": str(workspace / "hf"), "HF_HUB_OFFLINE": ""}
        return command(sys.executable, ROOT / "stages/fetch.py", *arguments, cwd=workspace, **away | environment)

    return run


@pytest.fixture
def refused(fetch, workspace):
    """What runs it and returns the one sentence of its refusal."""

    def run(*arguments, **environment) -> str:
        done = fetch(*arguments, **environment)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(sentences) == 1 and not drafts_in(workspace / "models")
        return sentences[0]

    return run


def fetched(done, workspace) -> dict:
    """The note beside the model that was fetched."""
    assert done.returncode == 0, done.stderr
    return yaml_file.read(workspace / "models/base/facts.yaml")


def asked_for(served, name: str) -> list[str]:
    """The requests for the content of a large file."""
    return [each for each in served.requests if each.startswith("GET") and "/large/" in each and name in each]


def same_files(workspace, source) -> bool:
    got = files_in(workspace / "models/base")
    return {name: got[name] for name in files_in(source)} == files_in(source)


def test_the_pinned_commit_comes_though_main_has_moved_on(fetch, served, workspace, tiny_models):
    done = fetch("--model_name", "distilgpt2", "--dataset", "alpaca")
    assert fetched(done, workspace) == {
        "source": "distilgpt2",
        "licence": "Apache-2.0",
        "hub": "distilbert/distilgpt2",
        "commit": PINNED,
    }
    assert same_files(workspace, tiny_models["gpt2"])
    assert not any("main" in each or hub.COMMIT in each for each in served.requests)
    assert list(files_in(workspace / "data/raw")) == ["data/train-00000-of-00001.json", "facts.yaml"]
    stage("prepare", "--model_name", "distilgpt2")  # found where fetch put it
    assert (workspace / "data/prepared/facts.yaml").exists()

    assert fetched(fetch("model", "--model_name", "distilbert/distilgpt2"), workspace)["commit"] == hub.COMMIT
    assert same_files(workspace, tiny_models["llama"])


def test_refusals_are_told_apart(refused, served):
    assert "accept its terms" in refused("model", "--model_name", "me/shy")
    assert "has no model me/unknown" in refused("model", "--model_name", "me/unknown")
    assert "revision no-such-revision" in refused("model", "--model_name", "me/llama@no-such-revision")
    served.refusals = [hub.Refusal("/large/", 403, headers={"X-Error-Code": "GatedRepo"})]
    assert "accept its terms" in refused("model", "--model_name", "me/llama")
    served.refusals = [
        hub.Refusal("/api/", 401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
    ]
    assert "(401, your token is refused); run `hf auth login`" in refused("model", "--model_name", "me/llama")


@pytest.fixture
def big(served, tmp_path):
    """A model on the hub of which pieces come: huggingface_hub writes 10 MiB at a time."""
    folder = tmp_path / "big"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / WEIGHTS).write_bytes(random.Random(0).randbytes(25 * 2**20))
    served.repositories["models/me/big"] = {hub.COMMIT: folder}
    return folder


def test_a_download_that_was_cut_goes_on_in_the_next_run(fetch, refused, served, workspace, big):
    served.cuts = [(WEIGHTS, 15 * 2**20)]
    served.after_cut = [hub.Refusal("/large/", 503)]  # when huggingface_hub asks for the rest
    message = refused("model", "--model_name", "me/big")
    assert "(503, a fault of its own); run the command again later; what has come is kept" in message
    assert not (workspace / "models/base").exists()

    served.refusals, served.requests = [], []
    done = fetch("model", "--model_name", "me/big")
    assert fetched(done, workspace) and same_files(workspace, big)
    assert [each.rpartition(" ")[2] for each in asked_for(served, WEIGHTS)] == [f"bytes={10 * 2**20}-"]
    assert f"{WEIGHTS}: resumes after 10.5 of 26.2 MB" in done.stdout


def test_a_line_that_fails_for_a_moment_is_no_matter(fetch, served, workspace, big):
    served.cuts = [(WEIGHTS, 15 * 2**20)]
    served.refusals = [hub.Refusal("/api/", 503, times=2), hub.Refusal("/large/", 500, times=1)]
    served.refusals += [hub.Refusal("/tree/", 429, times=1), hub.Refusal("config.json", 502, times=1)]
    assert fetched(fetch("model", "--model_name", "me/big"), workspace) and same_files(workspace, big)
    assert not any(refusal.times for refusal in served.refusals)
    assert any(f"bytes={10 * 2**20}-" in each for each in asked_for(served, WEIGHTS))


def test_a_hub_that_stays_overrun_or_broken(refused, served):
    served.refusals = [hub.Refusal("/api/", 429)]
    message = refused("model", "--model_name", "me/llama")
    assert "(429, too many requests); wait some minutes, or log in with `hf auth login`" in message
    served.refusals = [hub.Refusal("/api/", 500)]
    assert "(500, a fault of its own); run the command again later" in refused("model", "--model_name", "me/llama")
    assert "-S model.source=smollm2-135m" in message


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json"])
def test_other_bytes_than_the_hubs_checksum_says(fetch, refused, served, workspace, tiny_models, name):
    served.spoilt = {name}
    message = refused("model", "--model_name", "distilgpt2")
    assert re.search(
        rf"{name} of distilbert/distilgpt2 has the checksum [0-9a-f]+, and the Hugging Face Hub says", message
    )
    assert not (workspace / "models/base").exists()
    served.spoilt = set()
    assert fetched(fetch("model", "--model_name", "distilgpt2"), workspace) and same_files(
        workspace, tiny_models["gpt2"]
    )


def test_what_was_fetched_once_comes_from_the_cache_when_the_hub_is_gone(fetch, refused, workspace, tiny_models):
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    for name in ("distilgpt2", "me/llama"):
        fetched(fetch("model", "--model_name", name), workspace)
    done = fetch("model", "--model_name", "distilgpt2", **gone)
    assert fetched(done, workspace)["commit"] == PINNED and same_files(workspace, tiny_models["gpt2"])
    assert "distilbert/distilgpt2 comes from the cache, same commit" in done.stdout
    # A branch may have moved on since.
    way_out = f"-S model.source=me/llama@{hub.COMMIT}"
    assert f"or take what the cache holds of it: {way_out}" in refused("model", "--model_name", "me/llama", **gone)
    assert fetched(fetch("model", "--model_name", way_out.partition("=")[2], **gone), workspace)
    # Under HF_HUB_OFFLINE it is taken as it is.
    assert fetched(fetch("model", "--model_name", "me/llama", HF_HUB_OFFLINE="1", **gone), workspace)


def test_what_the_cache_holds_in_part_is_not_taken(fetch, refused, served, workspace):
    served.refusals = [hub.Refusal("tokenizer.json", 403)]
    refused("model", "--model_name", "distilgpt2")
    served.refusals = []
    message = refused("model", "--model_name", "distilgpt2", HF_HUB_OFFLINE="1")
    assert "the cache holds distilbert/distilgpt2 in part only; unset it" in message
    assert "could not be fetched" in refused("model", "--model_name", "distilgpt2", HF_ENDPOINT="http://127.0.0.1:9")


def test_a_disk_that_is_too_small_is_told_before_anything_comes(refused, served):
    served.claimed = {WEIGHTS: 10**15}
    message = refused("model", "--model_name", "distilgpt2")
    assert "are free on its disk, and about 1000000.00 GB are needed" in message
    assert not asked_for(served, WEIGHTS)


def test_distilgpt2s_own_tokenizer_and_its_1024_positions(fetch, served, workspace, tmp_path):
    """Its real files, but for the weights, which nobody needs before training."""
    served.repositories[MODEL][PINNED] = hub_files.make_model(tmp_path / "real", weights=False)
    assert fetch("model", "--model_name", "distilgpt2").returncode == 0
    tokenizer = load_tokenizer(workspace / "models/base")
    assert tokenizer("Hello world")["input_ids"] == [15496, 995] and tokenizer.eos_token_id == 50256
    write_params(workspace, data={"max_length": 1024})
    stage("prepare")
    write_params(workspace, data={"max_length": 1025})
    assert "1024" in refusal("prepare")
