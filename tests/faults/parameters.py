"""Mistakes in params.yaml and in flags."""

import re
import shlex
from unittest.mock import patch

from helpers import ROOT

from faults import Bench, Fault


def setting(what: str, names: str, **changes: object) -> Fault:
    """A fault of params.yaml that any stage meets first."""

    def cause(bench: Bench) -> str:
        bench.params(**changes)
        return bench.refused("prepare")

    return Fault("parameters", what, names, cause)


FAULTS = [
    setting("`method: qlorra`", "method: … qlora, lora, dora, full … 'qlorra'", method="qlorra"),
    setting("`train.batch_size: 0`", "train.batch_size: … 1 … 0", train={"batch_size": 0}),
    setting(
        "`train.batchsize`, a misspelt key",
        "train.batchsize … unknown … params.yaml … batch_size",
        train={"batchsize": 2},
    ),
]


def without_packages(tokenize: str) -> Fault:
    """A tokenizer of the scores whose packages are missing; the first stage says so, not the last."""

    def cause(bench: Bench) -> str:
        bench.params(eval={"tokenize": tokenize})
        with patch("finetune.params.find_spec", return_value=None):
            return bench.refused("train")

    return Fault(
        "parameters",
        f"`eval.tokenize: {tokenize}` without its packages",
        f"eval.tokenize: {tokenize} … `pip install 'sacrebleu[{tokenize.removesuffix('-mecab')}]'` … auto … char",
        cause,
    )


FAULTS += [
    setting(
        "`eval.tokenize: flores200`, which would download a model",
        "eval.tokenize … auto, 13a, intl, zh, char, ja-mecab, ko-mecab … 'flores200'",
        eval={"tokenize": "flores200"},
    ),
    setting("`eval.tokenize: 13`", "eval.tokenize … text … 13", eval={"tokenize": 13}),
    without_packages("ja-mecab"),
    without_packages("ko-mecab"),
    setting(
        "an empty name in `lora.target_modules`",
        "lora.target_modules … all-linear … list … ['q_proj', '']",
        lora={"target_modules": ["q_proj", ""]},
    ),
    setting("`lora.target_modules: ''`", "lora.target_modules … empty", lora={"target_modules": ""}),
]


def line(key: str, value: str, names: str) -> Fault:
    """A value of the shipped params.yaml as a person writes it there; the key's last name stands once in the file."""

    def cause(bench: Bench) -> str:
        before = (ROOT / "params.yaml").read_text(encoding="utf-8")
        name = key.rsplit(".", 1)[-1]
        bench.write(
            "params.yaml", re.sub(rf"^( *){name}: [^#\n]*", rf"\g<1>{name}: {value} ", before, count=1, flags=re.M)
        )
        return bench.refused("plot")

    return Fault("parameters", f"`{key}: {value}`", names, cause)


def content(what: str, text: str | bytes, names: str) -> Fault:
    """Another params.yaml altogether."""

    def cause(bench: Bench) -> str:
        bench.write("params.yaml", text)
        return bench.refused("plot")

    return Fault("parameters", what, names, cause)


def flags(words: str, names: str) -> Fault:
    """A stage with flags that it refuses."""

    def cause(bench: Bench) -> str:
        bench.write("notes/mine.txt", "mine")
        return bench.refused(*shlex.split(words))

    return Fault("parameters", f"`python stages/{words.replace(' ', '.py ', 1)}`", names, cause)


FAULTS += [
    line("seed", "4294967296", "seed: … 4294967295 … 4294967296"),
    line("seed", "010", "seed: … whole number … '010'"),
    line("seed", "1:30", "seed: … whole number … '1:30'"),
    line("seed", "2026-01-01", "seed: … whole number … '2026-01-01'"),
    line("seed", "yes", "seed: … whole number … 'yes'"),
    line("seed", "1.0", "seed: … whole number … 1.0"),
    line("data.validation", ".nan", "data.validation … 0 … nan"),
    line("data.max_length", "1000000000000", "data.max_length … 10000000 … 1000000000000"),
    line("lora.alpha", ".inf", "lora.alpha … 1000000000 … inf"),
    line("train.batch_size", "10000000000", "train.batch_size: … 1000000000 … 10000000000"),
    line("quantization.double_quant", "1", "quantization.double_quant … true … 1"),
    line("methods.qlora.learning_rate", "fast", "methods.qlora.learning_rate … number … 'fast'"),
    line("methods.qlora.epochs", "1000000000", "methods.qlora.epochs: … 10000 … 1e+09"),
    line("model.source", "''", "model.source: … empty"),
    content(
        "a key that stands twice",
        "method: qlora\nmethod: full\n",
        "params.yaml: … YAML … 'method' … twice … line 2 … column 1",
    ),
    content(
        "a tab where spaces belong", "method: qlora\n\tseed: 1\n", "params.yaml: … YAML … '\\t' … line 2 … column 1"
    ),
    content("an empty params.yaml", "", "params.yaml: … keys … None"),
    content("a list", "- method\n- seed\n", "params.yaml: … keys … ['method', 'seed']"),
    content("a group without its keys", "method: qlora\ndata:\n", "seed: … missing … params.yaml"),
    content("params.yaml in Latin-1", b"method: caf\xe9\n", "params.yaml: … line 1 … UTF-8"),
    content(
        "a number of 5,000 digits", f"seed: {'1' * 5000}\n", "params.yaml: … YAML … 5000 … number … line 1 … column 7"
    ),
    content(
        "a tag of Python's",
        "method: !!python/object:os.system x\n",
        "params.yaml: … YAML … tag:yaml.org,2002:python/object:os.system … line 1 … column 9",
    ),
    flags("fetch --size 0", "data.size: … 3 … 0"),
    flags("fetch --size many", "--size … 'many' … `fetch.py --help`"),
    flags("train --sise 3", "--sise … 3 … `train.py --help`"),
    flags("prepare --out_dir ''", "--out_dir … empty … `prepare.py --help`"),
    flags("prepare --out_dir params.yaml", "params.yaml: … file … folder … --out_dir"),
    flags("prepare --out_dir .", ".: … whole repository … lost … --out_dir … models/mine"),
    flags("train --out_dir models/base", "models/base: … lost … --out_dir … models/mine"),
    flags("prepare --out_dir notes", "notes: … lost … empty folder … --out_dir"),
    flags("infer --prompt x --max_new_tokens -1", "eval.max_new_tokens: … 1 … -1"),
]


def source(what: str, name: str, names: str) -> Fault:
    """A `data.source` that can't be one."""

    def cause(bench: Bench) -> str:
        bench.write("words.zip", b"PK")
        bench.params(data={"source": name})
        return bench.refused("fetch", "data")

    return Fault("parameters", what, names, cause)


FAULTS += [
    source(
        "a source that is a web address",
        "https://example.org/words.json",
        "data.source: … https://example.org/words.json … download … hub",
    ),
    source(
        "a source with a token in its address",
        "https://hf_abcdefghijklmnop@huggingface.co/datasets/me/words",
        "data.source: … https:// … @huggingface.co/datasets/me/words … token … `hf auth login`",
    ),
    source("a name of the catalogue in other case", "Alpaca", "data.source: … 'Alpaca' … alpaca"),
    source("a source that is an archive", "words.zip", "data.source … words.zip … unpack"),
    source("a source that is nowhere", "./words.jsonl", "data.source … './words.jsonl' … hub … alpaca-demo, alpaca"),
]

FAULTS += [
    setting("`quantization.block_size: 48`", "quantization.block_size … 32 … 64 … 48", quantization={"block_size": 48}),
    setting(
        "`quantization.calibration: awq`",
        "quantization.calibration … gptq, nearest … 'awq'",
        quantization={"calibration": "awq"},
    ),
    setting("`quantization.examples: 0`", "quantization.examples: … 1 … 0", quantization={"examples": 0}),
    setting(
        "`quantization.keep_dequantized`, which is gone",
        "quantization.keep_dequantized … unknown … params.yaml … type, block_size, double_quant, calibration, examples",
        quantization={"keep_dequantized": True},
    ),
    setting("`lora.start: pissa`", "lora.start … rounding_error, zero … 'pissa'", lora={"start": "pissa"}),
]
