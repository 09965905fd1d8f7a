"""Mistakes with devices."""

from faults import Fault

FAULTS: list[Fault] = []
