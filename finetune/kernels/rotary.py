"""Rotary positions (Su et al. 2021, section 3.4.2) in the halves that Llama pairs, into given memory."""

import torch


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Write the turned `x` (tokens, ..., width) into `out`; `cos` and `sin` are (tokens, width)."""
    return _turn(x, cos, sin, -1, out)


def rotate_back(gradient: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Write the gradient of `rotate`'s x into `out`, given that of its result."""
    half = sin.shape[-1] // 2
    return _turn(gradient, cos, torch.cat([sin[:, half:], sin[:, :half]], -1), 1, out)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int, out: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    cos, sin = (one.view(len(x), *[1] * (x.dim() - 2), -1) for one in (cos, sin))
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=-sign)
    return out
