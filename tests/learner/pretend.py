"""Device that computes on the CPU and behaves as a GPU does, for tests without a GPU.

A tensor of the device `pretend` holds a CPU tensor, so that numbers are real. The device refuses operations
that mix devices. It records operations, and the calls in which the host would wait for a real GPU: numbers
that are read, results whose size depends on numbers, copies to the host, and copies to the device that are
not asynchronous from pinned memory. It knows nothing of streams, collectives, speed or a GPU's rounding.

Importing this module registers the device with torch, for the whole process.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

ROOT = Path(__file__).parents[2]
COPIES = {"_to_copy", "copy_"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations that take indices of the host."""
SIZED = {"nonzero", "masked_select", "_unique2", "unique_consecutive"}
"""Operations whose result has a size that depends on numbers."""
FREE = {
    *("view", "_unsafe_view", "_reshape_alias", "as_strided", "t", "transpose", "permute", "expand", "slice"),
    *("select", "split", "split_with_sizes", "unbind", "unfold", "unsqueeze", "squeeze", "detach", "alias"),
    *("lift_fresh", "empty", "empty_like", "new_empty", "empty_strided", "_local_scalar_dense"),
}
"""Operations that start nothing on a GPU, because they only make views or memory."""


class Backend(_DummyBackendModule):
    """Module of the device, as `torch.cuda` is CUDA's."""

    default_generators = (torch.default_generator,)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend("pretend", backend_module=Backend())
DEVICE = torch.device("pretend:0")
# Autocast casts as it does for CUDA. Operations that are not named here take what they are given.
_rest = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_rest.fallback(torch.library.fallthrough_kernel)
_aten = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")


def _cast(name: str, dtype: torch.dtype) -> None:
    """Let an operation compute in one precision under autocast."""
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return operation(*tree_map(cast, args), **tree_map(cast, kwargs))

    _aten.impl(name, run)


for _name in ("conv1d", "conv2d", "conv_transpose1d", "linear", "matmul", "bmm", "baddbmm", "addmm", "mm"):
    _cast(_name, torch.bfloat16)
_cast("scaled_dot_product_attention", torch.bfloat16)
for _name in ("group_norm", "layer_norm", "softmax.int", "log_softmax.int", "sum", "sum.dim_IntList"):
    _cast(_name, torch.float32)


class OnDevice(Tensor):
    """Tensor of the pretended device."""

    held: Tensor
    """Tensor of the CPU with the numbers."""

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnDevice":
        with torch.inference_mode(False):  # a view of weights must be no tensor of an inference
            made: OnDevice = Tensor._make_wrapper_subclass(
                cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
            )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(operation, args, kwargs or {})

    @property  # type: ignore[override]
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)  # type: ignore[attr-defined, no-any-return]

    @data.setter
    def data(self, value: "OnDevice") -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.held = value.held

    def __getitem__(self, index: Any) -> Tensor:
        return Tensor.__getitem__(self, _as_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        Tensor.__setitem__(self, _as_index(index), value)

    def tolist(self) -> Any:
        device.waited("copy to the host")
        return self.held.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = self.detach().clone()
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.held})"


class Device:
    """Record of what the device was asked to do."""

    def __init__(self) -> None:
        self.waits = Counter[str]()
        """Number of calls for which the host would wait, by reason and line of the project."""
        self.operations = Counter[str]()
        """Number of operations by name; each is at least one kernel."""

    def clear(self) -> None:
        """Forget what was recorded."""
        self.waits.clear()
        self.operations.clear()

    def waited(self, reason: str) -> None:
        """Record a call for which the host would wait."""
        self.waits[f"{reason}: {_caller()}"] += 1


device = Device()
"""The only device."""
_pinned = dict[int, Tensor]()
"""Tensors in pinned memory, by address."""


def run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU tensors that its arguments hold.

    Raises:
        RuntimeError: arguments lie on different devices.
    """
    if torch.is_inference_mode_enabled():  # which passes on operations that autograd takes apart otherwise
        done = operation.decompose(*args, **kwargs)
        if done is not NotImplemented:
            return done
    name = operation.__name__.split(".")[0]
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, OnDevice)]
    target = kwargs.get("device")
    to_device = target is not None and torch.device(target).type == DEVICE.type
    if not there and not to_device:
        return operation(*args, **kwargs)
    if name in COPIES:
        return _copied(operation, name, args, kwargs)
    strangers = [x for x in tensors if not isinstance(x, OnDevice) and x.dim() > 0]
    if strangers and name in INDEXED:
        device.waited("copy to the device")
    elif strangers:
        raise RuntimeError(f"{name} mixes tensors of the CPU and of {DEVICE}: {_caller()}")
    if name == "_local_scalar_dense":
        device.waited("number")
    masked = name in INDEXED and any(x is not None and x.dtype == torch.bool for x in args[1])
    if name in SIZED or masked:
        device.waited("size")
    if name not in FREE:
        device.operations[name] += 1
    if to_device:
        kwargs = kwargs | {"device": "cpu"}
    return _wrapped(operation, args, kwargs, operation(*_held(args), **_held(kwargs)))


class _GRU(torch.autograd.Function):
    """One layer of a GRU as a single operation, as cuDNN computes it."""

    @staticmethod
    def forward(ctx: Any, options: Any, *inputs: Tensor) -> Any:
        if not all(isinstance(x, OnDevice) for x in inputs):
            raise RuntimeError(f"gru mixes tensors of the CPU and of {DEVICE}: {_caller()}")
        device.operations["gru"] += 1
        ctx.held = [x.held.detach().requires_grad_() for x in inputs]  # type: ignore[attr-defined]
        with torch.inference_mode(False), torch.enable_grad():
            x, state, *weights = (held.clone() for held in ctx.held)
            ctx.out = _cpu_gru(x, state, weights, *options)
        return tuple(OnDevice(out.detach()) for out in ctx.out)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        device.operations["gru_backward"] += 1
        found = torch.autograd.grad(ctx.out, ctx.held, [gradient.held for gradient in gradients])
        return None, *map(OnDevice, found)


_cpu_gru = torch._VF.gru


def _gru(x: Tensor, state: Tensor, weights: list[Tensor], *options: Any) -> Any:
    if isinstance(x, OnDevice):
        return _GRU.apply(options, x, state, *weights)
    return _cpu_gru(x, state, weights, *options)


def _copied(operation: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation that may copy from one device to another."""
    source = args[1] if name == "copy_" else args[0]
    target = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or source.device)
    asynchronous = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
    device.operations["copy"] += 1
    if source.device.type != target.type:
        if target.type == "cpu":
            device.waited("copy to the host")
        elif not (asynchronous and source.untyped_storage().data_ptr() in _pinned):
            device.waited("copy to the device")
    out = operation(*_held(args), **_held(kwargs | ({"device": "cpu"} if "device" in kwargs else {})))
    if name == "copy_":
        return args[0]
    return out if target.type == "cpu" else OnDevice(out)


def _wrapped(operation: Any, args: Any, kwargs: dict[str, Any], out: Any) -> Any:
    """Return the result as tensors of the device, and an argument that was changed in place as itself."""
    changed = {id(x.held): x for x in tree_leaves((args, kwargs)) if isinstance(x, OnDevice)}
    return tree_map(lambda x: changed.get(id(x), OnDevice(x)) if isinstance(x, Tensor) else x, out)


def _as_index(index: Any) -> Any:
    """Turn arrays and lists into tensors of the CPU. Torch would make them on the device unnoticed."""
    if isinstance(index, tuple):
        return tuple(map(_as_index, index))
    return torch.as_tensor(index) if isinstance(index, np.ndarray | list) else index


def _held(arguments: Any) -> Any:
    return tree_map(lambda x: x.held if isinstance(x, OnDevice) else x, arguments)


def _caller() -> str:
    """Return the innermost line of the project."""
    for frame in reversed(traceback.extract_stack()):
        file = Path(frame.filename).resolve()
        if file.is_relative_to(ROOT) and "tests" not in file.parts and ".venv" not in file.parts:
            return f"{file.relative_to(ROOT)}: {frame.line}"
    return "outside the project"


# Operations without tensors make new ones. The others come through OnDevice.
_new = torch.library.Library("_", "IMPL", "PrivateUse1")
_new.fallback(lambda operation, *args, **kwargs: run(operation, args, kwargs))


@contextmanager
def pretended() -> Iterator[Device]:
    """Make the device usable within the block, and record what it is asked to do."""
    make_tensor, make_empty, make_generator = torch.tensor, torch.empty, torch.Generator

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        made = make_tensor(data, *args, **kwargs)
        return made if device is None else made.to(device)

    class Generator(torch.Generator):
        def __new__(cls, device: Any = "cpu") -> torch.Generator:  # type: ignore[misc]
            return make_generator("cpu" if torch.device(device) == DEVICE else device)

    def pinned(tensor: Tensor) -> Tensor:
        _pinned[tensor.untyped_storage().data_ptr()] = (
            tensor  # it stays alive, so that its address stays its own
        )
        return tensor

    def empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        made = make_empty(*args, **kwargs)
        return pinned(made) if pin_memory else made

    device.clear()
    replaced: list[tuple[Any, str, Callable[..., Any]]] = [
        (torch, "tensor", tensor), (torch, "empty", empty), (torch, "Generator", Generator),
        (Tensor, "pin_memory", lambda self: pinned(self.clone())),
        (torch._VF, "gru", _gru),
    ]  # fmt: skip
    with ExitStack() as stack:
        for each in replaced:
            stack.enter_context(mock.patch.object(*each))
        yield device
