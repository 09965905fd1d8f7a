"""A server with the page and models that answer from a script: `python serve.py PORT [KEY]`."""

import asyncio
import sys
from collections.abc import AsyncGenerator

import uvicorn
from starlette.applications import Starlette

from finetune.errors import UserError
from finetune.serving.answer_stream import Piece
from finetune.web.mount import mount

ANSWERS = {
    "workspace": "The moon is a <b>round</b> stone that follows the earth.",
    "qlora-1": "The moon is a large stone that circles the earth.",
    "models/mine": "word " * 400,
}


class Script:
    """Answers a word each hundredth of a second, or each fifth if asked slowly, the instruction before it."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = tuple(ANSWERS)

    def method(self, name: str) -> str | None:
        return {"workspace": "full", "qlora-1": "qlora", "lora-1": "lora"}.get(name)

    def answers_file(self, name: str) -> str:
        return "tuned"

    def memory_gb(self, name: str) -> float:
        return 0.269 if name == "workspace" else 0.02

    async def stream(self, model, turns, sampling, max_new_tokens) -> AsyncGenerator[Piece, None]:
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
        self.names = tuple(ANSWERS)


if __name__ == "__main__":
    app = Starlette()
    mount(app, Script(), sys.argv[2] if len(sys.argv) > 2 else None, most_tokens=300)
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
