"""Symbolic links in what is given bring nothing in from elsewhere, where a copy would be pushed to a remote; and names
write nothing elsewhere."""

import hashlib
import json
import sys
from pathlib import Path

import hub
import pytest
from helpers import ROOT, command, drafts_in, files_in, refusal, stage, write_params


@pytest.fixture
def secret(tmp_path_factory) -> Path:
    """A file of the user's that nobody means to publish, though its name would do for data or a tokenizer's part."""
    path = tmp_path_factory.mktemp("home") / "secret.json"
    path.write_text('[{"instruction": "key", "output": "private"}]')
    return path


@pytest.mark.parametrize(("kind", "flag"), [("data", "--dataset"), ("model", "--model_name")])
def test_a_link_that_leads_out_of_the_folder_is_refused(workspace, tiny_models, words, secret, kind, flag):
    given = workspace / "given"
    given.mkdir()
    for path in tiny_models["llama"].iterdir():
        (given / path.name).write_bytes(path.read_bytes())
    (given / "more.json").symlink_to(secret)
    before = files_in(workspace / "data")
    sentence = f"more.json: is a link that leads out of given, to {secret}; put the file itself there"
    assert sentence in refusal("fetch", kind, flag, "given")
    if kind == "model":  # in place as well: the quantize stage copies what lies beside the weights
        stage("prepare", "--model_name", "given")
        assert sentence in refusal("quantize", "--model_name", "given")
    else:
        assert files_in(workspace / "data") == before
    assert not drafts_in(workspace)


def test_a_folder_behind_a_link_is_not_entered(workspace, words, secret):
    given = workspace / "given"
    given.mkdir()
    (given / "more").symlink_to(secret.parent, target_is_directory=True)
    assert "holds no .json" in refusal("fetch", "data", "--dataset", "given")


def test_links_within_the_folder_and_into_dvcs_cache_are_followed(workspace, secret):
    content = (workspace / "data/raw/words.json").read_bytes()
    digest = hashlib.md5(content).hexdigest()
    cached = workspace / "cache/files/md5" / digest[:2] / digest[2:]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(content)
    given = workspace / "given"
    (given / "parts").mkdir(parents=True)
    (given / "parts/a.json").symlink_to(cached)
    (given / "b.json").symlink_to("parts/a.json")
    (workspace / "link").symlink_to(given, target_is_directory=True)  # the user's own name for the folder
    stage("fetch", "data", "--dataset", "link")
    got = files_in(workspace / "data/raw")
    assert got["parts/a.json"] == got["b.json"] == content
    assert not any(path.is_symlink() for path in (workspace / "data/raw").rglob("*"))


@pytest.mark.parametrize("name", ["..", ".", "tuned", "base", "base-4bit"])
def test_a_models_name_never_means_a_folder_of_the_pipeline(workspace, name):
    (workspace / "models/tuned").mkdir(parents=True)
    (workspace / "models/tuned/facts.yaml").write_text("mine: true\n")
    before = files_in(workspace)
    assert f"--model_name: {name} would be kept in models" in refusal("train", "--model_name", name, "--method", "lora")
    assert files_in(workspace) == before and not drafts_in(workspace.parent)


def test_names_of_sources_become_parts_of_one_folders_name(workspace, words):
    outside = workspace.parent / "up"
    outside.mkdir(exist_ok=True)
    (outside / "a b.json").write_text(json.dumps(words))
    write_params(workspace, data={"source": ["../up/a b.json", "../up", "../up/../up/."]})
    stage("fetch", "data")
    assert sorted(path.name for path in (workspace / "data/raw").iterdir()) == [
        "1-a--b.json",
        "2-up",
        "3-up",
        "facts.yaml",
    ]


@pytest.mark.parametrize("name", ["data/" + "../" * 30 + "{}", "{}"])
def test_a_hub_that_names_a_file_elsewhere_reads_and_removes_nothing(workspace, secret, name):
    """A file whose hash is wrong is removed from the cache: from nowhere else."""
    (workspace / "shelf").mkdir()
    (workspace / "shelf/train.json").write_text("[]")
    before = secret.read_text()
    with hub.serve({"datasets/me/words": workspace / "shelf"}) as served:
        elsewhere = name.format(secret if name == "{}" else secret.relative_to("/"))
        served.also_listed = [{"rfilename": elsewhere.replace("secret", "train"), "blobId": "0" * 40}]
        secret.rename(secret.with_name("train.json"))
        away = {"HF_ENDPOINT": served.endpoint, "HF_HOME": str(workspace / "hf")}
        done = command(sys.executable, ROOT / "stages/fetch.py", "data", "--dataset", "me/words", cwd=workspace, **away)
    assert done.returncode == 1 and "which leads out of its folder; choose another" in done.stderr, done.stderr
    assert secret.with_name("train.json").read_text() == before


def test_a_hub_whose_hash_is_a_path_writes_nothing_elsewhere(workspace):
    (workspace / "shelf").mkdir()
    (workspace / "shelf/config.json").write_text("{}")
    path = workspace / "taken.safetensors"
    with hub.serve({"models/me/model": workspace / "shelf"}) as served:
        large = {"sha256": "../" * 30 + str(path.relative_to("/")), "size": 2, "pointerSize": 1}
        served.also_listed = [{"rfilename": "model.safetensors", "blobId": "0" * 40, "lfs": large}]
        away = {"HF_ENDPOINT": served.endpoint, "HF_HOME": str(workspace / "hf")}
        done = command(
            sys.executable, ROOT / "stages/fetch.py", "model", "--model_name", "me/model", cwd=workspace, **away
        )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert not list(workspace.glob("taken*")) and not (workspace / "models/base").exists()
