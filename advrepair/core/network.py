"""Load a network: an ONNX or .nnet file, or weights with a factory that builds their module."""

from __future__ import annotations

import importlib
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from advrepair.core.assembly import one_line
from advrepair.core.errors import UsageError
from advrepair.core.graph import Network
from advrepair.core.nnet import read_nnet
from advrepair.core.onnx_import import read_onnx
from advrepair.core.tracing import trace

State = dict[str, Tensor]
_SHOWN = 3  # names listed in a message


def load_network(
    path: Path | str, factory: str = "", input_shape: Sequence[int] | None = None
) -> Network:
    """Load a network from a file.

    path: ``.onnx``, ``.nnet``, or weights in ``.safetensors``, ``.pt`` or ``.pth``. factory: for
    weights, ``package.module:function``, which returns the module that takes them.
    input_shape: *S for weights; the module's attribute ``input_shape`` if None.
    Raises UsageError if the file or the factory cannot be used; UnsupportedNetworkError for
    a network that cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file; check the path of the network")
    if not path.is_file():
        raise UsageError(f"{path}: not a file; name the network's file")
    suffix = path.suffix.lower()
    if suffix in _WHOLE:
        kind, read = _WHOLE[suffix]
        if factory:
            raise UsageError(f"{path}: {kind} file needs no factory; leave {factory!r} out")
        return read(path)
    if suffix not in _READERS:
        known = ", ".join([*_WHOLE, *_READERS])
        raise UsageError(f"{path}: suffix {suffix!r} is not a network; use one of {known}")
    if not factory:
        raise UsageError(
            f"{path}: holds weights only; name the factory, package.module:function, that "
            "returns their torch module"
        )
    state = _READERS[suffix](path)
    module = _build(factory)
    _fill(path, factory, module, state)
    shape = input_shape if input_shape is not None else getattr(module, "input_shape", None)
    if shape is None:
        raise UsageError(
            f"{path}: its input shape is not known; pass the data, or give the module of "
            f"{factory!r} an attribute input_shape"
        )
    return trace(module, tuple(shape))


def as_network(network: nn.Module, input_shape: Sequence[int] | None = None) -> Network:
    """A Network as it is, or any other module traced.

    input_shape: *S; the module's attribute ``input_shape`` if None. Raises UsageError for
    something else or another shape; UnsupportedNetworkError for what cannot be read.
    """
    if not isinstance(network, nn.Module):
        raise UsageError(f"network: a torch module is needed, not {type(network).__name__}")
    shape = input_shape if input_shape is not None else getattr(network, "input_shape", None)
    if shape is None:
        raise UsageError("network: pass input_shape, the shape of one input without the batch")
    if isinstance(network, Network) and tuple(shape) != network.input_shape:
        raise UsageError(f"network: it takes inputs {network.input_shape}, not {tuple(shape)}")
    return trace(network, tuple(shape))


def _read_safetensors(path: Path) -> State:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: not a readable safetensors file: {one_line(error)}") from error


def _read_pickle(path: Path) -> State:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about archives that are refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere inside the unpickler
        # torch refuses a global that it does not know before anything runs.
        if isinstance(error, pickle.UnpicklingError) or "TorchScript" in str(error):
            raise UsageError(
                f"{path}: holds pickled code, which is never run; save module.state_dict(), "
                "best as safetensors"
            ) from error
        raise UsageError(
            f"{path}: not a torch file, or cut off; save module.state_dict(), best as safetensors"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise UsageError(
            f"{path}: holds a pickled {type(state).__name__}, not a state dict; "
            "save module.state_dict(), best as safetensors"
        )
    return {str(name): tensor for name, tensor in state.items()}


# Files that hold a whole network.
_WHOLE: dict[str, tuple[str, Callable[[Path], Network]]] = {
    ".onnx": ("an ONNX", read_onnx),
    ".nnet": ("a .nnet", read_nnet),
}
_READERS: dict[str, Callable[[Path], State]] = {
    ".safetensors": _read_safetensors,
    ".pt": _read_pickle,
    ".pth": _read_pickle,
}


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Lets a factory lie in the current directory, as ``python -m`` does."""
    added = "" not in sys.path and str(Path.cwd()) not in sys.path
    entry = str(Path.cwd())
    if added:
        sys.path.insert(0, entry)
    try:
        yield
    finally:
        if added and entry in sys.path:
            sys.path.remove(entry)


def _build(factory: str) -> nn.Module:
    """The module that a factory returns, in inference mode."""
    where, separator, name = factory.partition(":")
    if not (where and separator and name):
        raise UsageError(f"factory {factory!r}: write package.module:function")
    with _working_directory_importable():
        try:
            # The factory is the user's own code, so anything can be raised here.
            function: Any = getattr(importlib.import_module(where), name, None)
        except Exception as error:
            raise UsageError(f"factory {factory!r}: cannot import: {_reason(error)}") from error
        if not callable(function):
            raise UsageError(f"factory {factory!r}: module {where} has no function {name!r}")
        try:
            module = function()
        except Exception as error:
            raise UsageError(f"factory {factory!r}: it failed: {_reason(error)}") from error
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise UsageError(f"factory {factory!r}: it must return a torch module, not {kind}")
    return module


def _fill(path: Path, factory: str, module: nn.Module, state: State) -> None:
    """Load the weights, every name and shape of which must be the module's."""
    own = module.state_dict()
    complaints = {
        "lacks": sorted(own.keys() - state.keys()),
        "has unexpected": sorted(state.keys() - own.keys()),
        "has another shape for": sorted(
            name for name in own.keys() & state.keys() if own[name].shape != state[name].shape
        ),
    }
    found = [f"{verb} {_some(names)}" for verb, names in complaints.items() if names]
    if found:
        raise UsageError(
            f"{path}: does not fit the module of {factory!r}: it {'; it '.join(found)}"
        )
    if any(tensor.dtype == torch.float64 for tensor in state.values()):
        module.double()  # loading into float32 would round the weights in silence
    module.load_state_dict(state)


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
