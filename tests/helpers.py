"""Ways to run the stage scripts and the pipeline as a user does."""

import os
import re
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from finetune import yaml_file
from finetune.methods import METHODS

ROOT = Path(__file__).parents[1]
GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
FAST = {name: {"learning_rate": 0.01, "epochs": 4} for name in METHODS}
"""Settings under which a tiny model learns a few words in a second."""


def write_params(folder: Path, **changes) -> None:
    """The shipped params.yaml, made small, with `changes` (group: {key: value}, or key: value)."""
    params = yaml_file.read(ROOT / "params.yaml")
    small = {
        "data": {"size": 40, "max_length": 256, "validation": 0.1, "test": 0.1},
        "lora": {"r": 4, "alpha": 8},
        "eval": {"decode_batch_size": 4, "max_new_tokens": 8},
    }
    for settings in (small, changes):
        for key, value in settings.items():
            params[key] = params[key] | value if isinstance(value, dict) else value
    (folder / "params.yaml").write_text(yaml_file.text(params))


def base_for(models: dict[str, Path], family: str, method: str) -> Path:
    """The tiny model of `family` that `method` starts from: in four bits, or in sixteen."""
    return models[f"{family}-4bit" if METHODS[method].quantized else family]


def stage(name: str, *arguments: object) -> None:
    """Run stages/<name>.py in this process, as `python stages/<name>.py arguments` would. May raise SystemExit."""
    script = ROOT / "stages" / f"{name}.py"
    before = sys.argv
    sys.argv = [str(script), *map(str, arguments)]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before


def refusal(name: str, *arguments: object) -> str:
    """The one sentence with which the stage refuses; checks that it is one, and an error."""
    with pytest.raises(SystemExit) as ended:
        stage(name, *arguments)
    message = ended.value.code
    assert isinstance(message, str), f"ended with {message!r} instead of a sentence"
    assert message.startswith("error: ") and "\n" not in message
    return message


def unnamed(message: str, facts: str) -> list[str]:
    """Which of `facts`, in any order and with … between, `message` doesn't name. A word or number must be whole: 1 isn't
    named by 10."""
    names = filter(None, (name.strip() for name in facts.split("…")))
    return [name for name in names if not re.search(_whole(name), message)]


def assert_names(message: str, facts: str) -> None:
    """The words between `facts` are free, so that a message is reworded in one place."""
    assert not unnamed(message, facts), message


def _whole(name: str) -> str:
    return r"(?<!\w)(?<!\d\.)" * name[0].isalnum() + re.escape(name) + r"(?!\w)" * name[-1].isalnum()


def command(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a command with this Python first on the PATH; the caller checks the status."""
    here = str(Path(sys.executable).parent)
    env = os.environ | {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}"} | environment
    return subprocess.run([str(a) for a in arguments], cwd=cwd, env=env, capture_output=True, text=True)


class Killed(BaseException):
    """In place of SIGKILL: nothing of ours runs after it that a kill would keep from running."""


def interrupt(
    monkeypatch: pytest.MonkeyPatch, after: int, place: object, name: str, how: BaseException | None = None
) -> list[int]:
    """Raise `how`, else `Killed`, at the `after`-th call of `place`'s `name`; returns a list that grows with each."""
    real, calls = getattr(place, name), []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == after:
            raise how or Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(place, name, counted)
    return calls


def signalled(command: list[str], number: signal.Signals, after: str, **environment: str) -> str:
    """Start `command`, and send it a signal when it has printed `after`; what it then says on stderr. Checks its status."""
    running = subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    printed = ""
    while after not in printed:
        printed += running.stdout.readline()
    running.send_signal(number)
    said = running.communicate()[1]
    assert running.returncode == (-number if number == signal.SIGKILL else 128 + number)
    return said


def free_port() -> int:
    """A TCP port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file under `folder` with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def damage(file: Path) -> None:
    """Turn a byte over, and leave age, size and permissions as they are: as a bad disk does."""
    before, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    file.chmod(before.st_mode)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def drafts_in(folder: Path) -> list[Path]:
    """Half-written outputs left behind."""
    return [path for path in folder.rglob("*") if re.search(r"\.draft$", path.name)]


def clone_of_the_working_tree(folder: Path) -> Path:
    """A Git repository in `folder` with this one's files, uncommitted ones too, without dvc.lock.

    Works from any checkout: another user's, or one without its .git.
    """
    git = [*GIT, f"--git-dir={folder / '.git'}"]
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    subprocess.run([*git, f"--work-tree={ROOT}", "add", "--all"], cwd=ROOT, check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "working tree"], cwd=folder, check=True)
    subprocess.run([*git, f"--work-tree={folder}", "reset", "--quiet", "--hard"], cwd=folder, check=True)
    (folder / "dvc.lock").unlink(missing_ok=True)
    return folder


def commit(folder: Path, message: str) -> None:
    """Commit everything in a clone."""
    for step in (["add", "--all"], ["commit", "--quiet", "--message", message]):
        subprocess.run([*GIT, *step], cwd=folder, check=True, capture_output=True)


def dvc(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    """Run DVC in a clone."""
    return command("dvc", *arguments, cwd=folder)


def output_hashes(folder: Path) -> dict[str, str]:
    """Output -> md5, as dvc.lock has it."""
    stages = yaml_file.read(folder / "dvc.lock")["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}
