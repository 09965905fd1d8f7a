"""bf16 weights under SplitAdamW move as fp32 weights do under torch's AdamW."""

import pytest
import torch

from finetune.kernels import adamw


@pytest.mark.parametrize("learning_rate", [1e-2, 1e-6])
def test_equals_adamw_on_fp32_weights(learning_rate, monkeypatch):
    monkeypatch.setattr(adamw, "UPDATE_CHUNK", 1000)
    torch.manual_seed(0)
    start = torch.randn(37, 61).bfloat16()
    wide, narrow = torch.nn.Parameter(start.float()), torch.nn.Parameter(start.clone())
    theirs = torch.optim.AdamW([wide], lr=learning_rate, weight_decay=0.1)
    ours = adamw.SplitAdamW([narrow], lr=learning_rate, weight_decay=0.1)
    for _ in range(50):
        gradient = torch.randn_like(start)
        wide.grad, narrow.grad = gradient.float(), gradient
        theirs.step()
        ours.step()
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow.isfinite(), torch.ones_like(narrow, dtype=torch.bool))
    torch.testing.assert_close(narrow.float(), wide.data, rtol=2**-8, atol=0)  # bf16's rounding, no drift
    exact = adamw._join(narrow.data.view(-1), ours.state[narrow]["lower"])
    torch.testing.assert_close(exact.view_as(wide), wide.data, rtol=1e-5, atol=1e-9)
