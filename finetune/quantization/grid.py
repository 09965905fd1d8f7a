"""4-bit grids as bitsandbytes holds them: blocks of a row share a scale, and a weight is one of 16 values times it."""

from __future__ import annotations

import torch
from bitsandbytes.functional import QuantState, dequantize_blockwise, get_4bit_type, quantize_blockwise

from finetune import params

SHARES = tuple(0.72 + 0.02 * step for step in range(15))
"""Scales that are tried, in shares of a block's largest weight. A smaller one cuts that weight, and the other 31 or 63
lie nearer to a value."""
_SCALES_PER_BLOCK = 256
"""Block size of the second quantisation (QLoRA, Dettmers et al. 2023, section 3), as bitsandbytes has it."""


class Grid:
    """The 16 values of `quantization.type`, sorted, and their codes."""

    def __init__(self, settings: params.Quantization, device: torch.device) -> None:
        self.settings = settings
        self.values, self._codes = get_4bit_type(settings.type, device=device).sort()
        self._middles = (self.values[1:] + self.values[:-1]) / 2

    def nearest(self, scaled: torch.Tensor) -> torch.Tensor:
        """The index, among `values`, of the one that is nearest to each of `scaled`."""
        return torch.bucketize(scaled.contiguous(), self._middles)  # else it warns, and copies as well

    def scales(self, weight: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        """The scale of each block with the least squared error.

        weight: (rows, columns), fp32; importance: (columns), what an error in that column counts. Returns
        (rows, columns / block_size).
        """
        blocks = weight.view(len(weight), -1, self.settings.block_size)
        counted = importance.view(1, -1, self.settings.block_size)
        # A block of zeros has any scale but zero.
        largest = blocks.abs().amax(-1, keepdim=True).clamp_min_(1e-12)
        best, least = largest.clone(), torch.full_like(largest, torch.inf)
        for share in SHARES:
            scale = largest * share
            rounded = self.values[self.nearest(blocks / scale)].mul_(scale)
            error = rounded.sub_(blocks).square_().mul_(counted).sum(-1, keepdim=True)
            best = torch.where(error < least, scale, best)
            least = torch.minimum(least, error)
        return best[..., 0]

    def stored(self, scales: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, QuantState]:
        """The `scales` (rows, blocks) as bitsandbytes will read them, and the state in which it stores them."""
        rows, blocks = scales.shape
        kept, read, second = scales.flatten(), scales.flatten(), {}
        if self.settings.double_quant:
            offset = kept.mean()
            kept, state = quantize_blockwise(kept - offset, blocksize=_SCALES_PER_BLOCK)
            read, second = dequantize_blockwise(kept, state) + offset, {"offset": offset, "state2": state}
        return read.view(rows, blocks), QuantState(
            absmax=kept,
            shape=torch.Size((rows, blocks * self.settings.block_size)),
            dtype=dtype,
            blocksize=self.settings.block_size,
            code=get_4bit_type(self.settings.type, device=scales.device),
            quant_type=self.settings.type,
            **second,
        )

    def packed(self, chosen: torch.Tensor) -> torch.Tensor:
        """Indices of `values` (rows, columns) as bitsandbytes' bytes: two codes each, (bytes, 1)."""
        pairs = self._codes[chosen].view(-1, 2).to(torch.uint8)
        return (pairs[:, 0] << 4 | pairs[:, 1]).view(-1, 1)
