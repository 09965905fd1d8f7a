"""Trials as a job array of Slurm, one task a trial."""

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from finetune.cluster import trial as trials_file
from finetune.cluster.trial import Needs, Trial
from finetune.errors import UserError
from finetune.files import write_text

JOBS = Path(".dvc/tmp/cluster")
"""A folder for each job: its trials, its script and a log for each of them. All nodes must see it."""


def run(trials: Sequence[Trial], needs: Needs) -> dict[str, str]:
    """Submit the `trials` and wait until all have ended; returns, by name, the last word of each that said one.

    Partition, account and limits come from sbatch's own variables, as in SBATCH_PARTITION. Raises UserError if Slurm
    refuses the job.
    """
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch here; submit from a machine of the Slurm cluster")
    JOBS.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir=JOBS)).resolve()
    trials_file.write(folder / "trials.json", trials)
    write_text(folder / "job.sh", script(len(trials), needs, folder))
    print(f"submitting {folder / 'job.sh'}; if you stop waiting, the job continues", file=sys.stderr)
    if subprocess.run(["sbatch", "--wait", str(folder / "job.sh")]).returncode and not list(folder.glob("*.log")):
        raise UserError("sbatch refuses the job, or ended without a trial; fix what it reports, and submit again")
    return {trial.name: _last_word(folder / f"{index}.log") for index, trial in enumerate(trials)}


def script(count: int, needs: Needs, folder: Path) -> str:
    """The batch script for `count` trials, whose file and logs are in `folder`.

    Each runs as a step (srun), because Slurm sends SIGTERM, upon which training makes a snapshot, to steps alone. A
    machine that fails, or is taken away, gets its trial queued again.
    """
    asked = [f"--cpus-per-task={needs.cpus}", *([f"--gres=gpu:{needs.gpus}"] if needs.gpus else [])]
    here = [sys.executable, "-m", "finetune.commands.main", "cluster", "trial", str(folder / "trials.json")]
    options = [
        "--job-name=finetune",
        f"--array=0-{count - 1}",
        "--ntasks=1",
        *asked,
        "--requeue",
        "--open-mode=append",
        f"--output={folder}/%a.log",
    ]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in options),
            f"srun --ntasks=1 {asked[0]} {shlex.join(here)} $SLURM_ARRAY_TASK_ID --folder {shlex.quote(needs.folder)}",
            "",
        ]
    )


def _last_word(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    said = [line.split("error: ", 1)[1] for line in lines if line.startswith(("error: ", "slurmstepd: error: "))]
    return said[-1] if said else ""
