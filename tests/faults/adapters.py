"""Mistakes with adapters."""

from faults import Fault

FAULTS: list[Fault] = []
