"""Answer the test prompts greedily and score the answers: the fine-tuned model, or with --base the untouched one."""

from __future__ import annotations

from argparse import Namespace
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import cli, files, params, places
from finetune.distributed import launcher

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetune.distributed.group import Group
    from finetune.kernels.loss import SequenceLoss
    from finetune.models.base import Base
    from finetune.models.checkpoint import Checkpoint


_ADVICE = "lower eval.decode_batch_size or eval.max_new_tokens, or choose a smaller model"
"""What helps when scoring takes more memory than there is."""


def main() -> None:
    """Score the checkpoint, or the base model."""
    parser = cli.parser(__doc__, ["--ckpt", "--dataset", "--model_name", "--out_dir"])
    parser.add_argument("--base", action="store_true", help="evaluate the base model instead of the checkpoint")
    parser.add_argument("--base_4bit", action="store_true", help="evaluate the base model as quantize has rounded it")
    args = parser.parse_args()
    p = params.load()
    out = places.places(args.out_dir, places.PREDICTIONS)
    files.check_writable(out.folder, out.metrics)
    if launcher.launched(p.launch.processes):
        return

    from finetune.distributed.group import joined

    with joined() as group:
        _evaluate(args, p.eval, out, group)


def _evaluate(args: Namespace, settings: params.Eval, out: places.Places, group: Group) -> None:
    """The share of this process, which writes if it is the first of `group`."""
    from finetune.distributed.folders import for_all
    from finetune.evaluation import scoring
    from finetune.snapshots.unfinished import unfinished

    data = Path(args.dataset or places.PREPARED)
    stage, answers_name, metrics_name = _names(args)
    metrics = out.metrics / f"{metrics_name}.json"
    subject = _loaded(args)
    test = _test_split(subject, data, settings)
    references = list(test["reference"])
    at_best = scoring.score(references, references, settings.tokenize)
    run = _identity(stage, answers_name, settings, data, subject, group)
    with (
        unfinished(stage, run, metrics) if group.is_first else nullcontext() as own,
        for_all(own, group) as kept,
    ):
        losses, answers = _losses_and_answers(subject, test, settings, kept, group)
        if group.is_first:
            _write(test, answers, losses, at_best, settings, out.folder / f"{answers_name}.jsonl", metrics)


@dataclass(frozen=True)
class _Subject:
    """What is scored."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    parts: list[Base | Checkpoint]
    """What it was loaded from."""


def _loaded(args: Namespace) -> _Subject:
    """The model that the flags name, in memory."""
    from finetune import device
    from finetune.models.base import Base
    from finetune.models.checkpoint import Checkpoint
    from finetune.models.loading import load_base, load_tuned

    if args.base or args.base_4bit:
        base = Base.named(args.model_name, in_4_bits=args.base_4bit)
        tokenizer = base.tokenizer
        with device.enough_memory(_ADVICE):
            return _Subject(load_base(base, device.compute_dtype()), tokenizer, [base])
    checkpoint = Checkpoint.read(args.ckpt)
    tokenizer, below = checkpoint.tokenizer, checkpoint.base(args.model_name)
    with device.enough_memory(_ADVICE):
        model = load_tuned(checkpoint, below)
    return _Subject(model, tokenizer, [checkpoint, below] if below else [checkpoint])


def _test_split(subject: _Subject, data: Path, settings: params.Eval) -> Dataset:
    """The prepared test split; the model ends its answers as its template does from here on.

    Raises UserError if a prompt and its answer don't fit the model.
    """
    from finetune.data import prepared
    from finetune.generation import greedy
    from finetune.models.loading import add_end_tokens

    splits, facts = prepared.load(data, subject.tokenizer)
    add_end_tokens(subject.model, facts.get("end_tokens") or [])
    greedy.check_fits(subject.model, prepared.prompt_ids(splits["test"]), settings.max_new_tokens)
    return splits["test"]


def _identity(stage: str, answers_name: str, settings: params.Eval, data: Path, subject: _Subject, group: Group) -> str:
    """What tells this run's unfinished work from another's, the same in each process of `group`."""
    from finetune.models.base import files_without_weights
    from finetune.snapshots.identity import identity

    told = {"of": answers_name, "eval": vars(settings), "weights": [part.fingerprint for part in subject.parts]}
    others = chain.from_iterable(files_without_weights(part.folder) for part in subject.parts)
    run = identity(stage, told, [data, *others])
    group.agree(run, "settings, data, model, code or versions")
    return run


def _losses_and_answers(
    subject: _Subject, test: Dataset, settings: params.Eval, kept: Path, group: Group
) -> tuple[list[SequenceLoss], list[str]]:
    """The loss of each record and the answer to its prompt; what an interrupted run has `kept` isn't computed again."""
    from finetune import device
    from finetune.data import prepared
    from finetune.evaluation import portions, scoring
    from finetune.kernels.packing import TOKENS_PER_FORWARD
    from finetune.models.check_model import check_model

    model, tokenizer = subject.model, subject.tokenizer
    with device.enough_memory(_ADVICE):
        packed = check_model(model, test, tokenizer.pad_token_id)
        losses = portions.losses(model, test, TOKENS_PER_FORWARD if packed else 1, kept, group)
        scoring.check_losses(test, losses)
        answers = portions.answers(
            model,
            tokenizer,
            prepared.prompt_ids(test),
            kept,
            group,
            batch_size=settings.decode_batch_size,
            max_new_tokens=settings.max_new_tokens,
        )
    return losses, answers


def _write(
    test: Dataset,
    answers: list[str],
    losses: list[SequenceLoss],
    at_best: dict,
    settings: params.Eval,
    answers_file: Path,
    metrics: Path,
) -> None:
    """Write the answers, each with its scores, and the scores of the whole; print those."""
    from finetune.evaluation import scoring

    # Before the scores of the whole, so that answers which took hours are kept whatever comes after them.
    texts = test.select_columns(["record", "prompt", "reference"])
    files.write_jsonl(answers_file, scoring.scored_rows(texts, answers, losses, settings.tokenize))
    figures, facts = scoring.report(answers, list(test["reference"]), losses, at_best, settings.tokenize)
    files.write_json(metrics, figures)
    files.write_json(metrics.with_suffix(".facts.json"), facts)
    for key, value in (figures | facts).items():
        print(f"{key:>16}  {value}")


def _names(args: Namespace) -> tuple[str, str, str]:
    """What dvc.yaml calls the stage, and what the answers' and the metrics' files are called."""
    if args.base_4bit:
        return "baseline", "base-4bit", "base-4bit"
    return ("baseline", "base", "base") if args.base else ("eval", "tuned", "eval")


if __name__ == "__main__":
    cli.run(main)
