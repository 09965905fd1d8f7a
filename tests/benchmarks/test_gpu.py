"""The GPU kit, tiny, through its command line: every part, and how it goes on; its page says what was measured."""

import json
import sys

import pytest
from helpers import ROOT, command

from finetune import places
from finetune.comparison import generated


def kit(*arguments: object):
    return command(sys.executable, "-m", "benchmarks.gpu", *arguments, cwd=ROOT, OMP_NUM_THREADS="1")


def test_each_part_measures_tiny_and_goes_on_where_it_was(tmp_path):
    pytest.importorskip("datasets")
    done = kit("--tiny", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found = {
        part: json.loads((tmp_path / f"{part}.json").read_text()) for part in ("tests", "cost", "largest", "kernels")
    }
    assert all(one["tiny"] and one["hardware"] and "torch" in one["versions"] for one in found.values())
    tests, cost, largest, kernels = (one["measurements"] for one in found.values())
    assert [one for one in tests.values() if one.get("passed")]
    for name in ("llama/ours qlora", "gpt2/ours full"):
        assert cost[name]["tokens_per_second"] > 0 and cost[name]["epoch_minutes"] > 0
    assert {key: one.get("fits") for key, one in largest.items()} == {
        "small/2": True,
        "many words/2": False,
        "many words/1": False,
    }
    computed = {key: one["error"] for key, one in kernels.items() if "error" in one and "optimizer" not in key}
    assert {key.split("/")[0] for key in computed} == {"loss", "attention", "norm", "gate", "4-bit linear"}
    assert max(error for key, error in computed.items() if key.endswith("fp16")) < 0.002
    assert max(computed.values()) < 0.01
    assert kernels["optimizer/ours/bf16"]["error"] < kernels["optimizer/AdamW, bf16/bf16"]["error"] / 4

    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    elsewhere = found["largest"] | {"hardware": "another"}
    (tmp_path / "largest.json").write_text(json.dumps(elsewhere))
    again = kit("--tiny", "--out", tmp_path, "--part", "cost", "--part", "largest")
    assert (
        "cost: all done" in again.stdout
        and (tmp_path / "cost.json").stat().st_mtime_ns == times[tmp_path / "cost.json"]
    )
    assert again.returncode == 1 and "largest.json: was measured elsewhere (another hardware)" in again.stderr
    assert json.loads((tmp_path / "largest.json").read_text()) == elsewhere


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--tiny"],
            "error: --tiny: measures nothing that belongs in benchmarks/results/gpu; give another folder as --out",
        ),
        (["--minutes", "0"], "error: --minutes: must be a number of minutes above 0, got '0'"),
    ],
)
def test_refuses_in_a_sentence(arguments, sentence):
    done = kit(*arguments)
    assert done.returncode == 1 and done.stderr.startswith(sentence)


def test_the_page_says_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.gpu import tables

    assert generated.read("gpu", ROOT) == tables.markdown(ROOT / places.RESULTS / "gpu"), "run `make benchmark-gpu`"
