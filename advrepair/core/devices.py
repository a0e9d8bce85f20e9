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

    On CUDA devices what is no arithmetic of a certificate is turned off for the process: TF32,
    and cuDNN, whose convolutions need not be sums of products.
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
        torch.backends.cudnn.enabled = False
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
    """A copy on the device, plain values that belong to it included; it computes where it is."""
    held = [value for part in module.modules() for value in vars(part).values()]
    tensors = [*module.buffers(), *(t for value in held for t in _tensors(value))]
    result = copy.deepcopy(module, {id(t): moved(t, device) for t in tensors})
    for part in result.modules():
        if isinstance(part, Placed):
            part.compute_on(CPU)
    return result


def _tensors(value: Any) -> list[Tensor]:
    """Tensors of an attrs class or a dict, and of those in it."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for each in value.values() for t in _tensors(each)]
    if not attrs.has(type(value)):
        return []
    kind: Any = type(value)
    return [t for f in attrs.fields(kind) for t in _tensors(getattr(value, f.name))]


class Placed(nn.Module):
    """A module that stays in memory, and may have a copy on a device that computes for it."""

    _runner: _Runner | None = None

    def compute_on(self, device: torch.device) -> None:
        """Compute there from now on. What comes in and what goes out lies where it did."""
        self._runner = None if device == CPU else _Runner(device)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [N,K] of inputs [N,*S]."""
        return self.compute(x) if self._runner is None else self._runner(self, x)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return CPU if self._runner is None else self._runner.device

    def compute(self, x: Tensor) -> Tensor:
        """The same, here."""
        raise NotImplementedError


class _Runner:
    """The copy of a module on a device, made anew when one of its tensors has changed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._key: list[tuple[int, int]] = []
        self._copy: nn.Module | None = None

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        key = [(id(t), t._version) for t in module.buffers()]
        with on(self.device):
            if self._copy is None or self._key != key:
                self._copy, self._key = _copied(module, self.device), key
            found: Tensor = self._copy(moved(x, self.device))
        return moved(found, x.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Runner:
        return _Runner(self.device)

    def __reduce__(self) -> tuple[type[_Runner], tuple[torch.device]]:
        return _Runner, (self.device,)
