"""A CUDA device that isn't there: tensors that lie on the CPU, say that they are on cuda:0, and refuse what CUDA refuses.

Every operation on them is computed by the CPU, with real values, after a look at the devices of all that it is given. So a
mask that stayed behind, or a factory without a device, fails here as it would there, on any machine. What it can't show:
kernels of CUDA's own, their rounding, their speed.
"""

from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
ANYWHERE = {"aten.copy_.default", "aten._to_copy.default", "aten.set_.source_Tensor"}
"""Operations between devices."""
BY_INDEX = {"aten.index.Tensor", "aten.index_put_.default", "aten._unsafe_index.Tensor", "aten.index_put.default"}
"""Which take their indices from a CPU as well."""


class OnCuda(torch.Tensor):
    """A tensor whose values are those of `inner`, on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=inner.device,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner.detach()
        return made

    @property
    def device(self):
        return CUDA

    @property
    def is_cuda(self):
        return True

    @property
    def is_cpu(self):
        return False

    def get_device(self):
        return 0

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        assert isinstance(value, OnCuda) and value.shape == self.shape and value.dtype == self.dtype
        self.inner = value.inner

    def __repr__(self, **_):
        return f"OnCuda({self.inner!r})"

    def tolist(self):
        return self.inner.tolist()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def data_ptr(self):
        return self.inner.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        check_devices(operation, args, kwargs)
        made = computed(operation, tree_map(unwrapped, args), tree_map(unwrapped, kwargs))
        written = {id(one.inner): one for one in tree_flatten((args, kwargs))[0] if isinstance(one, OnCuda)}
        if operation is torch.ops.aten._local_scalar_dense.default:
            return made

        def back(one):
            if not isinstance(one, torch.Tensor):
                return one
            return written[id(one)] if id(one) in written else OnCuda(one)

        return tree_map(back, made)


def computed(operation, args, kwargs):
    """By the CPU, which lacks one operation that CUDA has."""
    if str(operation) == "bitsandbytes.dequantize_4bit.out":
        *given, out = [*args, *kwargs.values()]
        out.copy_(torch.ops.bitsandbytes.dequantize_4bit.default(*given))
        return None
    return operation(*args, **kwargs)


def check_devices(operation, args, kwargs) -> None:
    """Raise RuntimeError where CUDA would: tensors of two devices, unless the CPU's is a single number."""
    given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
    name = str(operation)
    if name in ANYWHERE:
        return
    strays = [one for one in given if not isinstance(one, OnCuda)]
    if name in BY_INDEX and isinstance(args[0], OnCuda):
        strays = [one for one in strays if one.dtype not in (torch.int64, torch.bool)]
    behind = [one for one in strays if one.dim() > 0]
    if behind:
        raise RuntimeError(f"{name}: tensors are on cuda:0 and cpu ({[tuple(one.shape) for one in behind]})")


def unwrapped(one):
    return one.inner if isinstance(one, OnCuda) else one


class Places(TorchFunctionMode):
    """Makes what is asked for on CUDA, and moves what is to be moved."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name in ("to", "cuda", "cpu") and args and isinstance(args[0], torch.Tensor):
            return moved(function, name, args, kwargs)
        if name in ("is_autocast_enabled", "get_autocast_dtype"):
            return function(*("cpu" if one == "cuda" else one for one in args), **kwargs)
        if name == "backward":  # what runs in it is to be seen here as well
            one = torch.ones_like(args[0])
            with self:
                run = torch.autograd.graph._engine_run_backward
                return run((args[0],), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True)
        if name == "scaled_dot_product_attention":
            with self:
                return attended(*args, **kwargs)
        wanted = kwargs.get("device")
        if wanted is not None and not isinstance(wanted, torch.device):
            wanted = torch.device(wanted)
        if wanted is None or name in ("__get__", "__set__"):
            return function(*args, **kwargs)
        kwargs["device"] = torch.device("cpu") if wanted.type == "cuda" else wanted
        if args and isinstance(args[0], OnCuda):  # new_empty, zeros_like and their kin
            made = function(*args, **kwargs)
            return made if wanted.type == "cuda" else made.inner
        made = function(*args, **kwargs)
        return OnCuda(made) if wanted.type == "cuda" else made


def attended(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """As torch documents it: its own makes the causal mask where the values are, not where they say they are."""
    if enable_gqa:
        k, v = (one.repeat_interleave(q.shape[-3] // one.shape[-3], -3) for one in (k, v))
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.nn.functional.dropout(scores.softmax(-1), dropout_p) @ v


def moved(function, name, args, kwargs):
    """`tensor.to(…)`, where a device may be among the arguments."""
    tensor, *rest = args
    values = [*rest, *kwargs.values()]
    other = next((one for one in values if isinstance(one, torch.Tensor)), None)
    wanted = {"cuda": CUDA, "cpu": torch.device("cpu")}.get(name) or (None if other is None else other.device)
    wanted = next((torch.device(one) for one in values if is_device(one)), wanted)
    dtype = tensor.dtype if other is None else other.dtype
    dtype = next((one for one in values if isinstance(one, torch.dtype)), dtype)
    if wanted is None or (wanted.type == "cuda") == isinstance(tensor, OnCuda):
        return torch.Tensor.to(tensor, dtype, copy=kwargs.get("copy", False))
    assert not (tensor.requires_grad and torch.is_grad_enabled()), "no way for a gradient back between devices"
    copied = unwrapped(tensor.detach()).to(dtype, copy=True)
    return OnCuda(copied) if wanted.type == "cuda" else copied


def is_device(one) -> bool:
    return isinstance(one, torch.device) or (isinstance(one, str) and one.split(":")[0] in ("cpu", "cuda"))


CALLS = {
    "is_available": True,
    "device_count": 1,
    "current_device": 0,
    "is_bf16_supported": True,
    "get_device_name": "pretended",
    "memory_allocated": 0,
    "max_memory_allocated": 0,
    "memory_reserved": 0,
    "get_rng_state_all": [],
    "mem_get_info": (8 * 10**9, 8 * 10**9),
}


@contextmanager
def pretended(capability=(8, 0)):
    """A CUDA device is there within the block, of this compute capability."""
    autocast = torch.autocast
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name, result in CALLS.items():
            patch.setattr(torch.cuda, name, lambda *_, _result=result, **__: _result)
        for name in (
            "set_device",
            "reset_peak_memory_stats",
            "empty_cache",
            "synchronize",
            "manual_seed_all",
            "manual_seed",
        ):
            patch.setattr(torch.cuda, name, lambda *_, **__: None)
        patch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        patch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda *_: SimpleNamespace(uuid="none", total_memory=8 * 10**9, major=capability[0], minor=capability[1]),
        )
        patch.setattr(torch, "autocast", lambda device_type, **settings: autocast("cpu", **settings))
        # A wrapped tensor can't be one of inference; without a gradient nothing else differs.
        for name in ("__enter__", "__exit__"):
            patch.setattr(torch.inference_mode, name, lambda *_: None)
        # A module that is moved has new parameters, because the old ones can't become of another class in place.
        patch.setattr(
            torch, "_has_compatible_shallow_copy_type", lambda a, b: type(a.data) is type(b.data) and a.dtype == b.dtype
        )
        stack.enter_context(Places())
        yield CUDA


def put_on_cuda(model):
    """Replace every parameter and buffer of a model on the CPU by one that says it is on CUDA."""
    seen = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, one in tensors.items():
                if one is not None and not isinstance(one, OnCuda):
                    tensors[name] = seen.setdefault(id(one), as_cuda(one))
    return model


def as_cuda(one):
    if not isinstance(one, torch.nn.Parameter):
        return OnCuda(one.detach())
    made = torch.nn.Parameter(OnCuda(one.detach()), requires_grad=one.requires_grad)
    state = getattr(one, "quant_state", None)
    if state is not None:
        for part in filter(None, (state, state.state2)):
            for name, value in vars(part).items():
                if isinstance(value, torch.Tensor):
                    setattr(part, name, OnCuda(value.detach()))
        vars(made).update(vars(one))
    return made
