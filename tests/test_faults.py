"""Each fault of tests/faults ends in one sentence that names what is wrong, and the document lists them all."""

import pytest
from faults import KINDS, Bench, every_fault, listed, portable
from helpers import ROOT, assert_names, drafts_in, unnamed

from finetune.comparison import generated


@pytest.fixture
def bench(workspace, tiny_models, words) -> Bench:
    return Bench(workspace, tiny_models, words)


@pytest.mark.parametrize("fault", every_fault(), ids=lambda fault: fault.id)
def test_a_fault_ends_in_a_sentence_that_names_it(bench, fault, record_property):
    printed = fault.cause(bench)
    assert_names(printed, fault.names)
    assert "\n" not in printed and "Traceback" not in printed and "the full report" not in printed
    assert not drafts_in(bench.folder)
    record_property(fault.id, portable(printed, bench.folder))


def test_each_fault_is_listed_once_and_of_a_known_kind():
    faults = every_fault()
    assert len({fault.id for fault in faults}) == len(faults)
    assert {fault.kind for fault in faults} <= set(KINDS)


def test_the_document_lists_each_fault_and_what_its_sentence_names():
    written, renew = listed(generated.read("errors", ROOT)), "run `python -m tests.write_errors`"
    faults = sorted(every_fault(), key=lambda fault: KINDS.index(fault.kind))
    assert list(written) == [fault.id for fault in faults], renew
    assert not [fault.id for fault in faults if unnamed(written[fault.id], fault.names)], renew
