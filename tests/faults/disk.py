"""A disk that is full, or a place that can't be written."""

import errno
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

from helpers import stage

from faults import Bench, Fault


def place(what: str, stage: str, sentence: str, spoil: Callable[[Path], object]) -> Fault:
    """A workspace that `spoil` changed, and a stage that writes there."""

    def cause(bench: Bench) -> str:
        spoil(bench.folder)
        return bench.refused(*stage.format(**bench.models).split())

    return Fault("disk", what, sentence, cause)


def refusing(number: int, what: str, sentence: str) -> Fault:
    """A disk that refuses every new file with an error of the system's."""

    def cause(bench: Bench) -> str:
        refused = OSError(number, os.strerror(number))
        with patch("finetune.files.tempfile.TemporaryFile", side_effect=refused):
            return bench.refused("plot")

    return Fault("disk", what, sentence, cause)


def full_in_the_midst() -> Fault:
    """The disk fills up while a model is copied."""

    def cause(bench: Bench) -> str:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with patch("finetune.sources.fetch.shutil.copy", side_effect=full):
            return bench.refused("fetch", "model", "--model_name", bench.models["llama"])

    return Fault(
        "disk",
        "a disk that fills up while a stage writes",
        "…/models/base: the disk is full; free some space, or write to another disk",
        cause,
    )


def little_space() -> Fault:
    """Room for a file, not for a model."""

    def cause(bench: Bench) -> str:
        with patch("finetune.files.shutil.disk_usage") as usage:
            usage.return_value.free = 2e8
            return bench.refused("fetch", "model", "--model_name", bench.models["llama"])

    return Fault(
        "disk",
        "a disk with less room than a model takes, before it is fetched",
        "models/base: 0.20 GB are free on its disk, and about 0.50 GB are needed; free some space, or write to "
        "another disk",
        cause,
    )


def the_cache(what: str, sentence: str, number: int | None = None) -> Fault:
    """Under `dvc repro`, a cache that refuses with an error of the system's, or one with little room."""

    def refuse(dir: Path, suffix: str) -> object:
        if number and "cache" in str(dir):
            raise OSError(number, os.strerror(number))
        return nullcontext()

    def cause(bench: Bench) -> str:
        cache = bench.folder / "cache/files/md5"
        cache.mkdir(parents=True)
        with (
            patch("finetune.files._dvc_cache", return_value=cache.relative_to(bench.folder)),
            patch("finetune.files.tempfile.TemporaryFile", side_effect=refuse),
            patch("finetune.files.shutil.disk_usage") as usage,
        ):
            usage.return_value.free = 7e8 if number is None else 1e12
            return bench.refused("fetch", "model", "--model_name", bench.models["llama"])

    return Fault("disk", what, sentence, cause)


def full_while_training() -> Fault:
    """The disk fills up at a step's metrics."""

    def cause(bench: Bench) -> str:
        stage("prepare", "--model_name", bench.models["llama"])
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with patch("dvclive.Live.make_summary", side_effect=full):
            return bench.refused("train", "--model_name", bench.models["llama"], "--method", "lora")

    return Fault(
        "disk",
        "a disk that fills up while a model is trained",
        "plots/live: the disk is full; free some space, or write to another disk",
        cause,
    )


def no_temporary_folder() -> Fault:
    """All places for temporary files are full, or refuse."""

    def cause(bench: Bench) -> str:
        stage("prepare", "--model_name", bench.models["llama"])
        none = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
        with patch("tempfile.tempdir", None), patch("tempfile._get_default_tempdir", side_effect=none):
            return bench.refused("train", "--model_name", bench.models["llama"], "--method", "lora")

    return Fault(
        "disk",
        "no room in any folder for temporary files",
        "no temporary file can be written; free some space, or name another folder for them (`export TMPDIR=…`)",
        cause,
    )


def _folder_for_params(folder: Path) -> None:
    (folder / "params.yaml").unlink()
    (folder / "params.yaml").mkdir()


def _loop_for_params(folder: Path) -> None:
    (folder / "params.yaml").unlink()
    (folder / "params.yaml").symlink_to("params.yaml")


FAULTS: list[Fault] = [
    place(
        "a file where the folder of the models belongs",
        "fetch model --model_name {llama}",
        "…/models: is a file, and a folder is needed there; move it away, or give another path",
        lambda folder: (folder / "models").write_text("mine"),
    ),
    place(
        "a file where the plots belong",
        "plot",
        "…/plots: is a file, and a folder is needed there; move it away, or give another path",
        lambda folder: (folder / "plots").write_text("mine"),
    ),
    place(
        "a file where the metrics belong",
        "prepare --model_name {llama}",
        "…/metrics: is a file, and a folder is needed there; move it away, or give another path",
        lambda folder: (folder / "metrics").write_text("mine"),
    ),
    place(
        "a folder called params.yaml",
        "plot",
        "params.yaml: is a folder, and a file is needed; move the folder away, or give another path",
        _folder_for_params,
    ),
    place(
        "params.yaml as a link to itself",
        "plot",
        "params.yaml: is a symbolic link that leads to itself; remove the link",
        _loop_for_params,
    ),
    place(
        "no params.yaml here, nor in a folder above",
        "plot",
        "params.yaml: not found; run this from the repository's root, or from a folder in it",
        lambda folder: (folder / "params.yaml").unlink(),
    ),
    place(
        "a name for the output that is longer than the disk takes",
        f"prepare --out_dir {'x' * 300}",
        "…/xxx…: the name is too long for this disk; shorten it",
        lambda folder: None,
    ),
    refusing(errno.EROFS, "a disk that is mounted read-only", "plots: lies on a read-only disk; write to another one"),
    refusing(
        errno.EACCES,
        "a folder that belongs to someone else",
        "plots: permission denied; change its owner or its permissions",
    ),
    refusing(
        errno.EDQUOT,
        "a quota that is used up",
        "plots: your disk quota is used up; free some space, or write to another disk",
    ),
    refusing(errno.EIO, "a disk that fails", "plots: the disk reports an error; check it, and try again"),
    full_in_the_midst(),
    little_space(),
    full_while_training(),
    no_temporary_folder(),
    the_cache(
        "a read-only cache of DVC's, before the work",
        "DVC's cache, cache/files/md5: lies on a read-only disk; write to another one (`dvc cache dir --local FOLDER`)",
        errno.EROFS,
    ),
    the_cache(
        "a cache of DVC's on the same disk, with room for one of both",
        "DVC's cache, cache/files/md5: 0.70 GB are free on its disk, and about 1.00 GB are needed; free some space, or "
        "write to another disk (`dvc cache dir --local FOLDER`)",
    ),
]
