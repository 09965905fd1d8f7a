"""Try every fault, and write what it printed into docs/errors.md: `python -m tests.write_errors`, some minutes."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from faults import table

from finetune.comparison import generated


class Printed:
    """Notes what the tests of faults recorded: id -> sentence."""

    def __init__(self) -> None:
        self.sentences: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.sentences |= dict(report.user_properties)


if __name__ == "__main__":
    printed = Printed()
    tests = f"{HERE / 'test_faults.py'}::test_a_fault_ends_in_a_sentence_that_names_it"
    if status := pytest.main(["-q", tests, *sys.argv[1:]], plugins=[printed]):
        sys.exit(status)
    generated.put("errors", table(printed.sentences), HERE.parent)
