"""Renew docs/errors.md from the faults that the tests try: `python -m tests.write_errors`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from faults import every_fault, table

from finetune.comparison import generated

if __name__ == "__main__":
    generated.put("errors", table(every_fault()), HERE.parent)
