"""Stream an answer to a prompt from a fine-tuned model."""

from finetune import cli, errors, params


def main() -> None:
    parser = cli.parser(__doc__, "--ckpt")
    parser.add_argument("--prompt", required=True, help=r"an instruction, or '### Instruction:\n…\n\n### Input:\n…'")
    parser.add_argument("--max_new_tokens", type=int, metavar="N", help="tokens at most (eval.max_new_tokens)")
    args = parser.parse_args()
    p = params.load({"eval.max_new_tokens": args.max_new_tokens})

    from finetune import checkpoint, generation, models, prompts, tokenizers

    facts = checkpoint.read_facts(args.ckpt)
    instruction, context = prompts.parse(prompts.unescape(args.prompt))
    if not instruction:
        raise errors.UserError("--prompt: holds no instruction; write what the model shall do")
    tokenizer = tokenizers.load(args.ckpt)
    prompt = prompts.render(facts["template"], tokenizer, instruction, context)
    ids = prompts.prompt_tokens(facts["template"], tokenizer, prompt)
    model = models.load_tuned(args.ckpt, facts)
    generation.stream(model, tokenizer, ids, p.eval.max_new_tokens)


cli.run(main)
