"""What experiments cost in a DVC remote: bytes of one run, and of forty more that train other adapters over its base.

    python benchmarks/storage.py

Needs a workspace in which `dvc repro` has run with `method: qlora`. In a temporary clone, with a folder as its remote, it
pushes that run, then forty experiments whose trained files are random bytes of the same sizes (no two runs share them, and
DVC compresses nothing), counts what lies in the remote, and writes benchmarks/results/storage.json and the table of
docs/sharing.md. Takes five minutes and 3 GB of the temporary folder's disk.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from finetune import cli, files, places
from finetune.comparison import generated
from finetune.errors import UserError

ROOT = Path(__file__).parents[1]
EXPERIMENTS = 40
SAME_IN_EVERY_RUN = ("adapter_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json")
"""Of models/tuned: what comes from the base model and the settings of LoRA."""

RUN_ANEW = (places.TUNED, places.PREDICTIONS / "tuned.jsonl", places.PLOTS / "live", places.PLOTS / places.MEMORY_TABLE)
"""What another seed or learning rate changes."""


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone, remote = Path(folder) / "clone", Path(folder) / "remote"
        _clone(clone, remote)
        _run(clone, "dvc", "push", "--quiet")
        one = _bytes(remote)
        for number in range(1, EXPERIMENTS + 1):
            _make_anew(clone)
            _run(clone, "dvc", "commit", "--quiet", "--force", "train", "eval")
            _run(clone, "dvc", "exp", "save", "--quiet", "--name", f"seed-{number}")
        _run(clone, "dvc", "exp", "push", "--quiet", "origin", *(f"seed-{n}" for n in range(1, EXPERIMENTS + 1)))
        all_of_them = _bytes(remote)
        bases = sum(_bytes(clone / base) for base in (places.BASE, places.BASE_4BIT))
    results = {"experiments": EXPERIMENTS, "one": one, "all": all_of_them, "bases": bases}
    files.write_json(places.RESULTS / "storage.json", results)
    generated.put("storage", markdown(results))
    print(markdown(results))


def _clone(clone: Path, remote: Path) -> None:
    """A clone of the last commit, with this workspace's cache, a bare Git repository as origin and `remote`."""
    origin = clone.with_name("origin.git")
    subprocess.run(["git", "clone", "--quiet", "--bare", ROOT, origin], check=True)
    subprocess.run(["git", "clone", "--quiet", origin, clone], check=True)
    shutil.copytree(ROOT / ".dvc/cache/files", clone / ".dvc/cache/files")
    _run(clone, "dvc", "remote", "modify", "--quiet", "--local", "local", "url", str(remote))
    _run(clone, "dvc", "checkout", "--quiet")


def _make_anew(clone: Path) -> None:
    """Give the outputs of a new run other bytes, as many as before."""
    for place in RUN_ANEW:
        path = clone / place
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file() and file.name not in SAME_IN_EVERY_RUN:
                size = file.stat().st_size
                file.unlink()  # it may be a link into the cache
                file.write_bytes(os.urandom(size))


def _run(folder: Path, *command: str) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    if subprocess.run(command, cwd=folder, env=environment).returncode:
        raise UserError(f"`{' '.join(command[:3])}` failed; its complaint stands above")


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def markdown(results: dict) -> str:
    """Megabytes (10^6 bytes) in the remote."""
    count, one, all_of_them, bases = (results[key] for key in ("experiments", "one", "all", "bases"))
    each = (all_of_them - one) / count
    rows = [
        ("one run: data, both bases, adapter, answers, curves", one),
        ("of these the base models, in 16 and in 4 bits", bases),
        ("each further QLoRA experiment", each),
        (f"one run and {count} experiments", all_of_them),
        ("the same, had each experiment brought its bases along", all_of_them + count * bases),
    ]
    lines = [
        "| what lies in the remote | MB |",
        "|---|---:|",
        *(f"| {what} | {size / 1e6:,.1f} |" for what, size in rows),
    ]
    return "\n".join(lines) + "\n\nThe default model and params; MB of 10^6 bytes. DVC stores each content once."


if __name__ == "__main__":
    cli.run(main)
