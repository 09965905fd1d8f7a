"""Answer the test prompts greedily and score the answers: the fine-tuned model, or with --base the untouched one."""

import math
from pathlib import Path

from finetune import cli, params


def main() -> None:
    parser = cli.parser(__doc__, "--ckpt", "--dataset", "--model_name", "--out_dir")
    parser.add_argument("--base", action="store_true", help="evaluate the base model instead of the checkpoint")
    args = parser.parse_args()
    p = params.load()
    prepared = Path(args.dataset or "data/prepared")
    folder, metrics, _ = cli.places(args.out_dir, "data/predictions")
    name = "base" if args.base else "tuned"

    from finetune import (
        checkpoint,
        dataset,
        files,
        generation,
        hardware,
        loss,
        models,
        scoring,
        sources,
        tokenizers,
    )

    if args.base:
        base = sources.base_folder(args.model_name)
        tokenizer = tokenizers.load(base)
        model = models.load_base(base, hardware.compute_dtype())
    else:
        facts = checkpoint.read_facts(args.ckpt)
        tokenizer = tokenizers.load(args.ckpt)
        model = models.load_tuned(args.ckpt, facts, args.model_name)
    test = dataset.load(prepared, tokenizer)[0]["test"]

    losses = loss.sequence_losses(model, test)
    answers = generation.generate(
        model,
        tokenizer,
        dataset.prompt_ids(test),
        batch_size=p.eval.decode_batch_size,
        max_new_tokens=p.eval.max_new_tokens,
        progress=lambda done: print(f"answered {done} of {len(test)} test prompts", flush=True),
    )
    scores = scoring.score(answers, test["reference"])

    test_loss = loss.mean_loss(losses)

    files.write_jsonl(folder / f"{name}.jsonl", scoring.beside(test, answers, losses))
    report = {
        "bleu": round(scores["bleu"], 2),
        "rouge_l": round(scores["rougeL"], 2),
        "rouge_1": round(scores["rouge1"], 2),
        "rouge_2": round(scores["rouge2"], 2),
        "test_loss": round(test_loss, 4),
        "perplexity": round(math.exp(test_loss), 3),
    }
    metric, prefix = ("base", "base_") if args.base else ("eval", "")
    files.write_json(metrics / f"{metric}.json", {f"{prefix}{key}": value for key, value in report.items()})
    files.write_json(
        metrics / f"{metric}.about.json",
        {"bleu_signature": scores["bleu_signature"], "rouge_signature": scores["rouge_signature"]},
    )
    for key, value in report.items():
        print(f"{key:>10}  {value}")


cli.run(main)
