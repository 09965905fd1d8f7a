"""Draw the figures of the last run from the tables and predictions that train and eval wrote."""

from finetune import cli, files, params, places


def main() -> None:
    """Draw plots/*.png."""
    cli.parser(__doc__).parse_args()
    p = params.load()
    files.check_writable(places.PLOTS)

    from finetune.figures import run as figures
    from finetune.methods import METHODS

    method, plots, curves = METHODS[p.method], places.PLOTS, places.PLOTS / places.CURVES
    kept_step = files.read_json(places.METRICS / "train.json")["kept_step"]
    figures.loss(curves / "train/loss.tsv", curves / "validation/loss.tsv", kept_step, method, plots / "loss.png")
    figures.learning_rate(curves / "train/learning_rate.tsv", method, plots / "learning_rate.png")
    figures.memory(plots / places.MEMORY_TABLE, method, plots / "memory.png")
    base, tuned = (files.read_jsonl(places.PREDICTIONS / f"{name}.jsonl") for name in ("base", "tuned"))
    figures.gain(base, tuned, method, plots / "gain.png")
    base_scores, tuned_scores = (
        files.read_json(places.METRICS / f"{name}.json") | files.read_json(places.METRICS / f"{name}.facts.json")
        for name in ("base", "eval")
    )
    figures.quality(base_scores, tuned_scores, method, plots / "quality.png")


if __name__ == "__main__":
    cli.run(main)
