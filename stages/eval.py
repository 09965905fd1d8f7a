"""Answer the test prompts greedily and score the answers: the fine-tuned model, or with --base the untouched one."""

from __future__ import annotations

from argparse import Namespace
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import cli, files, params, places
from finetune.distributed import launcher

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from finetune.distributed.group import Group
    from finetune.kernels.loss import SequenceLoss


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
        _score(args, p, out, group)


def _score(args: Namespace, p: params.Params, out: places.Places, group: Group) -> None:
    """The part of this process, which writes if it is the first of `group`."""
    from finetune import device
    from finetune.data import prepared
    from finetune.distributed.folders import for_all
    from finetune.evaluation import portions, scoring
    from finetune.generation import greedy
    from finetune.kernels.packing import TOKENS_PER_FORWARD
    from finetune.models import probe
    from finetune.models.base import Base, files_without_weights
    from finetune.models.checkpoint import Checkpoint
    from finetune.models.loading import add_end_tokens, load_base, load_tuned
    from finetune.snapshots.identity import identity
    from finetune.snapshots.unfinished import unfinished

    model: PreTrainedModel | PeftModel
    if args.base or args.base_4bit:
        base = Base.named(args.model_name, in_4_bits=args.base_4bit)
        tokenizer = base.tokenizer
        with device.enough_memory(_ADVICE):
            model = load_base(base, device.compute_dtype())
        parts: list[Base | Checkpoint] = [base]
    else:
        checkpoint = Checkpoint.read(args.ckpt)
        tokenizer = checkpoint.tokenizer
        below = checkpoint.base(args.model_name)
        with device.enough_memory(_ADVICE):
            model = load_tuned(checkpoint, below)
        parts = [checkpoint, below] if below else [checkpoint]
    data = Path(args.dataset or places.PREPARED)
    splits, prepared_facts = prepared.load(data, tokenizer)
    test = splits["test"]
    add_end_tokens(model, prepared_facts.get("end_tokens") or [])
    prompts = prepared.prompt_ids(test)
    greedy.check_fits(model, prompts, p.eval.max_new_tokens)
    references = list(test["reference"])
    at_best = scoring.score(references, references, p.eval.tokenize)

    answers_name, metrics_name = _names(args)
    metrics = out.metrics / f"{metrics_name}.json"
    settings = {"of": answers_name, "eval": vars(p.eval), "weights": [part.fingerprint for part in parts]}
    run = identity(
        _stage(args), settings, [data, *chain.from_iterable(files_without_weights(part.folder) for part in parts)]
    )
    group.agree(run, "settings, data, model, code or versions")
    with (
        unfinished(_stage(args), run, metrics) if group.is_first else nullcontext() as own,
        for_all(own, group) as kept,
    ):
        with device.enough_memory(_ADVICE):
            probe.check_vocabulary(model, max(prepared.highest_token(test), tokenizer.pad_token_id))
            packed = probe.can_be_packed(model, prepared.extremes(test))
            losses = portions.losses(model, test, TOKENS_PER_FORWARD if packed else 1, kept, group)
            scoring.check_losses(test, losses)
            answers = portions.answers(
                model,
                tokenizer,
                prompts,
                kept,
                group,
                batch_size=p.eval.decode_batch_size,
                max_new_tokens=p.eval.max_new_tokens,
            )
        if not group.is_first:
            return
        # Before the scores of the whole, so that answers which took hours are kept whatever comes after them.
        texts = test.select_columns(["record", "prompt", "reference"])
        files.write_jsonl(out.folder / f"{answers_name}.jsonl", scoring.beside(texts, answers, losses, p.eval.tokenize))
        report, facts = _figures(answers, references, losses, at_best, p.eval.tokenize)
        files.write_json(metrics, report)
        files.write_json(metrics.with_suffix(".facts.json"), facts)
    for key, value in (report | facts).items():
        print(f"{key:>16}  {value}")


def _figures(
    answers: list[str], references: list[str], losses: list[SequenceLoss], at_best: dict, tokenize: str
) -> tuple[dict, dict]:
    """The figures of the answers that people look at, and those that stand beside them."""
    from finetune.evaluation import scoring
    from finetune.kernels.loss import mean_loss

    scores = scoring.score(answers, references, tokenize)
    test_loss = mean_loss(losses)
    report = {
        "bleu": round(scores["bleu"], 2),
        "rouge_l": round(scores["rougeL"], 2),
        "test_loss": round(test_loss, 4),
    }
    beside = {
        "rouge_1": round(scores["rouge1"], 2),
        "rouge_2": round(scores["rouge2"], 2),
        "perplexity": scoring.perplexity(test_loss),
        "bleu_signature": scores["bleu_signature"],
        "rouge_signature": scores["rouge_signature"],
        "bleu_at_best": round(at_best["bleu"], 2),
        "rouge_l_at_best": round(at_best["rougeL"], 2),
        "empty_answers": answers.count(""),
    }
    return report, beside


def _stage(args: Namespace) -> str:
    """What dvc.yaml calls the stage."""
    return "baseline" if args.base or args.base_4bit else "eval"


def _names(args: Namespace) -> tuple[str, str]:
    """What the answers' and the metrics' files are called."""
    if args.base_4bit:
        return "base-4bit", "base-4bit"
    return ("base", "base") if args.base else ("tuned", "eval")


if __name__ == "__main__":
    cli.run(main)
