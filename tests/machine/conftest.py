"""What the faults of the machine are tried on."""

import os

import pytest
from helpers import write_params

from machine.disks import Disk, Step, mounted, record, temporary_files_in


@pytest.fixture(scope="session")
def steps(tmp_path_factory, tiny_models, words) -> dict[str, Step]:
    """Every stage, with the workspace before and after it."""
    return record(tmp_path_factory.mktemp("steps"), tiny_models, words, write_params)


@pytest.fixture
def disk(tmp_path, monkeypatch) -> Disk:
    """A disk of 16 MB as the folder at hand, on which temporary files lie as well."""
    before = os.getcwd()
    with mounted(tmp_path / "disk", "16m") as small:
        (small.folder / "work").mkdir()
        os.chdir(small.folder / "work")
        with temporary_files_in(small.folder / "tmp"):
            yield small
        os.chdir(before)
