"""Mistakes in params.yaml and in flags."""

from unittest.mock import patch

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
