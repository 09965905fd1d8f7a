"""Where the pipeline's files lie, from the repository's root. dvc.yaml names the same places."""

from dataclasses import dataclass
from pathlib import Path

BASE = Path("models/base")
TUNED = Path("models/tuned")
RAW = Path("data/raw")
PREPARED = Path("data/prepared")
PREDICTIONS = Path("data/predictions")
METRICS = Path("metrics")
PLOTS = Path("plots")
RESULTS = Path("benchmarks/results")
"""Measured once and committed: the comparison, the search, the benchmarks."""

CURVES = Path("live/plots/metrics")
"""Within `PLOTS`: DVCLive's tables, one a metric."""

MEMORY_TABLE = "memory.tsv"
"""Within `PLOTS`: memory against time."""

FACTS = "facts.yaml"
"""In a model or data folder: what it was made of. No .json, which would be one of the user's data files."""


@dataclass(frozen=True)
class Places:
    """Where one stage writes."""

    folder: Path
    metrics: Path
    plots: Path


def places(out_dir: Path | None, folder: Path) -> Places:
    """`folder` and the pipeline's metrics and plots; or all within `out_dir`, if one is given."""
    if out_dir is None:
        return Places(folder, METRICS, PLOTS)
    return Places(out_dir, out_dir / METRICS, out_dir / PLOTS)
