"""Whatever stands in params.yaml, the reader gives Params or a UserError of one short line."""

import io
from pathlib import Path

import pytest
from helpers import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from finetune import params, yaml_file
from finetune.errors import UserError

SHIPPED = (ROOT / "params.yaml").read_text(encoding="utf-8")
TREE = yaml_file.parse(SHIPPED)
PATHS = [
    *((key,) for key in TREE),
    *((group, key) for group, keys in TREE.items() if isinstance(keys, dict) for key in keys),
    *(("methods", name, key) for name, keys in TREE["methods"].items() for key in keys),
]

plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**500), max_value=10**500),
    st.floats(),
    st.text(),
    st.binary(),
    st.dates(),
    st.datetimes(),
    st.sampled_from(["", "nan", ".inf", "1e400", "010", "1:30", "yes", "\0", "\ud800", "~", "<<", "="]),
)
trees = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9) | st.integers() | st.none(), inner),
    max_leaves=12,
)
tokens = st.sampled_from(
    [*":-?&*!|>'\"%@`{}[],#\t\n ", "<<: ", "--- ", "&a ", "*a ", "!!int ", "!!set ", "\ufeff", "\x85", "\0"]
)


def read(folder: Path, content: bytes) -> None:
    path = folder / "params.yaml"
    path.write_bytes(content)
    try:
        found = params.load(path=path)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600 + len(str(path))
        str(error).encode("ascii", "backslashreplace")
    else:
        assert isinstance(found, params.Params)


def dumped(tree: object) -> bytes:
    stream = io.StringIO()
    YAML(typ="safe", pure=True).dump(tree, stream)
    return stream.getvalue().encode("utf-8", "surrogatepass")


def mutated(path: tuple, value: object) -> dict:
    tree = yaml_file.parse(SHIPPED)
    group = tree
    for key in path[:-1]:
        group = group[key]
    group[path[-1]] = value
    return tree


def anything(folder: Path) -> list:
    """The properties, each a function that hypothesis calls with what it makes up."""

    @given(st.binary(max_size=300))
    def any_bytes(content):
        read(folder, content)

    @given(trees)
    def any_tree(tree):
        read(folder, dumped(tree))

    @given(st.sampled_from(PATHS), trees)
    def any_value_for_a_key(path, value):
        read(folder, dumped(mutated(path, value)))

    @given(
        st.integers(0, len(SHIPPED)),
        st.integers(0, 30),
        st.lists(tokens | st.text(max_size=3), max_size=4).map("".join),
    )
    def any_edit(start, length, inserted):
        read(folder, (SHIPPED[:start] + inserted + SHIPPED[start + length :]).encode("utf-8", "surrogatepass"))

    @given(st.integers(0, len(SHIPPED)), st.binary(max_size=4))
    def any_damage(start, inserted):
        encoded = SHIPPED.encode()
        read(folder, encoded[:start] + inserted + encoded[start + len(inserted) :])

    @given(st.lists(tokens | st.text(max_size=4), max_size=30).map("".join))
    def any_punctuation(text):
        read(folder, text.encode("utf-8", "surrogatepass"))

    return [any_bytes, any_tree, any_value_for_a_key, any_edit, any_damage, any_punctuation]


def tried(folder: Path, examples: int) -> None:
    for check in anything(folder):
        settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=examples < 1000,
            suppress_health_check=list(HealthCheck),
        )(check)()


def test_anything_is_params_or_a_sentence(tmp_path):
    tried(tmp_path, 60)


@pytest.mark.slow
def test_much_of_anything_is_params_or_a_sentence(tmp_path):
    tried(tmp_path, 3000)


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(key=st.sampled_from([".".join(path) for path in PATHS]), value=plain)
def test_any_override_is_params_or_a_sentence(key, value):
    try:
        params.load({key: value}, ROOT / "params.yaml")
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
