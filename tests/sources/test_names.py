"""Names of sources as people give them: each is fetched, or refused in one sentence."""

import hashlib
import json
import os
import sys

import hub
import pytest
from helpers import ROOT, command, files_in, refusal, stage, write_params

from finetune.errors import UserError
from finetune.sources.catalogue import CATALOGUE, HubRepo, LocalPath, resolve


@pytest.mark.parametrize(
    ("name", "repo", "revision"),
    [
        ("owner/name", "owner/name", "main"),
        ("owner/name/", "owner/name", "main"),
        ("owner/name@v1.0", "owner/name", "v1.0"),
        ("owner/name@refs/pr/1", "owner/name", "refs/pr/1"),
        ("gpt2", "gpt2", "main"),
        ("https://huggingface.co/owner/name", "owner/name", "main"),
        ("https://huggingface.co/owner/name/", "owner/name", "main"),
        ("https://hf.co/owner/na.me-1", "owner/na.me-1", "main"),
        ("https://huggingface.co/datasets/owner/name", "owner/name", "main"),
        ("https://huggingface.co/owner/name?library=transformers", "owner/name", "main"),
    ],
)
@pytest.mark.parametrize("kind", ["model", "data"])
def test_ways_to_name_a_repository(workspace, kind, name, repo, revision):
    assert resolve(kind, name) == HubRepo(repo, revision)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("https://example.org/words.json", "is an address; download it and give the path"),
        ("http://example.org/model.zip", "is an address; download it and give the path"),
        ("s3://bucket/words.json", "is an address; download it and give the path"),
        ("file:///tmp/words.json", "is an address; download it and give the path"),
        ("https://huggingface.co/owner/name/resolve/main/a.json", "is an address; download it"),
        (
            "https://me:pa55w0rd@huggingface.co/owner/name",
            "https://…@huggingface.co/owner/name holds a password or token",
        ),
        ("https://hf_abcdefghijklmnopqrst@huggingface.co/owner/name", "holds a password or token"),
        ("https://example.org/a.json?token=pa55w0rd", "holds a password or token"),
        ("owner/name@", "is no file or folder here"),
        ("@main", "is no file or folder here"),
        ("owner/name/more", "is no file or folder here"),
        ("owner//name", "is no file or folder here"),
        ("ünïcode/name", "is no file or folder here"),
        ("C:\\models\\mine", "is no file or folder here"),
    ],
)
@pytest.mark.parametrize("kind", ["model", "data"])
def test_names_that_are_refused_before_any_work(workspace, kind, name, said):
    write_params(workspace, **{kind if kind == "model" else "data": {"source": name}})
    message = refusal("fetch", kind)
    assert said in message and "pa55w0rd" not in message and "hf_abc" not in message
    assert not (workspace / "models").exists()


@pytest.mark.parametrize(("kind", "name"), [("data", "Alpaca"), ("data", "ALPACA-demo"), ("model", "SmolLM2-135M")])
def test_a_catalogue_name_in_other_case(kind, name):
    with pytest.raises(
        UserError, match=rf"{kind}\.source: '{name}' is not in the catalogue; did you mean {name.lower()}\?"
    ):
        resolve(kind, name)
    assert name.lower() in CATALOGUE[kind]


def test_a_folder_that_is_called_like_a_repository_wins(workspace, words):
    (workspace / "owner/name").mkdir(parents=True)
    assert isinstance(resolve("data", "owner/name"), LocalPath)
    assert isinstance(resolve("data", "owner/name/"), LocalPath)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.TGZ"])
@pytest.mark.parametrize("kind", ["model", "data"])
def test_an_archive_is_to_be_unpacked(workspace, kind, name):
    (workspace / name).write_bytes(b"PK")
    flag = "--model_name" if kind == "model" else "--dataset"
    assert f"{name} is an archive; unpack it, and give the folder" in refusal("fetch", kind, flag, f"./{name}")


@pytest.mark.parametrize("kind", ["model", "data"])
def test_a_link_whose_file_is_gone(workspace, tiny_models, kind):
    folder = workspace / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "train.json").symlink_to("/nowhere/at/all")
    flag = "--model_name" if kind == "model" else "--dataset"
    assert "train.json is a link to a file that is gone" in refusal("fetch", kind, flag, "mine")


def test_a_snapshot_of_the_hubs_cache_is_fetched_whatever_its_links(workspace, tiny_models):
    place = workspace / "models--me--llama"
    snapshot = place / "snapshots" / hub.COMMIT
    snapshot.mkdir(parents=True)
    (place / "blobs").mkdir()
    for path in tiny_models["llama"].iterdir():
        blob = place / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    stage("fetch", "model", "--model_name", snapshot)
    got = files_in(workspace / "models/base")
    assert {name: got[name] for name in files_in(tiny_models["llama"])} == files_in(tiny_models["llama"])
    assert not any(path.is_symlink() for path in (workspace / "models/base").iterdir())


def fetch(workspace, *arguments, **environment) -> str:
    """Run stages/fetch.py, which must refuse, in a process of its own; its sentence."""
    done = command(
        sys.executable, *arguments, cwd=workspace, PYTHONPATH=str(ROOT), HF_HOME=str(workspace / "hf"), **environment
    )
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


FETCH = ROOT / "stages/fetch.py"


def _cached(workspace, repository: str, files: dict) -> None:
    """A repository as huggingface_hub keeps it in its cache."""
    place = workspace / "hf/hub" / repository
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(hub.COMMIT)
    for name, content in files.items():
        (place / "snapshots" / hub.COMMIT / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "snapshots" / hub.COMMIT / name).write_bytes(content)


def test_what_is_in_the_cache_serves_without_the_hub(workspace, tiny_models):
    _cached(workspace, "models--me--llama", files_in(tiny_models["llama"]))
    _cached(workspace, "datasets--me--words", {"data/train.jsonl": b"{}", "data/test.jsonl": b"", "README.md": b"a"})
    for kind, flag, name in (("model", "--model_name", "me/llama"), ("data", "--dataset", "me/words")):
        done = command(
            sys.executable,
            *(FETCH, kind, flag, name),
            cwd=workspace,
            PYTHONPATH=str(ROOT),
            HF_HOME=str(workspace / "hf"),
            HF_HUB_OFFLINE="1",
        )
        assert done.returncode == 0, done.stderr
    got = files_in(workspace / "models/base")
    assert {name: got[name] for name in files_in(tiny_models["llama"])} == files_in(tiny_models["llama"])
    assert set(files_in(workspace / "data/raw")) == {"data/train.jsonl", "facts.yaml"}
    for folder in ("models/base", "data/raw"):
        assert hub.COMMIT in (workspace / folder / "facts.yaml").read_text()


def test_a_cache_without_weights_is_named(workspace):
    _cached(workspace, "models--me--llama", {"config.json": b"{}"})
    message = fetch(workspace, FETCH, "model", "--model_name", "me/llama", HF_HUB_OFFLINE="1")
    assert "without its weights" in message and not (workspace / "models/base").exists()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set; unset it"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "check the network and the proxy"),
        ({"HF_ENDPOINT": "nonsense"}, "check the network and the proxy"),
        (
            {"HF_ENDPOINT": "http://127.0.0.1:9", "HTTP_PROXY": "nonsense://x", "NO_PROXY": "", "no_proxy": ""},
            "the proxy",
        ),
        (
            {"HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": "http://u:pa55w0rd@127.0.0.1:9", "NO_PROXY": ""},
            "the proxy",
        ),
    ],
)
def test_a_hub_that_cannot_be_reached(workspace, environment, said):
    message = fetch(workspace, FETCH, "model", "--model_name", "owner/name", **environment)
    assert said in message and "pa55w0rd" not in message
    assert not (workspace / "models/base").exists()


@pytest.mark.parametrize("name", ["a..b/c", "a--b/c", "-a/b", "a/b.git", "x" * 120])
def test_what_cannot_be_an_id(workspace, name):
    message = fetch(workspace, FETCH, "model", f"--model_name={name}", HF_ENDPOINT="http://127.0.0.1:9")
    assert "can't be an id on the Hugging Face Hub" in message


def test_repositories_without_what_is_needed(workspace, tiny_models, tmp_path):
    empty, card = tmp_path / "empty", tmp_path / "card"
    empty.mkdir()
    card.mkdir()
    (card / "README.md").write_text("a card")
    (tmp_path / "gated").mkdir()
    (tmp_path / "gated/train.json").write_text("[]")
    shelf = {"models/me/empty": empty, "datasets/me/card": card, "datasets/me/shy": tmp_path / "gated"}
    with hub.serve(shelf) as served:
        assert "holds no config.json" in fetch(
            workspace, FETCH, "model", "--model_name", "me/empty", HF_ENDPOINT=served.endpoint
        )
        assert "holds no .json" in fetch(workspace, FETCH, "data", "--dataset", "me/card", HF_ENDPOINT=served.endpoint)
        assert "asks you to accept its terms" in fetch(
            workspace, FETCH, "data", "--dataset", "me/shy", HF_ENDPOINT=served.endpoint
        )


def test_a_python_without_pip(workspace):
    (workspace / "sitecustomize.py").write_text("import sys\nsys.modules['pip'] = None\n")
    blocked = workspace / "blocked/pip"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("")
    (blocked / "__main__.py").write_text("import sys; sys.exit(sys.executable + ': No module named pip')")
    done = command(
        sys.executable,
        FETCH,
        "data",
        cwd=workspace,
        PYTHONPATH=os.pathsep.join([str(ROOT), str(workspace / "blocked")]),
    )
    assert done.returncode == 1 and "is fetched with pip, which" in done.stderr and "ensurepip" in done.stderr


def test_an_index_with_a_password_stays_unsaid(workspace):
    index = "http://me:pa55w0rd@127.0.0.1:9/simple"
    message = fetch(
        workspace, FETCH, "data", PIP_INDEX_URL=index, PIP_RETRIES="0", PIP_NO_CACHE_DIR="1", PIP_CONFIG_FILE=os.devnull
    )
    assert "could not be fetched from" in message and "pa55w0rd" not in message


def test_a_repository_with_shards_comes_whole(workspace, tmp_path):
    from finetune.sources.contents import useful_files

    shards = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
    assert set(useful_files("model", shards)) == set(shards) - {"pytorch_model.bin"}
    assert json.dumps(useful_files("data", ["README.md"])) == "[]"
