"""Live metrics through DVCLive: one table a metric, readable while training runs."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.files import disk_named
from finetune.training.run_log import Log


@contextmanager
def live_log(folder: Path) -> Iterator[Log]:
    """Yield a function that logs values of an optimizer step under `folder`; a failed block leaves nothing.

    The function raises UserError if the disk is full, or refuses.
    """
    from dvclive import Live

    live = Live(str(folder), save_dvc_exp=False, dvcyaml=None)

    def log(step: int, values: dict[str, float]) -> None:
        live.step = step
        with disk_named(folder):
            for name, value in values.items():
                live.log_metric(name, value)
            live.make_summary()

    try:
        yield log
        with disk_named(folder):
            live.end()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
