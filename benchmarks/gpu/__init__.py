"""The GPU kit: what only a GPU can show, in one command that needs neither DVC nor a network. docs/distributed.md explains it."""

import sys
from pathlib import Path

# contenders.py is a script next to this package, which it imports as scripts do each other.
sys.path.insert(0, str(Path(__file__).parents[1]))
