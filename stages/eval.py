"""Answer the test prompts greedily and score the answers: the fine-tuned model, or with --base the untouched one."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import cli, disk, params, places

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


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
    answers_name, metrics_name = _names(args)
    disk.check_writable(out.folder, out.metrics)

    from finetune import device, files
    from finetune.data import prepared
    from finetune.evaluation import scoring
    from finetune.evaluation.generation import generate
    from finetune.kernels.loss import mean_loss, sequence_losses
    from finetune.kernels.packing import TOKENS_PER_PASS
    from finetune.models import probe
    from finetune.models import tokenizer as tokenizers
    from finetune.models.adapters import load_tuned
    from finetune.models.base import load_base
    from finetune.models.ends import add_end_tokens
    from finetune.models.facts import read_facts
    from finetune.models.four_bits import base_in_4_bits
    from finetune.sources.fetch import base_folder

    model: PreTrainedModel | PeftModel
    if args.base or args.base_4bit:
        base = base_in_4_bits(args.model_name) if args.base_4bit else base_folder(args.model_name)
        tokenizer = tokenizers.load(base)
        with device.enough_memory(_ADVICE):
            model = load_base(base, device.compute_dtype())
    else:
        facts = read_facts(args.ckpt)
        tokenizer = tokenizers.load(args.ckpt)
        with device.enough_memory(_ADVICE):
            model = load_tuned(args.ckpt, facts, args.model_name)
    splits, prepared_facts = prepared.load(Path(args.dataset or places.PREPARED), tokenizer)
    test = splits["test"]
    add_end_tokens(model, prepared_facts.get("end_tokens") or [])
    references = list(test["reference"])
    at_best = scoring.score(references, references, p.eval.tokenize)

    with device.enough_memory(_ADVICE):
        probe.check_vocabulary(model, test["input_ids"][:], tokenizer.pad_token_id)
        packed = probe.can_be_packed(model, test["input_ids"][:])
        losses = sequence_losses(model, test, TOKENS_PER_PASS if packed else 1)
        scoring.check_losses(test, losses)
        answers = generate(
            model,
            tokenizer,
            prepared.prompt_ids(test),
            batch_size=p.eval.decode_batch_size,
            max_new_tokens=p.eval.max_new_tokens,
            progress=lambda done: print(f"answered {done} of {len(test)} test prompts", flush=True),
        )
    # Before the scores of the whole, so that answers which took hours are kept whatever comes after them.
    files.write_jsonl(out.folder / f"{answers_name}.jsonl", scoring.beside(test, answers, losses, p.eval.tokenize))

    scores = scoring.score(answers, references, p.eval.tokenize)
    test_loss = mean_loss(losses)
    report = {
        "bleu": round(scores["bleu"], 2),
        "rouge_l": round(scores["rougeL"], 2),
        "test_loss": round(test_loss, 4),
    }
    facts_beside = {
        "rouge_1": round(scores["rouge1"], 2),
        "rouge_2": round(scores["rouge2"], 2),
        "perplexity": scoring.perplexity(test_loss),
        "bleu_signature": scores["bleu_signature"],
        "rouge_signature": scores["rouge_signature"],
        "bleu_at_best": round(at_best["bleu"], 2),
        "rouge_l_at_best": round(at_best["rougeL"], 2),
        "empty_answers": answers.count(""),
    }
    files.write_json(out.metrics / f"{metrics_name}.json", report)
    files.write_json(out.metrics / f"{metrics_name}.facts.json", facts_beside)
    for key, value in (report | facts_beside).items():
        print(f"{key:>16}  {value}")


def _names(args: Namespace) -> tuple[str, str]:
    """What the answers' and the metrics' files are called."""
    if args.base_4bit:
        return "base-4bit", "base-4bit"
    return ("base", "base") if args.base else ("tuned", "eval")


if __name__ == "__main__":
    cli.run(main)
