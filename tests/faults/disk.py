"""A disk that is full, or a place that can't be written."""

import errno
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

from helpers import stage

from faults import Bench, Fault


def place(what: str, stage: str, names: str, spoil: Callable[[Path], object]) -> Fault:
    """A workspace that `spoil` changed, and a stage that writes there."""

    def cause(bench: Bench) -> str:
        spoil(bench.folder)
        return bench.refused(*stage.format(**bench.models).split())

    return Fault("disk", what, names, cause)


def refusing(number: int, what: str, names: str) -> Fault:
    """A disk that refuses every new file with an error of the system's."""

    def cause(bench: Bench) -> str:
        refused = OSError(number, os.strerror(number))
        with patch("finetune.files.tempfile.TemporaryFile", side_effect=refused):
            return bench.refused("plot")

    return Fault("disk", what, names, cause)


def full_in_the_midst() -> Fault:
    """The disk fills up while a model is copied."""

    def cause(bench: Bench) -> str:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with patch("finetune.sources.fetch.shutil.copy", side_effect=full):
            return bench.refused("fetch", "model", "--model_name", bench.models["llama"])

    return Fault(
        "disk", "a disk that fills up while a stage writes", "models/base: … disk is full … free some space", cause
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
        "models/base: … 0.20 GB … 0.50 GB … free some space",
        cause,
    )


def the_cache(what: str, names: str, number: int | None = None) -> Fault:
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

    return Fault("disk", what, names, cause)


def full_while_training() -> Fault:
    """The disk fills up at a step's metrics."""

    def cause(bench: Bench) -> str:
        stage("prepare", "--model_name", bench.models["llama"])
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with patch("dvclive.Live.make_summary", side_effect=full):
            return bench.refused("train", "--model_name", bench.models["llama"], "--method", "lora")

    return Fault(
        "disk", "a disk that fills up while a model is trained", "plots/live: … disk is full … free some space", cause
    )


def no_temporary_folder() -> Fault:
    """All places for temporary files are full, or refuse."""

    def cause(bench: Bench) -> str:
        stage("prepare", "--model_name", bench.models["llama"])
        none = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
        with patch("tempfile.tempdir", None), patch("tempfile._get_default_tempdir", side_effect=none):
            return bench.refused("train", "--model_name", bench.models["llama"], "--method", "lora")

    return Fault("disk", "no room in any folder for temporary files", "temporary … `export TMPDIR=", cause)


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
        "/models: … file … folder",
        lambda folder: (folder / "models").write_text("mine"),
    ),
    place(
        "a file where the plots belong",
        "plot",
        "/plots: … file … folder",
        lambda folder: (folder / "plots").write_text("mine"),
    ),
    place(
        "a file where the metrics belong",
        "prepare --model_name {llama}",
        "/metrics: … file … folder",
        lambda folder: (folder / "metrics").write_text("mine"),
    ),
    place("a folder called params.yaml", "plot", "params.yaml: … folder … file", _folder_for_params),
    place("params.yaml as a link to itself", "plot", "params.yaml: … link … itself … remove", _loop_for_params),
    place(
        "no params.yaml here, nor in a folder above",
        "plot",
        "params.yaml: … not found … root",
        lambda folder: (folder / "params.yaml").unlink(),
    ),
    place(
        "a name for the output that is longer than the disk takes",
        f"prepare --out_dir {'x' * 300}",
        "name is too long … shorten",
        lambda folder: None,
    ),
    refusing(errno.EROFS, "a disk that is mounted read-only", "plots: … read-only disk"),
    refusing(errno.EACCES, "a folder that belongs to someone else", "plots: … permission … owner"),
    refusing(errno.EDQUOT, "a quota that is used up", "plots: … quota … free some space"),
    refusing(errno.EIO, "a disk that fails", "plots: … disk … error … check"),
    full_in_the_midst(),
    little_space(),
    full_while_training(),
    no_temporary_folder(),
    the_cache(
        "a read-only cache of DVC's, before the work",
        "DVC's cache … cache/files/md5: … read-only … `dvc cache dir --local FOLDER`",
        errno.EROFS,
    ),
    the_cache(
        "a cache of DVC's on the same disk, with room for one of both",
        "DVC's cache … cache/files/md5: … 0.70 GB … 1.00 GB … `dvc cache dir --local FOLDER`",
    ),
]
