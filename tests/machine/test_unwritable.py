"""Folders that DVC or a stage can't write under `dvc repro`: said before the work, and the next run is right."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import dvc, output_hashes

from finetune import yaml_file


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """`folder` on a read-only disk, which holds root as well; the test is skipped where mounting isn't allowed."""
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode:
        pytest.skip("mounting isn't allowed here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def seed(folder: Path, value: int) -> None:
    params = yaml_file.read(folder / "params.yaml") | {"seed": value}
    (folder / "params.yaml").write_text(yaml_file.text(params))


def test_a_read_only_cache_is_told_of_before_training(editable):
    seed(editable, 7)
    before = (editable / "dvc.lock").read_text()
    with read_only(editable / ".dvc/cache"):
        done = dvc(editable, "repro", "train")
    said = done.stdout + done.stderr
    assert done.returncode and "error: DVC's cache, .dvc/cache/files/md5: lies on a read-only disk" in said
    assert "step 1 of" not in said and "Traceback" not in said
    assert (editable / "dvc.lock").read_text() == before and not (editable / "models/tuned").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", [".dvc/tmp", ".dvc/cache", "models", "metrics", "plots", "data"])
def test_a_read_only_folder(editable, name):
    expected = output_hashes(editable)["models/tuned"]
    seed(editable, 7)
    before = (editable / "dvc.lock").read_text()
    with read_only(editable / name):
        done = dvc(editable, "repro", "train")
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    if name == "data":  # which train only reads
        assert done.returncode == 0
    else:
        assert done.returncode and "ead-only" in said and "step 1 of" not in said
        assert (editable / "dvc.lock").read_text() == before
    seed(editable, 1)
    assert dvc(editable, "repro", "train").returncode == 0
    assert output_hashes(editable)["models/tuned"] == expected
