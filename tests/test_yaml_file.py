"""One dialect: what DVC, params.yaml and facts.yaml hold is read alike."""

import pytest
from dvc.utils.serialize import dumps_yaml, parse_yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune import yaml_file
from finetune.errors import UserError

SCALARS = st.text(alphabet="0123456789+-.eE_xXobinfNaA", min_size=1, max_size=9)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | SCALARS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(SCALARS)
def test_a_number_is_the_number_that_dvc_reads(scalar):
    try:
        ours, dvcs = yaml_file.parse(f"key: {scalar}\n"), parse_yaml(f"key: {scalar}\n", "")
    except Exception:  # not YAML for one: for neither
        with pytest.raises(UserError):
            yaml_file.parse(f"key: {scalar}\n")
        return
    assert isinstance(ours["key"], str) or repr(ours) == repr(dvcs)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.dictionaries(st.text(max_size=5), TREES, min_size=1, max_size=3))
def test_what_is_written_is_read_alike_by_us_and_by_dvc(tree):
    written = yaml_file.text(tree)
    assert yaml_file.parse(written) == parse_yaml(written, "") == tree
    assert yaml_file.text(yaml_file.parse(written)) == written


def test_what_dvc_writes_is_read_as_it_was():
    values = {
        "rate": 5e-05,
        "large": 1e16,
        "count": 3,
        "none": None,
        "name": "no",
        "date": "2026-01-01",
        "hash": "12e34",
    }
    assert yaml_file.parse(dumps_yaml(values)) == values
    assert yaml_file.parse("rate: 5e-05\nhash: 1234567890e12345\n") == {"rate": 5e-05, "hash": "1234567890e12345"}


def test_plain_forms_stay(tmp_path):
    facts = {"rate": 5e-05, "count": 3, "none": None, "name": "no", "zip": "08", "list": ["a", 1.5], "words": "a " * 90}
    yaml_file.write(tmp_path / "facts.yaml", facts)
    assert (tmp_path / "facts.yaml").read_text() == (
        "rate: 5.0e-05\ncount: 3\nnone: null\nname: 'no'\nzip: '08'\nlist:\n- a\n- 1.5\nwords: '" + "a " * 90 + "'\n"
    )
