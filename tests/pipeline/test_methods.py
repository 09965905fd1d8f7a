"""A new method is an entry in finetune/methods.py and its row in params.yaml, and nothing else."""

import json

from helpers import dvc

from finetune import yaml_file

VARIANT = '        Method("rsLoRA", "#56B4E9", "rslora", 1e-3, adapters=True, lora_options={"use_rslora": True}),\n'


def test_a_variant_trains_and_is_scored_and_drawn(editable):
    module = editable / "finetune/methods.py"
    entry = next(line for line in module.read_text().splitlines(keepends=True) if '"dora"' in line)
    module.write_text(module.read_text().replace(entry, entry + VARIANT))
    params = yaml_file.read(editable / "params.yaml")
    params["methods"]["rslora"] = params["methods"]["lora"]
    (editable / "params.yaml").write_text(yaml_file.text(params | {"method": "rslora"}))

    done = dvc(editable, "repro")
    assert done.returncode == 0, done.stderr
    assert json.loads((editable / "models/tuned/adapter_config.json").read_text())["use_rslora"]
    assert json.loads((editable / "metrics/eval.json").read_text())["test_loss"] > 0
    assert "fine-tuned by rsLoRA" in (editable / "models/tuned/README.md").read_text()
