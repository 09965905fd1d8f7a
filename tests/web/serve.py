"""The server with models that answer from a script: `python serve.py PORT [KEY]`."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from types import SimpleNamespace

import uvicorn

from finetune.errors import UserError
from finetune.serving.answer_stream import Piece
from finetune.serving.server import app
from finetune.web import page

ANSWERS = {
    "workspace": "The moon is a <b>round</b> stone that follows the earth.",
    "qlora-1": "The moon is a large stone that circles the earth.",
    "models/mine": "word " * 400,
}
METHODS = {"workspace": "full", "qlora-1": "qlora", "lora-1": "lora"}
MOST_TOKENS = 300


class Script:
    """Answers a word each hundredth of a second, or each fifth if asked slowly; the instruction comes first."""

    @property
    def names(self) -> list[str]:
        return list(ANSWERS)

    def __getitem__(self, name: str) -> SimpleNamespace:
        memory = 0.269 if name == "workspace" else 0.02
        return SimpleNamespace(name=name, method=METHODS.get(name), answers_file="tuned", gigabytes=memory)

    async def stream(self, model, turns, sampling, max_new_tokens, *, fitting) -> AsyncGenerator[Piece, None]:
        text = f"{turns[-1].content}: {ANSWERS[model]}"
        if "too long" in text:
            raise UserError("the prompt has 900 tokens, and the model takes 512; shorten it")
        if "broken" in text:
            raise RuntimeError("a fault")
        words = text.split(" ")
        index = 0
        try:
            for index, word in enumerate(words[:max_new_tokens], start=1):
                await asyncio.sleep(0.2 if "slowly" in text else 0.01)
                if "breaks off" in text and index == 5:
                    raise UserError("the memory isn't enough for all requests at a time")
                last = index == min(len(words), max_new_tokens)
                reason = ("stop" if index == len(words) else "length") if last else None
                yield Piece(0, word if last else f"{word} ", index, 0, index * 0.01, reason)
        finally:
            print(f"closed {turns[-1].text} after {index} words", flush=True)

    async def add(self, name: str) -> None:
        if name != "lora-1":
            raise UserError(
                f"{name}: no such experiment or revision; `dvc exp list --all-commits` lists the experiments"
            )
        ANSWERS[name] = "Added."


if __name__ == "__main__":
    key = sys.argv[2] if len(sys.argv) > 2 else None
    served = app(Script(), key, MOST_TOKENS, page.routes(Script(), key, MOST_TOKENS))
    uvicorn.run(served, port=int(sys.argv[1]), log_level="warning")
