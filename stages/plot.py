"""Draw the plots of the last run from the tables and predictions that train and eval wrote."""

from finetune import cli, files, params, places


def main() -> None:
    """Draw plots/*.png."""
    cli.parser(__doc__).parse_args()
    p = params.load()
    files.check_writable(places.PLOTS)

    from finetune import plots
    from finetune.methods import METHODS

    method, out, curves = METHODS[p.method], places.PLOTS, places.PLOTS / places.CURVES
    kept_step = files.read_json(places.METRICS / "train.json")["kept_step"]
    plots.loss(curves / "train/loss.tsv", curves / "validation/loss.tsv", kept_step, method, out / "loss.png")
    plots.learning_rate(curves / "train/learning_rate.tsv", method, out / "learning_rate.png")
    plots.memory(out / places.MEMORY_TABLE, method, out / "memory.png")
    base, tuned = (files.read_jsonl(places.PREDICTIONS / f"{name}.jsonl") for name in ("base", "tuned"))
    plots.gain(base, tuned, method, out / "gain.png")
    base_scores, tuned_scores = (
        files.read_json(places.METRICS / f"{name}.json") | files.read_json(places.METRICS / f"{name}.facts.json")
        for name in ("base", "eval")
    )
    plots.quality(base_scores, tuned_scores, method, out / "quality.png")


if __name__ == "__main__":
    cli.run(main)
