"""Mistakes in params.yaml and in flags."""

import re
import shlex
from unittest.mock import patch

from helpers import ROOT

from faults import Bench, Fault


def setting(what: str, sentence: str, **changes: object) -> Fault:
    """A fault of params.yaml that any stage meets first."""

    def cause(bench: Bench) -> str:
        bench.params(**changes)
        return bench.refused("prepare")

    return Fault("parameters", what, sentence, cause)


FAULTS = [
    setting(
        "`method: qlorra`",
        "method: must be one of qlora, lora, dora, full, got 'qlorra'",
        method="qlorra",
    ),
    setting(
        "`train.batch_size: 0`",
        "train.batch_size: must be at least 1, got 0",
        train={"batch_size": 0},
    ),
    setting(
        "`train.batchsize`, a misspelt key",
        "train.batchsize: unknown key in params.yaml; did you mean batch_size?",
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
        f"eval.tokenize: {tokenize} needs packages that aren't installed; run `pip install "
        f"'sacrebleu[{tokenize.removesuffix('-mecab')}]'`, or choose auto or char",
        cause,
    )


FAULTS += [
    setting(
        "`eval.tokenize: flores200`, which would download a model",
        "eval.tokenize: must be one of auto, 13a, intl, zh, char, ja-mecab, ko-mecab, got 'flores200'",
        eval={"tokenize": "flores200"},
    ),
    setting(
        "`eval.tokenize: 13`",
        "eval.tokenize: must be text, got 13",
        eval={"tokenize": 13},
    ),
    without_packages("ja-mecab"),
    without_packages("ko-mecab"),
    setting(
        "an empty name in `lora.target_modules`",
        "lora.target_modules: must be all-linear or a list of module names, got ['q_proj', '']",
        lora={"target_modules": ["q_proj", ""]},
    ),
    setting(
        "`lora.target_modules: ''`",
        "lora.target_modules: must not be empty",
        lora={"target_modules": ""},
    ),
]


def line(key: str, value: str, sentence: str) -> Fault:
    """A value of the shipped params.yaml as a person writes it there; the key's last name stands once in the file."""

    def cause(bench: Bench) -> str:
        before = (ROOT / "params.yaml").read_text(encoding="utf-8")
        name = key.rsplit(".", 1)[-1]
        bench.write(
            "params.yaml", re.sub(rf"^( *){name}: [^#\n]*", rf"\g<1>{name}: {value} ", before, count=1, flags=re.M)
        )
        return bench.refused("plot")

    return Fault("parameters", f"`{key}: {value}`", sentence, cause)


def content(what: str, text: str | bytes, sentence: str) -> Fault:
    """Another params.yaml altogether."""

    def cause(bench: Bench) -> str:
        bench.write("params.yaml", text)
        return bench.refused("plot")

    return Fault("parameters", what, sentence, cause)


def flags(words: str, sentence: str) -> Fault:
    """A stage with flags that it refuses."""

    def cause(bench: Bench) -> str:
        bench.write("notes/mine.txt", "mine")
        return bench.refused(*shlex.split(words))

    return Fault("parameters", f"`python stages/{words.replace(' ', '.py ', 1)}`", sentence, cause)


FAULTS += [
    line("seed", "4294967296", "seed: must be at most 4294967295, got 4294967296"),
    line("seed", "010", "seed: must be a whole number, got '010'"),
    line("seed", "1:30", "seed: must be a whole number, got '1:30'"),
    line("seed", "2026-01-01", "seed: must be a whole number, got '2026-01-01'"),
    line("seed", "yes", "seed: must be a whole number, got 'yes'"),
    line("seed", "1.0", "seed: must be a whole number, got 1.0"),
    line("data.validation", ".nan", "data.validation: must be above 0, got nan"),
    line("data.max_length", "1000000000000", "data.max_length: must be at most 10000000, got 1000000000000"),
    line("lora.alpha", ".inf", "lora.alpha: must be at most 1000000000, got inf"),
    line("train.batch_size", "10000000000", "train.batch_size: must be at most 1000000000, got 10000000000"),
    line("quantization.double_quant", "1", "quantization.double_quant: must be true or false, got 1"),
    line("methods.qlora.learning_rate", "fast", "methods.qlora.learning_rate: must be a number, got 'fast'"),
    line("methods.qlora.epochs", "1000000000", "methods.qlora.epochs: must be at most 10000, got 1e+09"),
    line("model.source", "''", "model.source: must not be empty"),
    content(
        "a key that stands twice",
        "method: qlora\nmethod: full\n",
        "params.yaml: not valid YAML: the key 'method' stands twice, line 2, column 1; mend it there",
    ),
    content(
        "a tab where spaces belong",
        "method: qlora\n\tseed: 1\n",
        "params.yaml: not valid YAML: while scanning for the next token found character '\\t' that cannot start any "
        "token, line 2, column 1; mend it there",
    ),
    content("an empty params.yaml", "", "params.yaml: must be a group of keys, got None"),
    content("a list", "- method\n- seed\n", "params.yaml: must be a group of keys, got ['method', 'seed']"),
    content("a group without its keys", "method: qlora\ndata:\n", "seed: missing from params.yaml"),
    content(
        "params.yaml in Latin-1",
        b"method: caf\xe9\n",
        "params.yaml: line 1 is not UTF-8; save it as UTF-8 text",
    ),
    content(
        "a number of 5,000 digits",
        f"seed: {'1' * 5000}\n",
        "params.yaml: not valid YAML: '…' (5000 characters) is no whole number that can be read, line 1, column 7; "
        "mend it there",
    ),
    content(
        "a tag of Python's",
        "method: !!python/object:os.system x\n",
        "params.yaml: not valid YAML: the tag 'tag:yaml.org,2002:python/object:os.system' is not known here; write the "
        "plain value, line 1, column 9; mend it there",
    ),
    flags("fetch --size 0", "data.size: must be at least 3, got 0"),
    flags("fetch --size many", "--size: invalid int value: 'many'; `fetch.py --help` shows what can be given"),
    flags("train --sise 3", "unrecognized arguments: --sise 3; `train.py --help` shows what can be given"),
    flags(
        "prepare --out_dir ''",
        "--out_dir: is empty; give the name of a folder; `prepare.py --help` shows what can be given",
    ),
    flags("prepare --out_dir params.yaml", "params.yaml: is a file, or lies in one; give a folder as --out_dir"),
    flags(
        "prepare --out_dir .",
        ".: holds this whole repository, which would be lost; give a folder of its own as --out_dir, as in models/mine",
    ),
    flags(
        "train --out_dir models/base",
        "models/base: is part of the pipeline's models/base, or holds it, which would be lost; give a folder of its own "
        "as --out_dir, as in models/mine",
    ),
    flags(
        "prepare --out_dir notes",
        "notes: holds other files, which would be lost; give a new or empty folder as --out_dir",
    ),
    flags(
        "infer --prompt x --max_new_tokens -1",
        "eval.max_new_tokens: must be at least 1, got -1",
    ),
]


def source(what: str, name: str, sentence: str) -> Fault:
    """A `data.source` that can't be one."""

    def cause(bench: Bench) -> str:
        bench.write("words.zip", b"PK")
        bench.params(data={"source": name})
        return bench.refused("fetch", "data")

    return Fault("parameters", what, sentence, cause)


FAULTS += [
    source(
        "a source that is a web address",
        "https://example.org/words.json",
        "data.source: https://example.org/words.json is an address; download it and give the path, or give a hub id "
        "(owner/name)",
    ),
    source(
        "a source with a token in its address",
        "https://hf_abcdefghijklmnop@huggingface.co/datasets/me/words",
        "data.source: https://…@huggingface.co/datasets/me/words holds a password or token, which dvc.lock would keep; "
        "log in with `hf auth login` and give the repository's id",
    ),
    source(
        "a name of the catalogue in other case",
        "Alpaca",
        "data.source: 'Alpaca' is not in the catalogue; did you mean alpaca?",
    ),
    source(
        "a source that is an archive",
        "words.zip",
        "data.source: words.zip is an archive; unpack it, and give the folder",
    ),
    source(
        "a source that is nowhere",
        "./words.jsonl",
        "data.source: './words.jsonl' is no file or folder here; give an existing path, a hub id, or one of alpaca-demo, "
        "alpaca",
    ),
]

FAULTS += [
    setting(
        "`quantization.block_size: 48`",
        "quantization.block_size: must be one of 32, 64, got 48",
        quantization={"block_size": 48},
    ),
    setting(
        "`quantization.calibration: awq`",
        "quantization.calibration: must be one of gptq, nearest, got 'awq'",
        quantization={"calibration": "awq"},
    ),
    setting(
        "`quantization.examples: 0`", "quantization.examples: must be at least 1, got 0", quantization={"examples": 0}
    ),
    setting(
        "`quantization.keep_dequantized`, which is gone",
        "quantization.keep_dequantized: unknown key in params.yaml; known here: type, block_size, double_quant, calibration, examples",
        quantization={"keep_dequantized": True},
    ),
    setting(
        "`lora.start: pissa`", "lora.start: must be one of rounding_error, zero, got 'pissa'", lora={"start": "pissa"}
    ),
]
