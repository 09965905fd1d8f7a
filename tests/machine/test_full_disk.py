"""The disk fills up at a stage's writes: one sentence, nothing half-written, and the next run is right."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import drafts_in, files_in
from safetensors.torch import load_file

from machine.disks import OF_THE_CLOCK, PAGE, STAGES, Disk, Step

RESCUED = "models/tuned.rescued.safetensors"


@pytest.fixture(autouse=True)
def filled_by_another(monkeypatch):
    """Whoever asks is told of plenty of room, as before another process fills the disk."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, 10**12))


def size_of(step: Step) -> int:
    """Bytes that the stage writes anew, by pages."""
    return sum(-(-(step.after / name).stat().st_size // PAGE) * PAGE for name in step.new())


def fill_up(disk: Disk, step: Step, room: int) -> str | None:
    """Run the stage where `room` bytes are free; its sentence, or None if they were enough."""
    with disk.with_room_for(room):
        try:
            step.run()
        except SystemExit as ended:
            assert isinstance(ended.code, str), f"{room} bytes: ended with {ended.code!r} instead of a sentence"
            return ended.code
    return None


def check_sentence(said: str) -> None:
    assert said.startswith("error: ") and "\n" not in said
    assert "the disk is full; free some space, or write to another disk" in said
    assert ".draft" not in said and "finetune-report" not in said
    named = said.removeprefix("error: ").split(": ")[0]
    assert any(place in named for place in ("models", "data", "metrics", "plots")), said


def check_whole(disk: Disk, step: Step) -> None:
    """Each output is as it was, or as it was to be; nothing else is there."""
    assert not drafts_in(disk.folder) and not list((disk.folder / "tmp").iterdir())
    there, before, after = (files_in(folder) for folder in (disk.folder / "work", step.before, step.after))
    for name, content in there.items():
        if name == RESCUED:
            assert load_file(disk.folder / "work" / RESCUED)
        elif name.startswith("models/.snapshots/"):  # what the next run goes on from
            assert step.command.startswith(("train", "eval"))
        elif name.endswith(".json") and name.startswith("metrics"):
            assert json.loads(content)
        else:
            assert content in (before.get(name), after.get(name)) or name.startswith(OF_THE_CLOCK), name
    for folder in ("models/base", "models/base-4bit", "models/tuned", "data/raw", "data/prepared", "plots/live"):
        has, had, will_have = ({n for n in files if n.startswith(f"{folder}/")} for files in (there, before, after))
        assert has in (had, will_have), folder


def check_right(work: Path, step: Step) -> None:
    there, after = files_in(work), files_in(step.after)
    there.pop(RESCUED, None)
    assert there.keys() == after.keys()
    assert not [name for name in after if there[name] != after[name] and not name.startswith(OF_THE_CLOCK)]


def start(disk: Disk, step: Step) -> Path:
    """The workspace as the stage finds it."""
    work = disk.folder / "work"
    for entry in work.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    shutil.copytree(step.before, work, dirs_exist_ok=True)
    return work


@pytest.mark.parametrize("name", STAGES)
def test_a_disk_that_fills_up(disk, steps, name):
    step, size = steps[name], size_of(steps[name])
    for room in sorted({0, *(size * part // 6 for part in range(1, 6)), size - PAGE}):
        work = start(disk, step)
        said = fill_up(disk, step, room)
        assert said or room
        if said:
            check_sentence(said)
            check_whole(disk, step)
    step.run()
    check_right(work, step)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_disk_that_fills_up_at_any_write(disk, steps, name):
    step, room, enough = steps[name], 0, 0
    pages = -(-size_of(step) // PAGE // 40)  # at most about 40 sizes
    while enough < 3:
        work = start(disk, step)
        said = fill_up(disk, step, room)
        enough = 0 if said else enough + 1
        if said:
            check_sentence(said)
            check_whole(disk, step)
            step.run()
        check_right(work, step)
        room += pages * PAGE
