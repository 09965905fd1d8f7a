"""AdamW that keeps bf16 weights exact to fp32 in 6 bytes a weight less than fp32 weights, gradients and casts take."""

from collections.abc import Iterable
from typing import Any

import torch

from finetune.distributed.shards import local, part

UPDATE_CHUNK = 2**20
"""Weights updated at a time: what is widened to fp32 for it stays in the cache."""


def state_bytes(dtype: torch.dtype) -> int:
    """Bytes of optimizer state for a weight of `dtype`: two means in fp32, and a bf16 weight's lower half."""
    return 10 if dtype == torch.bfloat16 else 8


class SplitAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) for bf16 and fp32 parameters.

    A bf16 parameter holds the upper half of its fp32 weight, rounded; the lower half is kept here as a signed
    16-bit difference, so that small steps aren't lost. An fp32 parameter is its own fp32 weight. An update is that of torch's fused AdamW on the fp32 weight.
    """

    def __init__(
        self,
        parameters: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, each tensor in its own dtype; torch's own would cast all to the weight's.

        Each tensor has a number for every weight of its parameter, of which a process takes those that it holds.
        """
        super().load_state_dict(state_dict | {"state": {}})
        for index, state in state_dict["state"].items():
            for name, value in state.items():
                self.take(index, name, value)

    def take(self, index: int, name: str, value: torch.Tensor) -> None:
        """Set the entry `name` of the state of parameter number `index`."""
        parameter = [one for group in self.param_groups for one in group["params"]][index]
        own = part(value, parameter).reshape(-1) if value.dim() else value
        self.state[parameter][name] = own.to(parameter.device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closureless
        """Update every parameter that has a gradient, in place."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter] or self._start(parameter)
        state["step"] += 1
        own = local(parameter).view(-1)
        lower = state.get("lower", own)  # fp32 weights have no lower half
        flat = [own, local(grad).reshape(-1), state["mean"], state["square"], lower]
        for weight, gradient, mean, square, half in zip(*(one.split(UPDATE_CHUNK) for one in flat), strict=True):
            master = _join(weight, half)
            torch._fused_adamw_(
                [master],
                [gradient.to(master.dtype)],
                [mean],
                [square],
                [],
                [state["step"].clone()],
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
            _split(master, weight, half)

    def _start(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        wide: dict[str, Any] = {"dtype": torch.float32, "device": parameter.device}
        count = local(parameter).numel()
        self.state[parameter] = {
            "step": torch.zeros((), **wide),
            "mean": torch.zeros(count, **wide),
            "square": torch.zeros(count, **wide),
        }
        if parameter.dtype == torch.bfloat16:
            self.state[parameter]["lower"] = torch.zeros(count, dtype=torch.int16, device=parameter.device)
        return self.state[parameter]


def _join(weight: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """The fp32 weights whose rounded upper halves are the bf16 `weight`; fp32 weights are themselves."""
    if weight.dtype == torch.float32:
        return weight
    return weight.view(torch.int16).int().bitwise_left_shift_(16).add_(lower).view(torch.float32)


def _split(master: torch.Tensor, weight: torch.Tensor, lower: torch.Tensor) -> None:
    """Write fp32 `master` back to the halves."""
    if weight.dtype == torch.float32:
        return
    bits = master.view(torch.int32)
    # Half a last place before the cut rounds to nearest, which matters: the model computes with the upper half alone.
    upper = bits.add(0x8000).bitwise_right_shift_(16)
    weight.view(torch.int16).copy_(upper)
    # Negative where the upper half was rounded up, hence signed; half a last place at most, hence 16 bits are enough.
    lower.copy_(bits.sub_(upper.bitwise_left_shift_(16)))
