"""Tiny checkpoints to export."""

import json

import pytest
from helpers import FAST, base_for, stage, write_params


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, tiny_models, words):
    """A workspace for each (method, family, template), trained at the first use; its folder."""
    made = {}

    def get(method="qlora", family="llama", template="alpaca"):
        key = method, family, template
        if key not in made:
            folder = tmp_path_factory.mktemp("-".join(key))
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                write_params(folder, methods=FAST, data={"size": 40, "test": 0.5, "template": template})
                (folder / "data/raw").mkdir(parents=True)
                (folder / "data/raw/words.json").write_text(json.dumps(words))
                stage("prepare", "--model_name", tiny_models[family])
                stage("train", "--model_name", base_for(tiny_models, family, method), "--method", method)
            made[key] = folder
        return made[key]

    return get
