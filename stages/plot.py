"""Draw the figures of the last run from the tables and predictions that train and eval wrote."""

from pathlib import Path

from finetune import cli, figures, files, params


def main() -> None:
    cli.parser(__doc__).parse_args()
    p = params.load()
    plots, live = Path("plots"), Path("plots/live/plots/metrics")

    figures.loss(live / "train/loss.tsv", live / "validation/loss.tsv", p.method, plots / "loss.png")
    figures.learning_rate(live / "train/learning_rate.tsv", p.method, plots / "learning_rate.png")
    figures.memory(plots / "memory.tsv", p.method, plots / "memory.png")
    base, tuned = (files.read_jsonl(Path(f"data/predictions/{name}.jsonl")) for name in ("base", "tuned"))
    figures.quality(Path("metrics/base.json"), Path("metrics/eval.json"), p.method, plots / "quality.png")
    figures.gain(base, tuned, p.method, plots / "gain.png")


cli.run(main)
