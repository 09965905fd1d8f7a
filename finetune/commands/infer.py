"""Stream an answer to a prompt from a fine-tuned model."""

from collections.abc import Sequence

from finetune import cli, params
from finetune.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer --prompt. Raises UserError for an empty prompt, or no fine-tuned model."""
    parser = cli.parser(__doc__, ["--ckpt"], prog="finetune infer")
    parser.add_argument("--prompt", required=True, help=r"an instruction, or '### Instruction:\n…\n\n### Input:\n…'")
    parser.add_argument("--max_new_tokens", type=int, metavar="N", help="tokens at most (eval.max_new_tokens)")
    args = parser.parse_args(arguments)
    p = params.load({"eval.max_new_tokens": args.max_new_tokens})

    from finetune import device
    from finetune.commands import escapes
    from finetune.data import alpaca
    from finetune.data.prompts import Template
    from finetune.evaluation.generation import stream
    from finetune.models import tokenizer as tokenizers
    from finetune.models.adapters import load_tuned
    from finetune.models.saved import read_facts

    facts = read_facts(args.ckpt)
    instruction, context = alpaca.parse(escapes.unescape(args.prompt))
    if not instruction:
        raise UserError("--prompt: holds no instruction; write what the model shall do")
    tokenizer = tokenizers.load(args.ckpt)
    ids = Template(facts["template"], tokenizer).question_ids(instruction, context)
    with device.enough_memory("lower --max_new_tokens, or choose a smaller model"):
        stream(load_tuned(args.ckpt, facts), tokenizer, ids, p.eval.max_new_tokens)
