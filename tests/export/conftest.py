"""Tiny checkpoints to export."""

import json
import shutil

import hub
import pytest
from families import with_tokenizer
from helpers import FAST, stage, write_params

from finetune import yaml_file
from finetune.device import compute_dtype


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, tiny_models, words):
    """What trains a tiny model at its first use in a compute dtype, and returns the folder of its pipeline: the base
    comes from the hub, 'me/tiny', and data from an English package."""
    made = {}

    def get(method="qlora", family="llama", template="alpaca"):
        key = method, family, template, str(compute_dtype())
        if key not in made:
            folder = made[key] = tmp_path_factory.mktemp("-".join(key[:3]))
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                write_params(folder, methods=FAST, data={"size": 40, "test": 0.5, "template": template})
                base = folder / "models/base"
                if family in tiny_models:
                    shutil.copytree(tiny_models[family], base)
                else:
                    with_tokenizer(family, base, like=tiny_models["llama"])
                yaml_file.write(
                    base / "facts.yaml",
                    {"source": "me/tiny", "licence": "Apache-2.0", "hub": "me/tiny", "commit": hub.COMMIT},
                )
                (folder / "data/raw").mkdir(parents=True)
                (folder / "data/raw/words.json").write_text(json.dumps(words))
                yaml_file.write(
                    folder / "data/raw/facts.yaml",
                    {"source": "alpaca", "licence": "CC BY-NC 4.0", "hub": "tatsu-lab/alpaca", "commit": hub.COMMIT},
                )
                stage("prepare")
                if method == "qlora":
                    stage("quantize")
                stage("train", "--method", method)
        return made[key]

    return get


@pytest.fixture
def at(checkpoints, monkeypatch):
    """What goes into the pipeline of a checkpoint and returns its folder; what was exported there is gone."""

    def go(**which):
        folder = checkpoints(**which)
        monkeypatch.chdir(folder)
        shutil.rmtree("models/exported", ignore_errors=True)
        return folder

    return go
