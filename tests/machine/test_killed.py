"""`kill -9` in the middle of what DVC writes: nothing that it would trust is damaged, and the next run is right, if need
be after what docs/reproducing.md says."""

import shutil
import subprocess

import pytest
from helpers import command, files_in, output_hashes

from finetune import yaml_file
from machine.kills import Scene, at

TUNED = "models/tuned"


@pytest.fixture(scope="module")
def trained_alone(clone, tmp_path_factory):
    """The clone, in which train has run outside DVC with another seed: `dvc commit` takes its outputs in."""
    folder = shutil.copytree(clone, tmp_path_factory.mktemp("killed") / "start", symlinks=True)
    params = yaml_file.read(folder / "params.yaml") | {"seed": 2}
    (folder / "params.yaml").write_text(yaml_file.text(params))
    done = command("python", "-m", "stages.train", cwd=folder, PYTHONPATH=str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def committing(trained_alone, tmp_path) -> Scene:
    return Scene(trained_alone, tmp_path / "clone", "commit", "--force", "train")


def mend(scene: Scene, said: str) -> None:
    """What docs/reproducing.md says to do about what DVC has said."""
    if "dvc.lock" in said:
        subprocess.run(["git", "checkout", "--quiet", "dvc.lock"], cwd=scene.folder, check=True)
    if "RWLock-file" in said:
        (scene.folder / ".dvc/tmp/rwlock").unlink()
    if "not 'NoneType'" in said:
        subprocess.run(["find", ".dvc/cache/runs", "-type", "d", "-empty", "-delete"], cwd=scene.folder, check=True)
    if "does not exist" in said:
        assert scene.dvc("repro", "train").returncode == 0
    if "unsaved files" in said:
        assert scene.dvc("checkout", "--force").returncode == 0


def check_next(scene: Scene, *arguments: str) -> str:
    """The command that comes after the kill ends well, at the latest when what it said is mended; what it said."""
    assert not list(scene.damaged_objects())
    done = scene.dvc(*arguments)
    said = done.stdout + done.stderr
    if done.returncode:
        mend(scene, said)
        again = scene.dvc(*arguments)
        assert again.returncode == 0, again.stdout + again.stderr
        return said
    return ""


def check_committed(scene: Scene, expected: dict[str, str]) -> None:
    assert output_hashes(scene.folder)[TUNED] == expected[TUNED]
    status = scene.dvc("status", "train")
    assert status.returncode == 0 and "up to date" in status.stdout, status.stdout


@pytest.fixture
def expected(committing) -> tuple[list[str], dict[str, str]]:
    """The changes that `dvc commit` makes, and the outputs' hashes that it comes to."""
    changes = committing.changes()
    return changes, output_hashes(committing.folder)


def test_a_commit_that_was_killed_is_made_again(committing, expected):
    changes, hashes = expected
    lock, rwlock = at(changes, r"^open\tdvc\.lock")[-1], at(changes, r"^open\t\.dvc/tmp/rwlock$")[-1]
    half_way = at(changes, r"^os\.rename\t\.dvc/cache/files")
    said = {}
    for moment in (half_way[len(half_way) // 2], lock, -lock, -rwlock):
        assert committing.kill(moment), changes[abs(moment) - 1]
        said[moment] = check_next(committing, "commit", "--force", "train")
        check_committed(committing, hashes)
    assert said[lock] == "" and "dvc.lock' validation failed" in said[-lock]
    assert "Unable to read RWLock-file" in said[-rwlock]


def test_an_empty_folder_in_the_run_cache(clone, tmp_path):
    """What a kill between two steps of DVC's leaves, and what is said of it."""
    folder = shutil.copytree(clone, tmp_path / "clone", symlinks=True)
    (folder / "dvc.lock").unlink()
    scene = Scene(clone, folder)
    for entry in (folder / ".dvc/cache/runs").glob("*/*/*"):
        entry.unlink()
    said = scene.dvc("repro", "fetch@data")
    assert said.returncode and "not 'NoneType'" in said.stderr
    mend(scene, said.stderr)
    assert scene.dvc("repro", "fetch@data").returncode == 0


def moments(changes: list[str], count: int) -> list[int]:
    """About `count` of the moments to kill at, spread over all changes, and always those at dvc.lock."""
    before_and_after = [
        moment
        for number, change in enumerate(changes, start=1)
        for moment in ((number, -number) if change.startswith("open") else (number,))
    ]
    spread = before_and_after[:: max(1, len(before_and_after) // count)]
    return spread + [sign * number for number in at(changes, r"^open\tdvc\.lock") for sign in (1, -1)]


@pytest.mark.slow
def test_a_commit_that_was_killed_at_any_change(committing, expected):
    changes, hashes = expected
    for moment in moments(changes, 30):
        if committing.kill(moment):
            print(moment, changes[abs(moment) - 1], check_next(committing, "commit", "--force", "train"))
            check_committed(committing, hashes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "gone", "after"),
    [
        (("checkout",), ("models", "data/prepared"), ("checkout",)),
        (("gc", "--workspace", "--force"), (), ("checkout",)),
        (("repro", "fetch@data"), ("data/raw", "dvc.lock"), ("repro", "fetch@data")),
        (("exp", "run", "fetch@data"), ("data/raw", "dvc.lock"), ("repro", "fetch@data")),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_command_that_was_killed_at_any_change(clone, tmp_path, arguments, gone, after):
    start = shutil.copytree(clone, tmp_path / "start", symlinks=True)
    for name in gone:
        shutil.rmtree(start / name) if (start / name).is_dir() else (start / name).unlink()
    scene = Scene(start, tmp_path / "clone", *arguments)
    changes = scene.changes()
    for moment in moments(changes, 10):
        if scene.kill(moment):
            print(moment, changes[abs(moment) - 1], check_next(scene, *after))
            for folder in ("data/raw",) if "fetch@data" in after else ("data", "models"):
                assert files_in(scene.folder / folder) == files_in(clone / folder), (moment, changes[abs(moment) - 1])
