"""Mistakes with models."""

from faults import Fault

FAULTS: list[Fault] = []
