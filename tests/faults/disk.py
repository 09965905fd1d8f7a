"""A disk that is full, or a place that can't be written."""

from faults import Fault

FAULTS: list[Fault] = []
