"""The comparison table: runs of the pipeline side by side, in Markdown."""

import json
from pathlib import Path

from finetune.errors import UserError
from finetune.files import write_text

TABLES = {"comparison": "make compare", "sweep": "make sweep", "cost": "make benchmark", "scale": "make benchmark"}
"""The README's generated tables, and what makes them."""

ROWS = (
    ("BLEU", "bleu", "{:.1f}"),
    ("ROUGE-L", "rouge_l", "{:.1f}"),
    ("ROUGE-1 / ROUGE-2", "rouge_1_2", "{}"),
    ("Test loss (nats per token)", "test_loss", "{:.3f}"),
    ("Test perplexity", "perplexity", "{:.2f}"),
    ("Peak process memory (GB)", "peak_process_memory_gb", "{:.2f}"),
    ("Peak device memory (GB)", "peak_device_memory_gb", "{:.2f}"),
    ("Time per epoch (s)", "seconds_per_epoch", "{:.0f}"),
    ("Training speed (tokens/s)", "tokens_per_second", "{:.0f}"),
    ("Trained parameters", "trainable_parameters", "{:,}"),
    ("Weights to keep (GB)", "weights_to_keep_gb", "{:.3f}"),
)

METRICS = ("data", "base", "train", "eval")


def workspace_metrics() -> dict[str, dict]:
    """metrics/*.json as the last run left them. Raises UserError if one is missing."""
    found = {}
    for name in METRICS:
        path = Path(f"metrics/{name}.json")
        if not path.exists():
            raise UserError(f"{path}: not there yet; run `dvc repro` first")
        found[name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def revision_metrics(revision: str) -> dict[str, dict]:
    """metrics/*.json of a Git revision or DVC experiment.

    Raises UserError if there is no such revision, or it holds no complete run.
    """
    import dvc.api
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError

    found = {}
    for name in METRICS:
        try:
            found[name] = json.loads(dvc.api.read(f"metrics/{name}.json", rev=revision))
        except SCMError:
            raise UserError(f"{revision}: no such revision or experiment; `dvc exp show` lists them") from None
        except (DvcException, FileNotFoundError):
            raise UserError(
                f"{revision}: holds no metrics/{name}.json; run `dvc exp run -n {revision}` first"
            ) from None
    return found


def comparison(runs: dict[str, dict[str, dict]]) -> dict:
    """Columns of the table (base first, then each run) and what they share.

    Raises UserError unless all runs saw the same data and base model on the same hardware.
    """
    names = list(runs)
    first = runs[names[0]]
    for name in names[1:]:
        for what, same in (
            ("data", runs[name]["data"] == first["data"]),
            ("base model or its scores", runs[name]["base"] == first["base"]),
            ("hardware", runs[name]["train"]["hardware"] == first["train"]["hardware"]),
        ):
            if not same:
                raise UserError(f"{name} and {names[0]} differ in {what}; compare runs that share it")
    columns = {"base": first["base"]} | {name: run["train"] | run["eval"] for name, run in runs.items()}
    keys = {key for _, key, _ in ROWS} | {"rouge_1", "rouge_2"}
    return {
        "columns": {name: {k: v for k, v in column.items() if k in keys} for name, column in columns.items()},
        "training_examples": first["data"]["train_records"],
        "test_examples": first["base"]["test_examples"],
        "hardware": first["train"]["hardware"],
        "versions": first["train"]["versions"],
        "bleu_signature": first["base"]["bleu_signature"],
        "rouge_signature": first["base"]["rouge_signature"],
    }


def markdown(data: dict) -> str:
    """`comparison` as a Markdown table with a line on how it came about."""
    names = list(data["columns"])
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for title, key, form in ROWS:
        lines.append(f"| {title} | " + " | ".join(_cell(data["columns"][name], key, form) for name in names) + " |")
    lines += [
        "",
        f"{data['training_examples']} training and {data['test_examples']} test examples; {data['hardware']}; "
        f"{data['versions']}. BLEU: `{data['bleu_signature']}`; ROUGE: `{data['rouge_signature']}`.",
    ]
    return "\n".join(lines)


def _cell(column: dict, key: str, form: str) -> str:
    if key == "rouge_1_2":
        return f"{column['rouge_1']:.1f} / {column['rouge_2']:.1f}"
    return form.format(column[key]) if key in column else "-"


def put_in_readme(name: str, table: str, readme: Path) -> None:
    """Replace what stands between the markers of table `name` in `readme`. Raises UserError if they are missing."""
    start, end = _markers(name)
    head, _, rest = readme.read_text(encoding="utf-8").partition(start)
    _, found, tail = rest.partition(end)
    if not found:
        raise UserError(f"{readme}: the markers {start} and {end} are missing; put them where the table belongs")
    write_text(readme, f"{head}{start}\n\n{table.strip()}\n\n{end}{tail}")


def in_readme(name: str, readme: Path) -> str:
    """What stands between the markers of table `name`."""
    start, end = _markers(name)
    return readme.read_text(encoding="utf-8").split(start)[1].split(end)[0].strip()


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: generated by `{TABLES[name]}` -->", f"<!-- end of {name} -->"
