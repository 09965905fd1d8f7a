"""The card of an export: which model it is, how to run it, and its scores."""

from __future__ import annotations

from finetune import files, places, yaml_file
from finetune.comparison.measures import COSTS, MEMORY_PARTS, SCORES
from finetune.data.prepared import SPLITS
from finetune.device import describe, versions
from finetune.export.make import FOUR_BITS, Export, title
from finetune.export.measure import Measured, TestSet, unlike
from finetune.models import card
from finetune.models.checkpoint import Checkpoint

_LOSS = SCORES["test_loss"]


def text(export: Export, repository: str | None, test: TestSet | None, measured: list[Measured], data: dict) -> str:
    """The whole card.

    `measured` is as `measure.measure` yields it; `data` are the facts of the prepared data, with the number of `records`
    of each split if the checkpoint was trained on them.
    """
    relation = "adapter" if export.format == "adapter" else "finetune"
    parts = [
        card.front_matter(export.checkpoint, relation=relation, tags=_tags(export)),
        f"# {title(export)}",
        _which(export),
        f"## Run it\n\n{_usage(export, repository or 'PATH')}",
        f"## Scores\n\n{_scores(export, test, measured, data)}",
        f"## How it was made\n\n{_made(export)}",
        f"## Data and licences\n\n{_counts(data)}{card.origins(export.checkpoint)}",
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def table(test: TestSet, measured: list[Measured]) -> list[list[str]]:
    """A row for each model: test loss, difference from the checkpoint with its interval, answers that differ."""
    before = measured[0]
    rows = [["model", "test loss", "difference [95% interval]", f"answers that differ, of {len(before.answers)}"]]
    for one in measured:
        loss = test.loss(one)
        rows.append(
            [
                one.name,
                "-" if loss is None else _LOSS.text(loss),
                "-" if one is before else difference(test, one, before),
                "-" if one is before else str(unlike(one, before)),
            ]
        )
    return rows


def difference(test: TestSet, after: Measured, before: Measured) -> str:
    """As in '+0.012 [+0.004, +0.020]', without an interval if there are too few examples for one."""
    found = test.difference(after, before)
    if found is None:
        return "-"
    value, low, high = (f"{number:+.4f}" for number in (found.value, found.low, found.high))
    return f"{value} (too few examples for an interval)" if low == "-inf" else f"{value} [{low}, {high}]"


def _tags(export: Export) -> tuple[str, ...]:
    return ("gguf",) if export.format == "gguf" else ()


def _which(export: Export) -> str:
    if not export.checkpoint.method.quantized:
        return ""
    if export.format == "adapter":
        return (
            "This adapter was trained over a base model in four bits, and holds part of what that rounding lost. Over the "
            "original 16-bit weights it gives another model, whose scores are below as well."
        )
    four = export.onto == FOUR_BITS
    own = "the four bits that the adapter was trained over, de-quantised" if four else "the original 16-bit weights"
    other = "the original 16-bit weights" if four else "the four bits that the adapter was trained over"
    return (
        f"The adapter was merged onto {own}. Merged onto {other} it would be another model: the adapter was trained over "
        f"the four bits, and holds part of what that rounding lost. Both were scored."
    )


def _usage(export: Export, name: str) -> str:
    if export.format == "gguf":
        return (
            f"```bash\nllama-cli -m {export.file}        # llama.cpp; the chat template is in the file\n```\n\n"
            f'```python\nfrom llama_cpp import Llama\n\nllama = Llama("{export.file}")\n'
            f'llama.create_chat_completion([{{"role": "user", "content": "…"}}])\n```'
        )
    load = f'model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")'
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    note = ""
    if export.format == "adapter":
        imports = f"from peft import PeftModel\n{imports}"
        load = f'{_load_base(export)}\nmodel = PeftModel.from_pretrained(model, "{name}")'
        note = _get_base(export)
    return (
        f'{note}```python\n{imports}\n\ntokenizer = AutoTokenizer.from_pretrained("{name}")\n{load}\n'
        'messages = [{"role": "user", "content": "…"}]\n'
        'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=128)[0]))\n```"
    )


def _load_base(export: Export) -> str:
    """Code that loads the base that the adapter was trained over."""
    source = export.checkpoint.base_source
    made_here = "made_of" in source
    if "hub" in source and not made_here:
        return f'model = AutoModelForCausalLM.from_pretrained("{source["hub"]}", revision="{source["commit"]}")'
    return f'model = AutoModelForCausalLM.from_pretrained("{places.BASE_4BIT if made_here else places.BASE}")'


def _get_base(export: Export) -> str:
    """Where to get the base, in words."""
    source, steps = export.checkpoint.base_source, ["`python stages/fetch.py model`"]
    made_here = "made_of" in source  # rounded by the quantize stage
    if "hub" in source and not made_here:
        return ""
    if made_here:
        steps += ["`python stages/fetch.py data`", "`python stages/prepare.py`", "`python stages/quantize.py`"]
    return (
        f"The adapter goes over weights with the fingerprint `{export.checkpoint.base_fingerprint or 'unknown'}`: "
        f"{card.whence(source)}{', rounded to four bits' if made_here else ''}. In the repository that made it, they are made by "
        f"{', '.join(steps)}.\n\n"
    )


def _scores(export: Export, test: TestSet | None, measured: list[Measured], data: dict) -> str:
    if test is None:
        return "Not scored: there were no prepared test examples for this model."
    head, *rows = table(test, measured)
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---", *["---:"] * 3], *rows)]
    return "\n".join(
        [
            *lines,
            "",
            *_two_bases(export, test, measured),
            f"On {len(test)} test examples of {data['data']['source']}; loss in {_LOSS.unit}. Differences are from the "
            f"checkpoint, their intervals by a bootstrap over the examples. Answers are greedy, to the first "
            f"{len(measured[0].answers)} test prompts, and count as different if one character differs: where two tokens "
            f"are all but equally likely, rounding alone changes an answer from there on.",
        ]
    )


def _two_bases(export: Export, test: TestSet, measured: list[Measured]) -> list[str]:
    """How the model merged onto the original weights differs from the one merged onto four bits, if both were scored."""
    own = export.own_base
    if own is None or export.other_base is None:
        return []
    by_base = {one.base: one for one in measured}
    four, original = by_base[own], by_base[own.original]
    return [
        f"From four bits to the original weights the test loss changes by {difference(test, original, four)}, and "
        f"{unlike(original, four)} of {len(four.answers)} answers change.",
        "",
    ]


def _made(export: Export) -> str:
    made = export.checkpoint
    settings = {"method": made.method.name, "seed": made.seed, "template": made.template} | made.settings
    if "quantization" in made.base_source:
        settings["quantization"] = made.base_source["quantization"]
    written = yaml_file.text(settings)
    costs = _costs(made)
    rows = [
        f"- {measure.heading}: {measure.text(costs[key])}"
        for key, measure in COSTS.items()
        if key in costs.keys() - MEMORY_PARTS
    ]
    rows += [f"- Trained on: {costs['hardware']}; {costs['versions']}"] if costs else []
    rows += [f"- Exported and scored on: {describe()}; {versions()}"]
    return f"```yaml\n{written}```\n\n" + "\n".join(rows)


def _counts(data: dict) -> str:
    if "records" not in data:
        return ""
    train, validation, test = (data["records"][split] for split in SPLITS)
    return f"- Records: {train} to train on, {validation} for validation, {test} to test\n"


def _costs(checkpoint: Checkpoint) -> dict:
    """What training cost, where the figures are those of this checkpoint."""
    for folder in (checkpoint.folder / places.METRICS, places.METRICS):
        beside = folder / "train.facts.json"
        if beside.exists() and (told := files.read_json(beside)).get("weights") == checkpoint.fingerprint:
            return told | files.read_json(folder / "train.json")
    return {}
