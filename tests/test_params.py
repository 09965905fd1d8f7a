"""params.yaml is validated once, early, with the key's path in the message."""

import pytest
from helpers import ROOT, assert_names, refusal, write_params
from ruamel.yaml import YAML

from finetune import params
from finetune.errors import UserError


def test_the_shipped_params_are_valid():
    assert params.load(path=ROOT / "params.yaml").method == "qlora"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"batch_size": 2.5}}, "train.batch_size: … whole number … 2.5"),
        ({"train": {"batch_size": True}}, "train.batch_size: … whole number … True"),
        ({"data": {"test": 0.6}}, "data.test: … 0.5 … 0.6"),
        ({"data": {"test": 0}}, "data.test: … 0 … 0"),
        ({"data": "alpaca"}, "data: … keys … 'alpaca'"),
        ({"data": {"on_bad_record": "skip"}}, "data.on_bad_record: … drop, error … 'skip'"),
        ({"lora": {"target_modules": []}}, "lora.target_modules: … all-linear … list"),
        ({"eval": {"tokenize": "spm"}}, "eval.tokenize: … auto, 13a, intl, zh, char, ja-mecab, ko-mecab"),
        ({"methods": {"qlora": {"learning_rate": 0, "epochs": 1}}}, "methods.qlora.learning_rate: … 0"),
    ],
)
def test_a_bad_value_is_named_by_its_path(workspace, change, message):
    write_params(workspace, **change)
    assert_names(refusal("prepare"), message)


def test_a_missing_key_is_named(workspace):
    text = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(text.replace("  max_length: 256\n", ""))
    assert "data.max_length: missing from params.yaml" in refusal("train")


def test_a_flag_wins_over_the_file_and_is_validated_like_it(workspace):
    assert params.load({"method": "full", "data.size": None}).method == "full"
    with pytest.raises(UserError, match="method: must be one of"):
        params.load({"method": "adapter"})


def test_exponents_without_a_point_are_numbers(workspace):
    write_params(workspace, methods={"full": {"learning_rate": "5e-5", "epochs": 1}})
    assert params.load().methods["full"].learning_rate == 5e-5


SHIPPED = (ROOT / "params.yaml").read_text()


def edited(workspace, old: str, new: str) -> None:
    """params.yaml with one line changed, as a person edits it."""
    text = (workspace / "params.yaml").read_text()
    assert old in text
    (workspace / "params.yaml").write_text(text.replace(old, new, 1))


@pytest.fixture
def shipped(workspace):
    (workspace / "params.yaml").write_text(SHIPPED)
    return workspace


@pytest.mark.parametrize(
    ("line", "value", "sentence"),
    [
        ("seed: 1 ", "-1", "seed: … 0 … -1"),
        ("seed: 1 ", "1" * 5000, "not valid YAML"),
        ("seed: 1 ", "1" * 400, "seed: … 4294967295 … a number of about 399 digits"),
        ("seed: 1 ", "0x10", "seed: … whole number … '0x10'"),
        ("seed: 1 ", "1_000", "seed: … whole number … '1_000'"),
        ("seed: 1 ", "2026-13-45", "seed: … whole number … '2026-13-45'"),
        ("seed: 1 ", "'1'", "seed: … whole number … '1'"),
        ("seed: 1 ", "", "seed: … whole number … None"),
        ("seed: 1 ", "{a: b}", "seed: … whole number … {'a': 'b'}"),
        ("method: qlora", "[qlora, lora]", "method: … text … ['qlora', 'lora']"),
        ("method: qlora", "QLoRA", "method: … qlora, lora, dora, full … 'QLoRA'"),
        ("  size: 985", "1000000001", "data.size: … 1000000000 … 1000000001"),
        ("  size: 985", "1e3", "data.size: … whole number … 1000.0"),
        ("  validation: 0.08", "-0.0", "data.validation: … 0 … 0"),
        ("  test: 0.26", ".inf", "data.test: … 0.5 … inf"),
        ("  test: 0.26", "true", "data.test: … number … True"),
        ("  source: smollm2-135m", "'  '", "model.source: … empty"),
        ("  source: smollm2-135m", '"a\\0b"', "model.source: … character"),
        ("  source: smollm2-135m", '"a\\ud800b"', "model.source: … character"),
        ("  source: smollm2-135m", "123", "model.source: … text … 123"),
        ("  source: smollm2-135m", "on", "model.source: 'on'"),
        ("  r: 16", "1000000", "lora.r: … 65536 … 1000000"),
        ("  alpha: 32", "9" * 400, "lora.alpha: … 1000000000 … inf"),
        ("  dropout: 0.0", "1:30", "lora.dropout: … number … '1:30'"),
        ("  target_modules: all-linear", "['', q_proj]", "lora.target_modules: … all-linear … list"),
        ("  double_quant: true", "yes", "quantization.double_quant: … true or false … 'yes'"),
        ("  batch_size: 4", "4.5", "train.batch_size: … whole number … 4.5"),
        ("  weight_decay: 0.0", "-.inf", "train.weight_decay: … 0 … -inf"),
        ("  max_grad_norm: 1.0", ".inf", "train.max_grad_norm: … 1000000000 … inf"),
        ("    learning_rate: 1.0e-3", "1e-400", "methods.qlora.learning_rate: … 0 … 0"),
        ("    learning_rate: 1.0e-3", "1,5e-4", "methods.qlora.learning_rate: … number … '1,5e-4'"),
        ("    epochs: 1", ".nan", "methods.qlora.epochs: … 0 … nan"),
        ("  max_new_tokens: 128", "-1", "eval.max_new_tokens: … 1 … -1"),
        ("  max_new_tokens: 128", "10000000", "eval.max_new_tokens: … 1000000 … 10000000"),
    ],
)  # fmt: skip
def test_a_bad_value_in_the_shipped_file(shipped, line, value, sentence):
    edited(shipped, line, f"{line.split(':')[0]}: {value} ")
    if sentence == "model.source: 'on'":
        assert params.load().model.source == "on"  # a name, not true
    else:
        message = refusal("plot")
        assert len(message) < 400
        assert_names(message, sentence)


@pytest.mark.parametrize(
    ("line", "value", "read"),
    [
        ("    learning_rate: 1.0e-3", "5e-4", ("methods", "qlora", "learning_rate", 5e-4)),
        ("    learning_rate: 1.0e-3", "'5e-4'", ("methods", "qlora", "learning_rate", 5e-4)),
        ("    learning_rate: 1.0e-3", "5E-04", ("methods", "qlora", "learning_rate", 5e-4)),
        ("    learning_rate: 1.0e-3", ".5", ("methods", "qlora", "learning_rate", 0.5)),
        ("  weight_decay: 0.0", "-0.0", ("train", "weight_decay", 0.0)),
        ("  weight_decay: 0.0", "0", ("train", "weight_decay", 0.0)),
        ("  source: alpaca-demo", "2026-01-01", ("data", "source", "2026-01-01")),
        ("  source: alpaca-demo", "no", ("data", "source", "no")),
        ("  source: alpaca-demo", "010", ("data", "source", "010")),
        ("  source: alpaca-demo", "'123'", ("data", "source", "123")),
        ("  source: alpaca-demo", "données/é.json", ("data", "source", "données/é.json")),
        ("seed: 1 ", "4294967295", ("seed", 4294967295)),
        ("seed: 1 ", "+7", ("seed", 7)),
        ("seed: 1 ", "-0", ("seed", 0)),
        ("  batch_size: 4", "1000000000", ("train", "batch_size", 10**9)),
        ("  gradient_checkpointing: false", "TRUE", ("train", "gradient_checkpointing", True)),
    ],
)
def test_a_good_value_is_what_it_looks_like(shipped, line, value, read):
    edited(shipped, line, f"{line.split(':')[0]}: {value} ")
    found = params.load()
    for name in read[:-1]:
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert repr(found) == repr(read[-1])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"# nothing\n", "params.yaml: … keys … None"),
        (b"42\n", "params.yaml: … keys … 42"),
        (b"text\n", "params.yaml: … keys … 'text'"),
        (SHIPPED.encode("utf-16"), "params.yaml: … line 1 … UTF-8"),
        (b"a\0b", "params.yaml: not valid YAML: special characters are not allowed"),
        (b"data:\n  size: 1\n  seed: 2\n  size: 3\n", "'size' … twice … line 4 … column 3"),
        (b"a: 1\n'a': 2\n", "'a' … twice … line 2"),
        (b"method: *nobody\n", "found undefined alias 'nobody', line 1"),
        (b"a: &a [*a]\n", "a: … unknown … params.yaml"),
        (b"method: !!binary x\n", "tag … line 1"),
        (b"method: !!set x\n", "tag … line 1"),
        (b"seed: !!int x\n", "missing from params.yaml"),
        (b"? [a]\n: 1\n", "… unknown … params.yaml"),
        (b"? {a: b}\n: 1\n", "found unhashable key"),
        (b"<<: 5\n", "expected a mapping or list of mappings for merging"),
        (b"1: 2\n", "1: … unknown … params.yaml"),
        (b"null: 2\n", "None: … unknown … params.yaml"),
        (b"[" * 5000, "params.yaml: not valid YAML: nested too deeply"),
        (b"a: 1\n---\na: 2\n", "expected a single document in the stream"),
        (b"a: b: c\n", "mapping values are not allowed here, line 1, column 5"),
        (b'x: "' + b"y" * 5000 + b'"\n? ' + b"z" * 5000 + b"\n: 1", "x: … unknown … params.yaml"),
        (b"z" * 900 + b": 1", "unknown … params.yaml"),
        (b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
            b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 122)) + b"method: *y\n",
            "a: … unknown … params.yaml"),
    ],
    ids=range(23),
)  # fmt: skip
def test_a_file_that_is_no_params(workspace, content, sentence):
    (workspace / "params.yaml").write_bytes(content)
    message = refusal("plot")
    assert len(message) < 500
    assert_names(message, sentence)


def test_a_byte_order_mark_and_windows_line_ends_are_read(shipped):
    (shipped / "params.yaml").write_bytes(b"\xef\xbb\xbf" + SHIPPED.replace("\n", "\r\n").encode())
    assert params.load() == params.load(path=ROOT / "params.yaml")


def test_anchors_and_merge_keys_are_read(shipped):
    edited(shipped, "  qlora:\n", "  qlora: &all\n")
    edited(shipped, "  lora:\n    learning_rate: 1.0e-3\n    epochs: 1\n", "  lora:\n    <<: *all\n    epochs: 3\n")
    assert params.load().methods["lora"].epochs == 3
    assert params.load().methods["lora"].learning_rate == 1e-3


@pytest.mark.parametrize("content", ["- a\n", "5\n", "data: 5\n", "", "data:\n"])
@pytest.mark.parametrize("flag", [("fetch", "--size", "9"), ("train", "--method", "full")])
def test_a_flag_over_a_file_of_another_form(workspace, content, flag):
    (workspace / "params.yaml").write_text(content)
    assert ": must be a group of keys" in refusal(*flag) or "missing from params.yaml" in refusal(*flag)


def test_the_readers_tables_are_its_own():
    assert YAML(typ="safe", pure=True).load("a: 0x10") == {"a": 16}
