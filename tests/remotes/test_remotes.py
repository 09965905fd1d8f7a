"""Data, models and experiments through remotes of each kind, on real servers: whole on the other side, whatever happens."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import GIT, ROOT, command, commit, damage, dvc, files_in
from remotes.conftest import cloned

from finetune import yaml_file

FOLDERS = ("data/raw", "data/prepared", "data/predictions", "models/base", "models/base-4bit", "models/tuned")
ADAPTER = "models/tuned/adapter_model.safetensors"
MID_PUSH = 250_000
"""Bytes: in the middle of the 0.4 MB of models/base's weights, whatever of the small files has gone before them."""


def ok(done: subprocess.CompletedProcess) -> str:
    """What a command printed that must succeed."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def finetune(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the command in `folder`, by that clone's own code."""
    return command("python", "-m", "finetune.commands.main", *arguments, cwd=folder)


def object_of(folder: Path, storage: Path, path: str) -> Path:
    """Where `storage`, a cache or a remote, has the file `path` of the clone `folder`."""
    place = Path(path).parent.as_posix()
    outs = [out for stage in yaml_file.read(folder / "dvc.lock")["stages"].values() for out in stage["outs"]]
    found = {out["path"]: out["md5"] for out in outs}

    def at(md5: str) -> Path:
        return storage / "files/md5" / md5[:2] / md5[2:]

    if path in found:
        return at(found[path])
    rows = yaml_file.read(at(found[place]))
    return at(next(row["md5"] for row in rows if row["relpath"] == Path(path).name))


def check_everything_is_there(second: Path, first: Path) -> None:
    ok(dvc(second, "pull"))
    for folder in FOLDERS:
        assert files_in(second / folder) == files_in(first / folder) != {}
    said = ok(dvc(second, "repro"))
    assert "Data and pipelines are up to date" in said and "Running stage" not in said


def another_adapter(folder: Path, name: str) -> None:
    """Let the clone `folder` have a models/tuned that nobody else has."""
    facts = folder / "models/tuned/facts.yaml"
    facts.write_text(f"{facts.read_text()}name: {name}\n")
    ok(dvc(folder, "commit", "--force", "train"))


@pytest.mark.parametrize("remote", ["folder"], indirect=True)
def test_a_second_clone_gets_everything_and_has_nothing_to_do(remote, first, tmp_path):
    ok(dvc(first, "push"))
    check_everything_is_there(cloned(first, tmp_path / "second", remote), first)


@pytest.mark.parametrize("remote", ["s3", "ssh", "webdav"], indirect=True)
def test_after_a_server_died_in_mid_push_the_next_push_completes(remote, first, tmp_path):
    # S3's server here keeps all in memory: there the network dies, and the server is left with what it had.
    death = {"s3": None, "ssh": remote.stop, "webdav": remote.stop_in_mid_file}
    remote.relay.cut_after(MID_PUSH, then=death[remote.kind])
    cut = command("dvc", "push", "models/base", cwd=first, AWS_MAX_ATTEMPTS="1")
    assert cut.returncode != 0 and remote.relay.is_cut
    remote.relay.restore(remote.relay.port if remote.kind == "s3" else remote.start())
    assert "pushed" in ok(dvc(first, "push"))
    if remote.kind == "webdav":
        # This server leaves what was cut under its final name, and DVC's push takes it for whole.
        assert "replaced by a whole copy" in ok(finetune(first, "verify", "--remote"))
    check_everything_is_there(cloned(first, tmp_path / "second", remote), first)


@pytest.mark.parametrize("remote", ["ssh"], indirect=True)
def test_an_experiment_reaches_a_second_clone(remote, first, tmp_path):
    subprocess.run([*GIT, "clone", "--quiet", "--bare", first, tmp_path / "bare"], check=True)
    subprocess.run([*GIT, "remote", "set-url", "origin", tmp_path / "bare"], cwd=first, check=True)
    another_adapter(first, "other")
    ok(dvc(first, "exp", "save", "--name", "other"))
    ok(dvc(first, "exp", "push", "origin", "other"))
    second = cloned(tmp_path / "bare", tmp_path / "second", remote)
    ok(dvc(second, "exp", "pull", "origin", "other"))
    ok(dvc(second, "exp", "apply", "other"))
    assert files_in(second / "models/tuned") == files_in(first / "models/tuned")
    assert "name: other" in (second / "models/tuned/facts.yaml").read_text()


@pytest.mark.parametrize(
    "remote",
    ["ssh", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("folder", "s3", "webdav"))],
    indirect=True,
)
def test_two_clones_that_push_at_once_both_end_whole(remote, first, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(first, other, symlinks=True)
    another_adapter(other, "other")
    commit(other, "another adapter")
    command_line = [sys.executable, "-m", "dvc", "push"]
    pushes = [subprocess.Popen(command_line, cwd=folder, stdout=subprocess.DEVNULL) for folder in (first, other)]
    assert [push.wait() for push in pushes] == [0, 0]
    # `other` has what `first` has, and two files more.
    assert "remote store: 49 read, 0 damaged" in ok(finetune(other, "verify", "--remote"))
    for folder in (first, other):
        second = cloned(folder, tmp_path / f"second-{folder.name}", remote)
        ok(dvc(second, "pull", "models/tuned"))
        assert files_in(second / "models/tuned") == files_in(folder / "models/tuned")


@pytest.mark.parametrize("remote", ["folder"], indirect=True)
def test_a_damaged_object_of_the_remote_is_named_and_never_used(remote, first, tmp_path):
    ok(dvc(first, "push"))
    damage(object_of(first, remote.folder, ADAPTER))
    second = cloned(first, tmp_path / "second", remote)
    pulled = dvc(second, "pull")
    assert pulled.returncode != 0 and "models/tuned" in pulled.stderr and not (second / "models/tuned").exists()
    verified = finetune(second, "verify", "--remote")
    assert verified.returncode == 1 and f"not whole in the remote: {ADAPTER};" in verified.stderr
    asked = finetune(second, "chat", "--ckpt", "HEAD", "--prompt", "Name the moon.")
    assert asked.returncode == 1 and f"{ADAPTER} of it is damaged in the remote" in asked.stderr
    assert f"{ADAPTER}: replaced by a whole copy" in ok(finetune(first, "verify", "--remote"))
    ok(dvc(second, "pull"))
    assert files_in(second / "models/tuned") == files_in(first / "models/tuned")


@pytest.mark.parametrize("remote", ["folder"], indirect=True)
def test_a_damaged_object_of_the_cache_is_named_and_never_used(remote, first):
    ok(dvc(first, "push"))
    answers = "data/predictions/base.jsonl"
    before = (first / answers).read_bytes()
    for path in (ADAPTER, answers):
        damage(object_of(first, first / ".dvc/cache", path))
    # A checkpoint by its name: what the cache has is compared, and the remote's is taken.
    registered = finetune(first, "register", "haiku")
    assert "1 of its files were damaged in DVC's cache" in registered.stderr, registered.stderr
    # A stage: DVC itself checks a damaged file out.
    (first / answers).unlink()
    ok(dvc(first, "checkout", answers))
    assert (first / answers).read_bytes() != before
    plotted = dvc(first, "repro", "--force", "--single-item", "plot")
    assert plotted.returncode != 0 and f"error: {answers}: not what dvc.lock says" in plotted.stderr
    ok(dvc(first, "pull", "--force", answers))
    assert (first / answers).read_bytes() == before
    ok(dvc(first, "repro", "--force", "--single-item", "plot"))
    ok(finetune(first, "verify"))


@pytest.mark.parametrize("remote", ["folder"], indirect=True)
def test_a_damaged_file_of_the_workspace_is_brought_back_from_the_cache(remote, first):
    ok(dvc(first, "status"))
    damage(first / ADAPTER)
    assert "up to date" in ok(dvc(first, "repro"))
    verified = finetune(first, "verify")
    assert verified.returncode == 1 and f"not whole here: {ADAPTER};" in verified.stderr
    said = ok(dvc(first, "checkout", "--force", "models/tuned"))
    assert "models/tuned" in said
    ok(finetune(first, "verify"))


def advice(line: str) -> list[str]:
    """The block of commands in docs/sharing.md that has `line`."""
    blocks = re.findall(r"^```bash\n(.+?)^```", (ROOT / "docs/sharing.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    return next(block for block in blocks if line in block.splitlines()).splitlines()


def test_the_advised_gc_never_deletes_a_registered_model(clone, tmp_path):
    origin, first = tmp_path / "origin.git", tmp_path / "first"
    for step in (["clone", "--bare", clone, origin], ["clone", origin, first]):
        subprocess.run([*GIT, *step], check=True, capture_output=True)
    shutil.copytree(clone / ".dvc/cache", first / ".dvc/cache")
    for setting in (("user.name", "t"), ("user.email", "t@t")):
        subprocess.run(["git", "config", *setting], cwd=first, check=True)
    ok(dvc(first, "checkout"))
    ok(finetune(first, "register", "haiku"))
    ok(finetune(first, "push", "haiku@v1"))
    another_adapter(first, "next")
    commit(first, "another model")
    subprocess.run(["git", "push", "--quiet"], cwd=first, check=True)
    ok(dvc(first, "push", "models/tuned"))

    # Another machine: neither the registered model nor the list of its files is in its cache.
    second = tmp_path / "second"
    subprocess.run([*GIT, "clone", "--quiet", origin, second], check=True)
    ok(dvc(second, "pull", "models/tuned"))
    careless = ok(dvc(second, "gc", "--all-commits", "--all-experiments", "--cloud", "--force", "--dry"))
    assert "Removed 2 objects from remote" in careless  # why the address comes first
    others, _ = advice("dvc gc --all-commits --all-experiments")
    address, collect = advice("dvc gc --all-commits --all-experiments --cloud")
    for line in (others, address, f"{collect} --force"):
        ok(command("bash", "-c", line, cwd=second))
    third = tmp_path / "third"
    subprocess.run([*GIT, "clone", "--quiet", origin, third], check=True)
    done = finetune(third, "register", "haiku", "--from", "haiku@v1", "--stage", "production")
    assert "haiku#production is haiku@v1" in ok(done)
