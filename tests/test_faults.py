"""Each fault of tests/faults gets its sentence, and the document lists them all."""

import pytest
from faults import KINDS, Bench, every_fault, fits, table
from helpers import ROOT, drafts_in

from finetune.comparison import generated


@pytest.fixture
def bench(workspace, tiny_models, words) -> Bench:
    return Bench(workspace, tiny_models, words)


@pytest.mark.parametrize("fault", every_fault(), ids=lambda fault: f"{fault.kind}: {fault.what}")
def test_a_fault_gets_its_sentence(bench, fault):
    printed = fault.cause(bench)
    assert fits(fault.sentence, printed), printed
    assert not drafts_in(bench.folder)


def test_each_fault_is_listed_once_and_of_a_known_kind():
    faults = every_fault()
    assert len({(fault.kind, fault.what) for fault in faults}) == len(faults)
    assert {fault.kind for fault in faults} <= set(KINDS)


def test_the_document_is_generated_from_the_faults():
    assert generated.read("errors", ROOT) == table(every_fault()), "run `python -m tests.write_errors`"
