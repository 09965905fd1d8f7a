"""A conversation at the terminal: questions, answers as they come, and commands that start with a slash."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field

from finetune import cli
from finetune.data import alpaca
from finetune.data.forms import Turn
from finetune.errors import UserError
from finetune.generation.request import Sampling
from finetune.serving.answer_stream import Piece, answers, whole
from finetune.serving.models import Models, Served

HELP = """\
/use NAME               answer by another model from now on; the conversation stays
/compare NAME NAME …    answer the last question by each of these, side by side in one batch
/adapters               the models in memory
/reset                  start a new conversation
/quit                   leave (as does Ctrl-D)
A NAME is a DVC experiment, a Git revision, a registered version as in haiku@v2, a folder, workspace, or base.
Ctrl-C stops an answer."""


@dataclass
class Conversation:
    """Who answers, how, and what was said."""

    models: Models
    current: Served
    sampling: Sampling
    max_new_tokens: int
    turns: list[Turn] = field(default_factory=list)

    def hold(self, lines: Iterator[str]) -> None:
        """Answer `lines` until they end or one is /quit. What is wrong with one is said in a sentence."""
        print(f"{self.current.name} answers. /help lists the commands.", file=sys.stderr)
        for line in lines:
            if line.strip() == "/quit":
                return
            try:
                self._answer(line.strip())
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                print("\nstopped", file=sys.stderr)

    def _answer(self, line: str) -> None:
        if not line.startswith("/"):
            self._ask(line)
            return
        name, *arguments = line.split()
        commands = {
            "/use": self._use,
            "/compare": self._compare,
            "/adapters": self._adapters,
            "/reset": self._reset,
            "/help": lambda _: print(HELP),
        }
        if name not in commands:
            raise UserError(f"{name}: no such command; /help lists them")
        commands[name](arguments)

    def _ask(self, line: str) -> None:
        turns = [*self.turns, Turn("user", *alpaca.parse(line))]
        said: list[str] = []
        try:
            with closing(answers([(self.current, turns)], self.sampling, self.max_new_tokens)) as pieces:
                for piece in pieces:
                    print(piece.text, end="", flush=True)
                    said.append(piece.text)
        finally:
            if said:
                print()
                # What was stopped in the middle was said all the same.
                self.turns = [*turns, Turn("assistant", "".join(said))]

    def _use(self, names: Sequence[str]) -> None:
        if len(names) != 1:
            raise UserError("/use: takes one name, as in /use base")
        self.current = self.models.add(cli.source(names[0]))
        print(f"{self.current.name} answers", file=sys.stderr)

    def _compare(self, names: Sequence[str]) -> None:
        questions = [number for number, turn in enumerate(self.turns) if turn.role == "user"]
        if not names:
            raise UserError("/compare: takes the models' names, as in /compare workspace base")
        if not questions:
            raise UserError("/compare: there is no question yet; ask one first")
        turns = self.turns[: questions[-1] + 1]
        asked = [(self.models.add(cli.source(name)), turns) for name in dict.fromkeys(names)]
        with closing(answers(asked, self.sampling, self.max_new_tokens)) as pieces:
            for piece, text in whole(pieces):
                print(f"── {asked[piece.number][0].name} ({speed(piece)})\n{text}")

    def _adapters(self, _: Sequence[str]) -> None:
        for name in self.models.names:
            mark = "*" if name == self.current.name else " "
            print(f"{mark} {name}  {self.models[name].gigabytes * 1000:.3g} MB")

    def _reset(self, _: Sequence[str]) -> None:
        self.turns = []
        print("a new conversation starts", file=sys.stderr)


def speed(piece: Piece) -> str:
    """What an answer took, given its last piece."""
    return f"{piece.tokens} tokens in {piece.seconds:.1f} s, {piece.tokens / piece.seconds:.0f} tokens/s"


def typed(prompt: str = "> ") -> Iterator[str]:
    """Lines that a person types, with the arrow keys where the terminal has them."""
    with suppress(ImportError):
        import readline  # noqa: F401  # with it `input` edits lines
    while True:
        try:
            line = input(prompt)
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D leaves", file=sys.stderr)
            continue
        if line.strip():
            yield line
