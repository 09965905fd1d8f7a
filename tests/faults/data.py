"""Mistakes in records and files of data."""

from faults import Fault

FAULTS: list[Fault] = []
