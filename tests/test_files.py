"""Outputs are whole or not there, whatever the disk does: full, read-only, linked into DVC's cache, written twice."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import ROOT, command, drafts_in, files_in, refusal, stage
from machine.disks import mounted

from finetune import files
from finetune.errors import UserError


def limited(body: str, folder: Path, size: int) -> subprocess.CompletedProcess:
    """Run `body` where no file may grow above `size` bytes, as on a disk that fills up."""
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom finetune import cli, files, yaml_file\n"
        f"def main():\n    resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
        + "".join(f"    {line}\n" for line in body.splitlines())
        + "cli.run(main)\n"
    )
    return command(sys.executable, "-c", code, cwd=folder, PYTHONPATH=str(ROOT))


WRITERS = {
    "write_text": "files.write_text(Path('out'), 'x' * 10**5)",
    "write_json": "files.write_json(Path('out'), {'x': 'x' * 10**5})",
    "write_jsonl": "files.write_jsonl(Path('out'), [{'x': 'x' * 100}] * 1000)",
    "yaml": "yaml_file.write(Path('out'), {'x': ['x' * 100] * 1000})",
    "whole_folder": "with files.whole_folder(Path('out')) as draft: (draft / 'a').write_text('x' * 10**5)",
    "safetensors": (
        "import torch\nfrom safetensors.torch import save_file\n"
        "with files.whole_folder(Path('out')) as draft: save_file({'a': torch.ones(10**5)}, draft / 'a.safetensors')"
    ),
    "a figure": ("from finetune import plots\nplots.lengths(range(99), 99, Path('out'))"),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("before", [True, False], ids=["over an earlier output", "new"])
def test_a_write_that_fails_half_way_leaves_what_was_there(tmp_path, writer, before):
    out = tmp_path / "out"
    if before and "folder" in WRITERS[writer]:
        out.mkdir()
        (out / "earlier").write_text("whole")
    elif before:
        out.write_text("whole")
    earlier = files_in(tmp_path)
    done = limited(WRITERS[writer], tmp_path, 5000)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "out" in done.stderr and ("largest size allowed" in done.stderr or "disk is full" in done.stderr)
    assert files_in(tmp_path) == earlier and not drafts_in(tmp_path)
    assert limited(WRITERS[writer], tmp_path, 10**8).returncode == 0


@pytest.fixture
def small_disk(tmp_path):
    """A disk of a megabyte, where mounting is allowed."""
    with mounted(tmp_path / "small", "1m") as disk:
        yield disk.folder


def test_a_full_disk(small_disk):
    with pytest.raises(UserError, match=r"out: .*disk is full.* free "):
        files.write_text(small_disk / "out", "x" * 2**21)
    with pytest.raises(UserError, match=r"out: the disk is full"), files.whole_folder(small_disk / "out") as draft:
        (draft / "weights").write_bytes(b"x" * 2**21)
    assert list(small_disk.iterdir()) == []
    with pytest.raises(UserError, match=r"0\.00 GB .*0\.50 GB"):
        files.check_writable(small_disk / "models/base", free_gb=0.5)


def test_an_earlier_output_is_on_the_full_disk_still(small_disk):
    with files.whole_folder(small_disk / "out") as draft:
        (draft / "weights").write_bytes(b"x" * 2**19)
    with pytest.raises(UserError), files.whole_folder(small_disk / "out") as draft:
        (draft / "weights").write_bytes(b"y" * 2**20)
    assert files_in(small_disk) == {"out/weights": b"x" * 2**19}


# Links


def linked(target: Path, at: Path, kind: str) -> None:
    at.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, at) if kind == "symlink" else os.link(target, at)


@pytest.mark.parametrize("kind", ["symlink", "hardlink"])
def test_a_linked_output_is_replaced_and_the_cache_stays(tmp_path, kind):
    from finetune import plots
    from finetune.costs.meter import Meter

    cached = tmp_path / "cache"
    cached.write_text("in the cache")
    cached.chmod(0o444)
    outputs = [tmp_path / name for name in ("a.txt", "b.json", "c.jsonl", "memory.tsv", "lengths.png", "folder/d.txt")]
    for path in outputs:
        linked(cached, path, kind)
    files.write_text(outputs[0], "new")
    files.write_json(outputs[1], {})
    files.write_jsonl(outputs[2], [])
    Meter().save(outputs[3])
    plots.lengths([1], 9, outputs[4])
    with files.whole_folder(tmp_path / "folder") as draft:
        (draft / "d.txt").write_text("new")
    assert cached.read_text() == "in the cache" and cached.stat().st_mode & 0o777 == 0o444
    assert not any(path.is_symlink() or path.samefile(cached) for path in outputs)


def test_a_linked_folder_is_replaced_where_it_lies(tmp_path):
    big = tmp_path / "big/models"
    big.mkdir(parents=True)
    (big / "old").write_text("old")
    (tmp_path / "models").symlink_to(big)
    with files.whole_folder(tmp_path / "models") as draft:
        (draft / "new").write_text("new")
    assert (tmp_path / "models").is_symlink() and files_in(big) == {"new": b"new"}
    assert not drafts_in(tmp_path)


def test_a_read_only_output_is_replaced(tmp_path):
    with files.whole_folder(tmp_path / "out") as draft:
        (draft / "deep").mkdir()
        (draft / "deep/a").write_text("old")
    for path in (tmp_path / "out/deep/a", tmp_path / "out/deep", tmp_path / "out"):
        path.chmod(0o555)
    with files.whole_folder(tmp_path / "out") as draft:
        (draft / "b").write_text("new")
    assert files_in(tmp_path) == {"out/b": b"new"}


def test_a_file_where_a_folder_shall_be_is_replaced_whole(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ZeroDivisionError), files.whole_folder(tmp_path / "out"):
        1 / 0  # noqa: B018
    assert (tmp_path / "out").read_text() == "a file"
    with files.whole_folder(tmp_path / "out") as draft:
        (draft / "a").write_text("new")
    assert files_in(tmp_path) == {"out/a": b"new"}


def test_what_shall_be_kept_is_kept_also_if_the_write_fails(tmp_path):
    (tmp_path / "out/plots").mkdir(parents=True)
    (tmp_path / "out/plots/a").write_text("curve")
    with pytest.raises(ZeroDivisionError), files.whole_folder(tmp_path / "out", keep="plots"):
        1 / 0  # noqa: B018
    assert files_in(tmp_path) == {"out/plots/a": b"curve"}
    with files.whole_folder(tmp_path / "out", keep="plots") as draft:
        (draft / "b").write_text("new")
    assert files_in(tmp_path) == {"out/plots/a": b"curve", "out/b": b"new"}


def test_a_rename_that_fails_puts_the_earlier_output_back(tmp_path, monkeypatch):
    with files.whole_folder(tmp_path / "out") as draft:
        (draft / "a").write_text("old")
    rename = Path.rename

    def refuse(self, target):
        if self.name == ".out.draft":
            raise PermissionError(13, "Permission denied", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match="permission denied"), files.whole_folder(tmp_path / "out") as draft:
        (draft / "a").write_text("new")
    assert files_in(tmp_path) == {"out/a": b"old"} and not drafts_in(tmp_path)


def test_permissions_are_those_of_any_new_file(tmp_path):
    files.write_text(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


# Two at once, and what a killed one left


def test_two_writers_of_one_folder_come_one_after_the_other(tmp_path):
    inside, wrong = [], []

    def write(name: str) -> None:
        with files.whole_folder(tmp_path / "out") as draft:
            inside.append(name)
            wrong.extend(inside[:-1] if len(inside) > 1 else [])
            wrong.extend(draft.iterdir())
            for part in range(20):
                (draft / f"{name}-{part}").write_text(name)
                time.sleep(0.002)
            inside.remove(name)

    writers = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not wrong and not drafts_in(tmp_path)
    left = {name[0] for name in files_in(tmp_path / "out")}
    assert len(left) == 1 and len(files_in(tmp_path / "out")) == 20


def test_two_processes_that_write_one_file_leave_one_of_both(tmp_path):
    body = "from pathlib import Path\nfrom finetune import files\nimport sys\nfor _ in range(200): files.write_text(Path('out'), sys.argv[1] * 10000)"
    both = [
        subprocess.Popen([sys.executable, "-c", body, name], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
        for name in "ab"
    ]
    assert [process.wait() for process in both] == [0, 0]
    assert (tmp_path / "out").read_text() in ("a" * 10000, "b" * 10000) and len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_is_cleared(tmp_path):
    (tmp_path / ".out.draft/deep").mkdir(parents=True)
    (tmp_path / ".out.draft/deep/half").write_text("half")
    with files.whole_folder(tmp_path / "out") as draft:
        (draft / "a").write_text("new")
    assert files_in(tmp_path) == {"out/a": b"new"} and not drafts_in(tmp_path)


# Before the work


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("file/out", "file: is a file, and a folder is needed there"),
        ("file", "file: is a file, and a folder is needed there"),
        ("file/deep/er/out", "file: is a file, and a folder is needed there"),
        ("x" * 300, "the name is too long for this disk"),
        ("x" * 250, "the name is too long for this disk"),
        ("/proc/nothing/out", "/proc/nothing/out"),
        ("/sys/out", "/sys"),
        ("a\0b", "can't be written"),
    ],
    ids=["below a file", "a file", "far below", "long", "long as a draft", "proc", "sys", "zero"],
)
def test_a_place_that_cannot_be_written_is_known_before(tmp_path, monkeypatch, place, said):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    with pytest.raises(UserError) as refused:
        files.check_writable(Path(place))
    assert said in str(refused.value) and list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_good_place_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.check_writable(Path("models/tuned"), Path("plots"), Path(), tmp_path / "a/b", free_gb=0.001)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX")
@pytest.mark.parametrize(("mode", "place"), [(0o555, "closed/out"), (0o555, "closed"), (0o000, "closed/deep/out")])
def test_a_folder_without_permission(tmp_path, mode, place):
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    closed = tmp_path / "closed"
    closed.mkdir(mode=mode)
    closed.chmod(mode)
    child = os.fork()
    if child == 0:  # root may write everywhere: be someone else
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            files.check_writable(tmp_path / place)
            os._exit(1)
        except UserError as error:
            os._exit(0 if "permission denied" in str(error) else 2)
        except BaseException:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("what", ["data", "model"])
def test_fetch_looks_at_both_places_before_it_fetches(workspace, tiny_models, what):
    place = workspace / {"data": "data/raw", "model": "models"}[what]
    if place.is_dir():
        (place / "words.json").unlink()
        place.rmdir()
    place.write_text("a file")
    (workspace / "mine.json").write_text("[]")
    before = files_in(workspace)
    message = refusal("fetch", "--model_name", tiny_models["llama"], "--dataset", "mine.json")
    assert "is a file, and a folder is needed there; move it away" in message
    assert files_in(workspace) == before and not (workspace / "models/base").exists()


def test_fetch_knows_a_bad_second_source_before_it_brings_the_first(workspace, tiny_models):
    assert "no file or folder here" in refusal(
        "fetch", "--model_name", tiny_models["llama"], "--dataset", "./none.json"
    )
    assert not (workspace / "models").exists()


def test_fetch_twice_at_once(workspace, tiny_models):
    line = [sys.executable, ROOT / "stages/fetch.py", "model", "--model_name", str(tiny_models["llama"])]
    both = [
        subprocess.Popen(line, cwd=workspace, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.wait() for process in both] == [0, 0]
    assert (workspace / "models/base/config.json").exists() and not drafts_in(workspace)


def test_a_clock_that_jumps_back(workspace, tiny_models):
    stage("fetch", "model", "--model_name", tiny_models["llama"])
    for path in (workspace / "models/base").iterdir():
        os.utime(path, (4e9, 4e9))
    stage("fetch", "model", "--model_name", tiny_models["llama"])
    assert (workspace / "models/base/config.json").stat().st_mtime < 4e9
