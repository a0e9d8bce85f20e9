"""Where tensors lie: in the memory of this machine, or in that of an accelerator."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import attrs
import torch
from torch import Tensor, nn

from advrepair.core.errors import UsageError

CPU = torch.device("cpu")
Value = TypeVar("Value")


def device_of(name: str) -> torch.device:
    """The device of that name; raises UsageError if this torch has none, or one without float64.

    On CUDA devices float32 is computed as float32: TF32, which is no arithmetic of a
    certificate, is turned off for the process.
    """
    try:
        device = torch.device(name)
        float(torch.zeros(1, dtype=torch.float64, device=device) + 1)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UsageError(
            f"run.device is {name!r}, which cannot be used here ({reason}): use --device cpu"
        ) from None
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return device


@contextmanager
def on(device: torch.device) -> Iterator[None]:
    """Tensors that are made inside lie on the device unless they say otherwise."""
    if device == CPU:
        yield
        return
    with device:
        yield


def moved(value: Value, device: torch.device) -> Value:
    """A tensor, a module, or an attrs class, tuple or dict of such things, on the device.

    A module is copied unless it is there already.
    """
    found, kind = cast(Any, value), cast(Any, type(value))
    if isinstance(value, Tensor):
        found = _placed(value, device)
    elif isinstance(value, nn.Module):
        if any(t.device != device for t in value.buffers()):
            found = _copied(value, device)
    elif isinstance(value, dict):
        found = {key: moved(each, device) for key, each in value.items()}
    elif isinstance(value, tuple):
        found = tuple(moved(each, device) for each in value)
    elif attrs.has(kind):
        fields = {f.alias: getattr(value, f.name) for f in attrs.fields(kind) if f.init}
        found = kind(**{name: moved(each, device) for name, each in fields.items()})
    return found  # type: ignore[no-any-return]


def _placed(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device)


def _copied(module: nn.Module, device: torch.device) -> nn.Module:
    """As ``copy.deepcopy(module).to(device)``, without a second copy of what it is now."""
    return copy.deepcopy(module, {id(t): moved(t, device) for t in module.buffers()})
