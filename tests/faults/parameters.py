"""Mistakes in params.yaml and in flags."""

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
