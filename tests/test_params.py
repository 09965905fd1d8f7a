"""params.yaml is validated once, early, with the key's path in the message."""

import pytest
from helpers import ROOT, refusal, write_params
from ruamel.yaml import YAML

from finetune import params
from finetune.errors import UserError


def test_the_shipped_params_are_valid():
    assert params.load(path=ROOT / "params.yaml").method == "qlora"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "qlorra"}, "method: must be one of qlora, lora, dora, full, got 'qlorra'"),
        ({"train": {"batch_size": 0}}, "train.batch_size: must be at least 1, got 0"),
        ({"train": {"batch_size": 2.5}}, "train.batch_size: must be a whole number, got 2.5"),
        ({"train": {"batch_size": True}}, "train.batch_size: must be a whole number, got True"),
        ({"train": {"batchsize": 2}}, "train.batchsize: unknown key in params.yaml; did you mean batch_size?"),
        ({"data": {"test": 0.6}}, "data.test: must be at most 0.5, got 0.6"),
        ({"data": {"test": 0}}, "data.test: must be above 0, got 0"),
        ({"data": "alpaca"}, "data: must be a group of keys, got 'alpaca'"),
        ({"data": {"on_bad_record": "skip"}}, "data.on_bad_record: must be one of drop, error, got 'skip'"),
        ({"lora": {"target_modules": []}}, "lora.target_modules: must be all-linear or a list of module names"),
        ({"eval": {"tokenize": "spm"}}, "eval.tokenize: must be one of auto, 13a, intl, zh, char, ja-mecab, ko-mecab"),
        ({"methods": {"qlora": {"learning_rate": 0, "epochs": 1}}}, "methods.qlora.learning_rate: must be above 0"),
    ],
)
def test_a_bad_value_is_named_by_its_path(workspace, change, message):
    write_params(workspace, **change)
    assert message in refusal("prepare")


def test_a_missing_key_is_named(workspace):
    text = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(text.replace("  max_length: 256\n", ""))
    assert "data.max_length: missing from params.yaml" in refusal("train")


def test_broken_yaml_and_missing_file(workspace):
    (workspace / "params.yaml").write_text("method: [")
    assert "params.yaml: not valid YAML" in refusal("train")
    (workspace / "params.yaml").write_text("")
    assert "params.yaml: must be a group of keys" in refusal("train")
    (workspace / "params.yaml").unlink()
    assert "params.yaml: not found; run this from the repository's root" in refusal("train")


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
        ("seed: 1 ", "4294967296", "seed: must be at most 4294967295, got 4294967296"),
        ("seed: 1 ", "-1", "seed: must be at least 0, got -1"),
        ("seed: 1 ", "1" * 5000, "not valid YAML: '1111"),
        ("seed: 1 ", "1" * 400, "seed: must be at most 4294967295, got a number of about 399 digits"),
        ("seed: 1 ", "010", "seed: must be a whole number, got '010'"),
        ("seed: 1 ", "0x10", "seed: must be a whole number, got '0x10'"),
        ("seed: 1 ", "1_000", "seed: must be a whole number, got '1_000'"),
        ("seed: 1 ", "1:30", "seed: must be a whole number, got '1:30'"),
        ("seed: 1 ", "2026-01-01", "seed: must be a whole number, got '2026-01-01'"),
        ("seed: 1 ", "2026-13-45", "seed: must be a whole number, got '2026-13-45'"),
        ("seed: 1 ", "1.0", "seed: must be a whole number, got 1.0"),
        ("seed: 1 ", "yes", "seed: must be a whole number, got 'yes'"),
        ("seed: 1 ", "'1'", "seed: must be a whole number, got '1'"),
        ("seed: 1 ", "", "seed: must be a whole number, got None"),
        ("seed: 1 ", "{a: b}", "seed: must be a whole number, got {'a': 'b'}"),
        ("method: qlora", "[qlora, lora]", "method: must be text, got ['qlora', 'lora']"),
        ("method: qlora", "QLoRA", "method: must be one of qlora, lora, dora, full, got 'QLoRA'"),
        ("  size: 985", "1000000001", "data.size: must be at most 1000000000, got 1000000001"),
        ("  size: 985", "1e3", "data.size: must be a whole number, got 1000.0"),
        ("  validation: 0.08", ".nan", "data.validation: must be above 0, got nan"),
        ("  validation: 0.08", "-0.0", "data.validation: must be above 0, got 0"),
        ("  test: 0.26", ".inf", "data.test: must be at most 0.5, got inf"),
        ("  test: 0.26", "true", "data.test: must be a number, got True"),
        ("  max_length: 512", "1000000000000", "data.max_length: must be at most 10000000, got 1000000000000"),
        ("  source: smollm2-135m", "''", "model.source: must not be empty"),
        ("  source: smollm2-135m", "'  '", "model.source: must not be empty"),
        ("  source: smollm2-135m", '"a\\0b"', "model.source: holds a character that no text file or name can"),
        ("  source: smollm2-135m", '"a\\ud800b"', "model.source: holds a character that no text file or name can"),
        ("  source: smollm2-135m", "123", "model.source: must be text, got 123"),
        ("  source: smollm2-135m", "on", "model.source: 'on'"),
        ("  r: 16", "1000000", "lora.r: must be at most 65536, got 1000000"),
        ("  alpha: 32", ".inf", "lora.alpha: must be at most 1000000000, got inf"),
        ("  alpha: 32", "9" * 400, "lora.alpha: must be at most 1000000000, got inf"),
        ("  dropout: 0.0", "1:30", "lora.dropout: must be a number, got '1:30'"),
        ("  target_modules: all-linear", "['', q_proj]", "lora.target_modules: must be all-linear or a list of module names"),
        ("  double_quant: true", "1", "quantization.double_quant: must be true or false, got 1"),
        ("  double_quant: true", "yes", "quantization.double_quant: must be true or false, got 'yes'"),
        ("  batch_size: 4", "4.5", "train.batch_size: must be a whole number, got 4.5"),
        ("  batch_size: 4", "10000000000", "train.batch_size: must be at most 1000000000, got 10000000000"),
        ("  weight_decay: 0.0", "-.inf", "train.weight_decay: must be at least 0, got -inf"),
        ("  max_grad_norm: 1.0", ".inf", "train.max_grad_norm: must be at most 1000000000, got inf"),
        ("    learning_rate: 1.0e-3", "fast", "methods.qlora.learning_rate: must be a number, got 'fast'"),
        ("    learning_rate: 1.0e-3", "1e-400", "methods.qlora.learning_rate: must be above 0, got 0"),
        ("    learning_rate: 1.0e-3", "1,5e-4", "methods.qlora.learning_rate: must be a number, got '1,5e-4'"),
        ("    epochs: 1", "1000000000", "methods.qlora.epochs: must be at most 10000, got 1e+09"),
        ("    epochs: 1", ".nan", "methods.qlora.epochs: must be above 0, got nan"),
        ("  max_new_tokens: 128", "-1", "eval.max_new_tokens: must be at least 1, got -1"),
        ("  max_new_tokens: 128", "10000000", "eval.max_new_tokens: must be at most 1000000, got 10000000"),
    ],
)  # fmt: skip
def test_a_bad_value_in_the_shipped_file(shipped, line, value, sentence):
    edited(shipped, line, f"{line.split(':')[0]}: {value} ")
    if sentence == "model.source: 'on'":
        assert params.load().model.source == "on"  # a name, not true
    else:
        message = refusal("plot")
        assert sentence in message and len(message) < 400


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
        (b"", "params.yaml: must be a group of keys, got None"),
        (b"# nothing\n", "params.yaml: must be a group of keys, got None"),
        (b"- a\n- b\n", "params.yaml: must be a group of keys, got ['a', 'b']"),
        (b"42\n", "params.yaml: must be a group of keys, got 42"),
        (b"text\n", "params.yaml: must be a group of keys, got 'text'"),
        (b"method: caf\xe9\n", "params.yaml: line 1 is not UTF-8; save it as UTF-8 text"),
        (SHIPPED.encode("utf-16"), "params.yaml: line 1 is not UTF-8; save it as UTF-8 text"),
        (b"a\0b", "params.yaml: not valid YAML: special characters are not allowed"),
        (b"method: qlora\n\tseed: 1\n", "found character '\\t' that cannot start any token, line 2, column 1"),
        (b"method: qlora\nmethod: full\n", "the key 'method' appears twice, line 2, column 1"),
        (b"data:\n  size: 1\n  seed: 2\n  size: 3\n", "the key 'size' appears twice, line 4, column 3"),
        (b"a: 1\n'a': 2\n", "the key 'a' appears twice, line 2"),
        (b"method: *nobody\n", "found undefined alias 'nobody', line 1"),
        (b"a: &a [*a]\n", "a: unknown key in params.yaml"),
        (b"method: !!python/object:os.system x\n", "' is not known here; write the plain value"),
        (b"method: !!binary x\n", "' is not known here; write the plain value"),
        (b"method: !!set x\n", "' is not known here; write the plain value"),
        (b"seed: !!int x\n", "missing from params.yaml"),
        (b"? [a]\n: 1\n", "unknown key in params.yaml"),
        (b"? {a: b}\n: 1\n", "found unhashable key"),
        (b"<<: 5\n", "expected a mapping or list of mappings for merging"),
        (b"1: 2\n", "1: unknown key in params.yaml"),
        (b"null: 2\n", "None: unknown key in params.yaml"),
        (b"[" * 5000, "params.yaml: not valid YAML: nested too deeply"),
        (b"a: 1\n---\na: 2\n", "expected a single document in the stream"),
        (b"a: b: c\n", "mapping values are not allowed here, line 1, column 5"),
        (b'x: "' + b"y" * 5000 + b'"\n? ' + b"z" * 5000 + b"\n: 1", "x: unknown key in params.yaml"),
        (b"z" * 900 + b": 1", "zzz': unknown key in params.yaml"),
        (b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
            b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 122)) + b"method: *y\n",
            "a: unknown key in params.yaml"),
    ],
    ids=range(29),
)  # fmt: skip
def test_a_file_that_is_no_params(workspace, content, sentence):
    (workspace / "params.yaml").write_bytes(content)
    message = refusal("plot")
    assert sentence in message and len(message) < 500


def test_a_byte_order_mark_and_windows_line_ends_are_read(shipped):
    (shipped / "params.yaml").write_bytes(b"\xef\xbb\xbf" + SHIPPED.replace("\n", "\r\n").encode())
    assert params.load() == params.load(path=ROOT / "params.yaml")


def test_anchors_and_merge_keys_are_read(shipped):
    edited(shipped, "  qlora:\n", "  qlora: &all\n")
    edited(shipped, "  lora:\n    learning_rate: 1.0e-3\n    epochs: 1\n", "  lora:\n    <<: *all\n    epochs: 3\n")
    assert params.load().methods["lora"].epochs == 3
    assert params.load().methods["lora"].learning_rate == 1e-3


def test_a_folder_of_that_name(workspace):
    (workspace / "params.yaml").unlink()
    (workspace / "params.yaml").mkdir()
    assert "params.yaml: is a folder, and a file is needed" in refusal("plot")


@pytest.mark.parametrize("content", ["- a\n", "5\n", "data: 5\n", "", "data:\n"])
@pytest.mark.parametrize("flag", [("fetch", "--size", "9"), ("train", "--method", "full")])
def test_a_flag_over_a_file_of_another_form(workspace, content, flag):
    (workspace / "params.yaml").write_text(content)
    assert ": must be a group of keys" in refusal(*flag) or "missing from params.yaml" in refusal(*flag)


def test_the_readers_tables_are_its_own():
    assert YAML(typ="safe", pure=True).load("a: 0x10") == {"a": 16}
