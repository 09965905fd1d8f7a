"""Talk to a fine-tuned model: a conversation, one prompt, or many of a file or of standard input."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import cli, params, places
from finetune.errors import UserError

if TYPE_CHECKING:
    from finetune.data.forms import Turn
    from finetune.generation.request import Sampling
    from finetune.serving.models import Served

_AT_A_TIME = 16


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer. Raises UserError for an empty prompt, a value out of range, or no such model."""
    parser = cli.parser(__doc__, prog="finetune chat")
    parser.add_argument(
        "--ckpt", type=cli.source, default="workspace", metavar="NAME", help=f"the model: {cli.CHECKPOINTS}"
    )
    parser.add_argument("--prompt", help=r"one instruction, or '### Instruction:\n…\n\n### Input:\n…'")
    parser.add_argument("--file", metavar="FILE", help="answer each line of a file (-: of standard input), in batches")
    parser.add_argument("--json", action="store_true", help="print answers as JSON, one object a line")
    parser.add_argument("--max_new_tokens", type=int, metavar="N", help="tokens at most (eval.max_new_tokens)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)")
    parser.add_argument("--top_p", type=float, default=1.0, help="of the likeliest tokens, those with this share (1)")
    parser.add_argument("--top_k", type=int, default=0, help="only so many of the likeliest tokens (0: all)")
    parser.add_argument("--seed", type=int, help="for the same draws again")
    parser.add_argument(
        "--at_a_time", type=cli.count, default=_AT_A_TIME, metavar="N", help="lines answered at a time (%(default)s)"
    )
    args = parser.parse_args(arguments)
    p = params.load({"eval.max_new_tokens": args.max_new_tokens})
    if args.prompt is not None and args.file is not None:
        raise UserError("--prompt and --file: give one of them")
    lines = _lines(args)
    # At its import bitsandbytes has functions compiled that nothing here calls; loading the compiler takes a second.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

    from finetune import device
    from finetune.generation.request import Sampling
    from finetune.serving.models import Models

    sampling = Sampling(args.temperature, args.top_p, args.top_k, args.seed)
    with device.enough_memory("lower --max_new_tokens, or choose a smaller model"):
        models = Models(slots=_AT_A_TIME if lines is None else min(args.at_a_time, len(lines)))
        served = models.add(args.ckpt)
        if lines is None:
            from finetune.serving.conversation import Conversation, typed

            Conversation(models, served, sampling, p.eval.max_new_tokens).hold(typed())
        elif args.prompt is not None and not args.json:
            _stream(served, lines[0], sampling, p.eval.max_new_tokens)
        else:
            _batch(served, lines, sampling, p.eval.max_new_tokens, as_json=args.json)


def _lines(args: Namespace) -> list[list[Turn]] | None:
    """What is to be answered; None for a conversation. Raises UserError for a prompt without an instruction."""
    from finetune.commands import escapes
    from finetune.data import alpaca
    from finetune.data.forms import Turn

    if args.prompt is not None:
        texts, where = [args.prompt], "--prompt"
    elif args.file not in (None, "-"):
        texts, where = _read(places.given(args.file)), args.file
    elif args.file == "-" or not sys.stdin.isatty():
        texts, where = sys.stdin.read().splitlines(), "standard input"
    else:
        return None
    asked = []
    for number, text in enumerate(texts, 1):
        if not text.strip() and args.prompt is None:
            continue
        turn = Turn("user", *alpaca.parse(escapes.unescape(text)))
        if not turn.text:
            line = "" if args.prompt is not None else f", line {number}"
            raise UserError(f"{where}{line}: holds no instruction; write what the model should do")
        asked.append([turn])
    if not asked:
        raise UserError(f"{where}: holds no prompt; write one a line")
    return asked


def _read(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text in UTF-8; save it as that") from None


def _stream(served: Served, turns: list[Turn], sampling: Sampling, max_new_tokens: int) -> None:
    from finetune.serving.answer_stream import answers

    for piece in answers([(served, turns)], sampling, max_new_tokens):
        print(piece.text, end="", flush=True)
    print()


def _batch(served: Served, asked: list[list[Turn]], sampling: Sampling, max_new_tokens: int, *, as_json: bool) -> None:
    """Print the answers in the order of their prompts, each as soon as those before it are there."""
    import json

    from finetune.serving.answer_stream import Piece, answers, whole

    done: dict[int, tuple[Piece, str]] = {}
    printed = 0
    for piece, answer in whole(answers([(served, turns) for turns in asked], sampling, max_new_tokens)):
        done[piece.number] = piece, answer
        while printed in done:
            last, text = done[printed]
            row = {
                "prompt": asked[printed][0].content,
                "model": served.name,
                "answer": text,
                "tokens": last.tokens,
                "finish_reason": last.reason,
            }
            print(json.dumps(row, ensure_ascii=False) if as_json else text.replace("\n", "\\n"), flush=True)
            printed += 1
    tokens = sum(last.tokens for last, _ in done.values())
    print(
        f"{len(done)} answers, {tokens} tokens in {piece.seconds:.1f} s: {tokens / piece.seconds:.0f} tokens/s",
        file=sys.stderr,
    )
