"""Checkpoints by name, registered in one clone and found in another, through DVC and Git remotes that are folders."""

import json
import shutil
import subprocess
from contextlib import chdir
from pathlib import Path

import pytest
from helpers import GIT, ROOT, command, commit, drafts_in, dvc, files_in

from finetune import yaml_file
from finetune.models.checkpoint import Checkpoint
from finetune.models.loading import load_tuned
from finetune.registry import fetched
from finetune.registry.checkpoints import Found

EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
"""Git's own name for it."""


def git(folder: Path, *arguments: object) -> str:
    done = subprocess.run([*GIT, *map(str, arguments)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def finetune(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the command in `folder`, in a process of its own."""
    return command("python", "-m", "finetune.commands.main", *arguments, cwd=folder, PYTHONPATH=str(ROOT))


def said(folder: Path, *arguments: str) -> str:
    """What the command `finetune` prints, run in `folder`."""
    done = finetune(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(folder: Path, *arguments: str) -> str:
    """The one sentence of a command that must refuse; it leaves no tag."""
    before = git(folder, "tag")
    done = finetune(folder, *arguments)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert git(folder, "tag") == before
    return done.stderr


FIND = """
import sys
from finetune.errors import UserError
from finetune.registry.checkpoints import find
try:
    found = find(sys.argv[1])
    print(found.folder, found.base_folder, sep="\\n")
except UserError as error:
    print("refused:", error)
"""


def looked_up(folder: Path, name: str) -> subprocess.CompletedProcess:
    """`find` as a command calls it, in the repository's root."""
    done = command("python", "-c", FIND, name, cwd=folder, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    return done


def found(folder: Path, name: str) -> Found:
    place, base = looked_up(folder, name).stdout.splitlines()
    with chdir(folder):
        checkpoint = Checkpoint.read(Path(place))
    return Found(name, checkpoint, None if base == "None" else Path(base))


def unfound(folder: Path, name: str) -> str:
    sentence = looked_up(folder, name).stdout
    assert sentence.startswith("refused:") and not drafts_in(folder / ".dvc/tmp")
    return sentence


@pytest.fixture(scope="module")
def first(clone, tmp_path_factory):
    """A copy of the clone with an experiment that has run and one that waits. Registered and pushed: HEAD as haiku@v1,
    the experiment as haiku@v2."""
    folder = tmp_path_factory.mktemp("registry") / "first"
    # What is committed and its cache, without the experiments and queues that other tests leave in the clone.
    git(folder.parent, "clone", "--quiet", "--no-tags", clone, folder)
    git(folder, "remote", "remove", "origin")
    shutil.copytree(clone / ".dvc/cache", folder / ".dvc/cache", symlinks=True)
    assert dvc(folder, "checkout").returncode == 0
    for setting in (("user.name", "t"), ("user.email", "t@t")):
        git(folder, "config", *setting)
    git(folder, "branch", "--move", "--force", "trunk")
    git(folder, "init", "--quiet", "--bare", "--initial-branch=trunk", folder.parent / "origin.git")
    git(folder, "remote", "add", "origin", folder.parent / "origin.git")
    git(folder, "push", "--quiet", "origin", "trunk")
    assert dvc(folder, "exp", "run", "--name", "second-seed", "--set-param", "seed=2").returncode == 0
    git(folder, "checkout", "--quiet", ".")
    assert dvc(folder, "checkout", "--force", "models/tuned").returncode == 0
    assert dvc(folder, "exp", "run", "--queue", "--name", "in-the-queue", "--set-param", "seed=3").returncode == 0
    git(folder, "tag", "empty", git(folder, "commit-tree", EMPTY_TREE, "-m", "empty").strip())
    assert "haiku@v1 is models/tuned of HEAD" in said(folder, "register", "haiku")
    assert "haiku#production is haiku@v2\n" in said(
        folder, "register", "haiku", "--from", "second-seed", "--stage", "production"
    )
    assert "haiku#staging is haiku@v1\n" in said(
        folder, "register", "haiku", "--from", "haiku@v1", "--stage", "staging"
    )
    for name in ("haiku@v1", "haiku#production"):
        assert f"finetune chat --ckpt {name}\n" in said(folder, "push", name)
    return folder


@pytest.fixture(scope="module")
def tuned(clone, first) -> dict[str, dict[str, bytes]]:
    """Version -> the files of its models/tuned."""
    return {
        "v1": files_in(clone / "models/tuned"),
        "v2": files_in(first / found(first, "second-seed").folder),
    }


@pytest.fixture(scope="module")
def second(first):
    """A fresh clone on another machine: no data, no models, only the remotes."""
    return fresh_clone(first, "second")


def fresh_clone(first: Path, name: str) -> Path:
    git(first.parent, "clone", "--quiet", "origin.git", name)
    return first.parent / name


NAMES = {
    "haiku@v1": "v1",
    "haiku@v1.0.0": "v1",
    "haiku@v2": "v2",
    "haiku@latest": "v2",
    "haiku#production": "v2",
    "haiku#staging": "v1",
    "HEAD": "v1",
    "trunk": "v1",
    "haiku@v2.0.0~1": "v2",
}
"""Name -> the version whose files it means; the last is the experiment's commit, which the tag holds."""


@pytest.mark.parametrize("name", NAMES)
def test_a_name_brings_adapter_and_base_into_a_fresh_clone(first, second, tuned, name):
    checkpoint = found(second, name)
    assert files_in(second / checkpoint.folder) == tuned[NAMES[name]]
    assert files_in(second / checkpoint.base_folder) == files_in(first / "models/base-4bit")
    assert checkpoint.name == name and not git(second, "status", "--short")
    assert not (second / "models").exists()


def test_the_versions_differ_and_the_base_of_the_workspace_is_used_where_it_is_the_same(first, tuned):
    assert tuned["v1"] != tuned["v2"]
    for name in ("second-seed", "haiku@v2"):
        assert files_in(first / found(first, name).folder) == tuned["v2"] and found(first, name).base_folder is None


def test_what_was_found_answers(second):
    checkpoint = found(second, "haiku@v2")
    with chdir(second):
        model = load_tuned(checkpoint.checkpoint, checkpoint.base())
    assert checkpoint.checkpoint.seed == 2 and model.peft_config


def test_what_was_found_once_needs_no_remote_and_is_found_at_once(first, second):
    before = looked_up(second, "haiku@v1").stdout
    remote = first.parent / "dvc-remote"
    remote.rename(remote.with_name("elsewhere"))
    try:
        again = looked_up(second, "haiku@v1")
        assert again.stdout == before and not again.stderr
    finally:
        remote.with_name("elsewhere").rename(remote)


def test_the_workspace_and_folders_are_found_without_dvc(first):
    code = "import sys; from finetune.registry.checkpoints import find\n" + "".join(
        f"print(find({name!r}).folder.as_posix())\n"
        for name in ("workspace", "models/tuned", str(first / "models/tuned"))
    )
    done = command("python", "-c", f"{code}assert not {{'dvc', 'git', 'torch'}} & set(sys.modules)", cwd=first)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["models/tuned", "models/tuned", str(first / "models/tuned")]


def test_a_folder_comes_before_an_experiment_and_that_before_a_branch(first):
    git(first, "branch", "second-seed")
    assert found(first, "second-seed").folder.is_relative_to(fetched.FETCHED)
    assert yaml_file.read(first / found(first, "second-seed").folder / "facts.yaml")["seed"] == 2
    shutil.copytree(first / "models/tuned", first / "second-seed")
    assert found(first, "second-seed").folder == Path("second-seed")
    shutil.rmtree(first / "second-seed")
    git(first, "branch", "--delete", "--force", "second-seed")


def test_dvc_and_gto_know_what_is_registered(first, second, tuned):
    # In a commit's configuration DVC takes a remote's relative address for one from the root, so it is told.
    (second.parent / "remote").write_text(f"['remote \"local\"']\n    url = {first.parent / 'dvc-remote'}\n")
    flags = ("--stage", "production", "--config", "../remote", "--out", "../got")
    done = dvc(second, "artifacts", "get", ".", "haiku", *flags)
    assert done.returncode == 0, done.stderr
    assert files_in(second.parent / "got") == tuned["v2"]
    shown = json.loads(command("gto", "show", "haiku", "--json", cwd=second).stdout)
    assert {row["version"]: [stage["stage"] for stage in row["stages"]] for row in shown} == {
        "v2.0.0": ["production"],
        "v1.0.0": ["staging"],
    }


def test_a_registered_commit_adds_its_name_to_dvc_yaml_and_nothing_else(first):
    changed = git(first, "diff", "--numstat", "trunk", "haiku@v1.0.0").split()
    assert changed == ["3", "0", "dvc.yaml"]
    pipeline = yaml_file.parse(git(first, "show", "haiku@v1.0.0:dvc.yaml"))
    assert pipeline["artifacts"]["haiku"] == {"path": "models/tuned", "type": "model"}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nobody", "'nobody': no checkpoint has this name: no folder, experiment or revision; `dvc exp list"),
        ("", "'': no checkpoint has this name"),
        ("HEAD:dvc.lock", "no checkpoint has this name"),
        ("in-the-queue", "in-the-queue: has not ended yet; `dvc queue status` shows where it is"),
        ("haiku@v7", "haiku@v7: not in the registry: haiku has haiku@v2, haiku@v1; `git fetch --tags` brings"),
        ("haiku#canary", "haiku#canary: not in the registry: haiku has haiku@v2, haiku@v1;"),
        ("sonnet@latest", "sonnet@latest: not in the registry: no sonnet is registered here;"),
        ("empty", "empty: no dvc.lock in that commit; run the pipeline there, and commit dvc.lock"),
        ("HEAD~1", "HEAD~1: no models/tuned of it, here or in the remote; run it again, or `dvc push` where it ran"),
        ("models/base-4bit", "models/base-4bit: no fine-tuned model there;"),
    ],
)
def test_a_name_that_means_no_checkpoint_is_refused(first, name, sentence):
    assert sentence in unfound(first, name)


def test_files_that_are_nowhere_are_missed_in_one_sentence_and_nothing_is_left(first):
    third = fresh_clone(first, "third")
    shutil.copytree(first.parent / "dvc-remote", first.parent / "half")
    for path in (first.parent / "half").rglob("*"):
        if path.is_file() and path.suffix != ".dir":
            path.unlink()
    (third / ".dvc/config.local").write_text("['remote \"local\"']\n    url = ../../half\n")
    assert (
        "haiku@v1: no models/tuned of it, here or in the remote; run it again, or `dvc push` where it ran"
        in unfound(third, "haiku@v1")
    )
    (third / ".dvc/config.local").unlink()
    (third / ".dvc/config").write_text("")
    commit(third, "no remote")
    assert "HEAD: no models/tuned of it, and DVC has no remote to fetch it from; name the one" in unfound(third, "HEAD")
    assert not files_in(third / fetched.FETCHED)
    assert "DVC has no remote to push to" in refused(third, "push", "haiku@v1")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["haiku"], "HEAD: is haiku@v1 already; --stage gives that a stage"),
        (
            ["haiku", "--from", "second-seed", "--version", "v5", "--stage", "staging"],
            "second-seed: is haiku@v2 already",
        ),
        (["base"], "base: is models/base in dvc.yaml; choose another name"),
        (["sonnet", "--from", "in-the-queue"], "in-the-queue: has not ended yet"),
        (["sonnet", "--from", "empty"], "empty: no dvc.lock in that commit"),
        (["sonnet", "--from", "HEAD~1"], "HEAD~1: no models/tuned of it, here or in the remote"),
    ],
)
def test_what_cannot_be_registered_is_refused_before_a_tag_is_made(first, arguments, sentence):
    assert sentence in refused(first, "register", *arguments)


def test_only_what_is_committed_and_of_one_run_is_registered(first):
    (first / "dvc.lock").write_text(git(first, "show", "haiku@v2.0.0:dvc.lock"))
    assert "dvc.lock: its models/tuned isn't committed; commit it first" in refused(first, "register", "sonnet")
    commit(first, "half a run")
    assert "train ran with another seed than params.yaml has now" in refused(first, "register", "sonnet")
    (first / "params.yaml").write_text(git(first, "show", "haiku@v2.0.0:params.yaml"))
    commit(first, "the run of the second seed")
    (first / "models/tuned").rename(first / "models/of-the-first-seed")
    assert "sonnet@v3 is models/tuned of HEAD" in said(first, "register", "sonnet", "--version", "v3")
    assert "haiku@v2: is sonnet@v3 already" in refused(first, "register", "sonnet", "--from", "haiku@v2")
    assert "sonnet@v3: is, or was, another model" in refused(
        first, "register", "sonnet", "--from", "haiku@v1", "--version", "v3"
    )
    (first / "models/of-the-first-seed").rename(first / "models/tuned")
    assert "models/tuned: isn't the one that dvc.lock has; `dvc commit train` takes it in" in refused(
        first, "register", "ballad"
    )


def test_a_stage_moves_on_and_back(first):
    moved = said(first, "register", "haiku", "--from", "haiku@v1", "--stage", "production")
    assert "haiku#production is haiku@v1, instead of haiku@v2" in moved
    back = said(first, "register", "haiku", "--from", "haiku@v2", "--stage", "production")
    assert "haiku#production is haiku@v2, instead of haiku@v1" in back
