"""Memory that is laid out once and used again at every step of a training run.

A step's tensors are as long as its sequences, so each step asks the allocator for blocks of other sizes. What it frees
fits nothing later: more than half of the process was such holes. Here each tensor has its own block, as large as the
longest micro-batch needs, of which a shorter one takes the front.
"""

from collections.abc import Hashable
from math import prod

import torch


class Workspace:
    """Named blocks on `device`. A new block holds anything but NaN; its content lasts until the name is taken again."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.tokens = device, 0
        self._by_tokens: dict[Hashable, torch.Tensor] = {}
        self._others: dict[Hashable, torch.Tensor] = {}

    def reserve(self, tokens: int) -> None:
        """Make room for micro-batches of `tokens` tokens; blocks that are too small for it are dropped with what they hold."""
        if tokens > self.tokens:
            self._by_tokens.clear()
            self.tokens = tokens

    def rows(self, name: Hashable, tokens: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """(tokens, *shape), for as many tokens as are reserved at most."""
        size = self.tokens * prod(shape)
        return _front(self._block(self._by_tokens, name, size, dtype), (tokens, *shape))

    def heads(
        self, name: Hashable, heads: int, tokens: int, *shape: int, slack: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """(heads, tokens + slack, *shape), the same."""
        size = heads * (self.tokens + slack) * prod(shape)
        return _front(self._block(self._by_tokens, name, size, dtype), (heads, tokens + slack, *shape))

    def matrix(self, name: Hashable, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """`shape`, of any size. To keep the tensor valid, take the largest of its name first."""
        return _front(self._block(self._others, name, prod(shape), dtype), shape)

    def _block(
        self, blocks: dict[Hashable, torch.Tensor], name: Hashable, size: int, dtype: torch.dtype
    ) -> torch.Tensor:
        block = blocks.get(name)
        if block is None or len(block) < size:
            # Zeros, for attention multiplies what is behind the last token by 0, and 0 times NaN isn't 0.
            blocks[name] = block = torch.zeros(size, dtype=dtype, device=self.device)
        return block


def _front(block: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    # No view: autograd would see all tensors of a block change with each of them.
    tensor = torch.empty(0, dtype=block.dtype, device=block.device)
    return tensor.set_(block.untyped_storage(), 0, shape)  # type: ignore[call-overload]  # a shape alone is enough
