"""Read a torch module as a Network.

``torch.fx`` records the calls of ``forward``; each becomes operations through the tables of
``torch_layers`` and ``torch_operators``. The result is then compared with the module, because
a trace follows one path only.
"""

from __future__ import annotations

import copy
import itertools
import operator
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from advrepair.core.assembly import BATCH, Assembly, Value, one_line
from advrepair.core.errors import UnsupportedNetworkError, UsageError
from advrepair.core.graph import Network
from advrepair.core.torch_layers import MODULES
from advrepair.core.torch_operators import FUNCTIONS, METHODS

_TOLERANCE = 1e-4


def trace(module: nn.Module, input_shape: Sequence[int]) -> Network:
    """Read a module in inference mode; the module itself is left as it is.

    input_shape: *S, without the batch. Raises UsageError if the module does not take such
    inputs; UnsupportedNetworkError, naming the node, for what cannot be read.
    """
    if isinstance(module, Network):
        return module
    source = f"module {type(module).__name__}"
    try:
        frozen = copy.deepcopy(module).cpu().eval().requires_grad_(False)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise UnsupportedNetworkError(f"{source}: cannot be copied: {one_line(error)}") from error
    shape, dtype = tuple(int(n) for n in input_shape), _dtype(source, frozen)
    _run(source, frozen, torch.zeros(2, *shape, dtype=dtype))
    try:
        # A module's forward is anybody's code, and so are the errors it raises when traced.
        graph = fx.GraphModule(frozen, _Tracer().trace(frozen))
    except Exception as error:
        raise UnsupportedNetworkError(
            f"{source}: its forward cannot be traced: {one_line(error)}"
        ) from error
    reader = _Reader(graph, Assembly(shape, dtype, source))
    network = reader.read()
    _compare(source, frozen, network)
    return network


class _Tracer(fx.Tracer):
    """Records a Network as one call: its operations are copied, not traced."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Network) or super().is_leaf_module(m, module_qualified_name)


class _Reader:
    """Walks the recorded calls; every name stands for a Value or for a plain constant."""

    def __init__(self, module: fx.GraphModule, to: Assembly) -> None:
        self.module, self.to = module, to
        self.results: dict[fx.Node, Any] = {}

    def read(self) -> Network:
        self.module.graph.eliminate_dead_code()
        steps = {
            "placeholder": self._placeholder,
            "get_attr": self._attribute,
            "call_module": self._module,
            "call_function": self._function,
            "call_method": self._method,
        }
        for node in self.module.graph.nodes:
            target = node.target if isinstance(node.target, str) else _name(node.target)
            self.to.enter(node.name, target)
            arguments = fx.node.map_arg(node.args, self.results.__getitem__)
            if node.op == "output":
                return self._finish(arguments[0])
            options = fx.node.map_arg(node.kwargs, self.results.__getitem__)
            self.results[node] = steps[node.op](node, arguments, options)
        raise self.to.refusal("it returns nothing")

    def _finish(self, result: Any) -> Network:
        if not isinstance(result, Value):
            raise self.to.refusal(
                f"the network must return one tensor that depends on its input, "
                f"not {type(result).__name__}"
            )
        return self.to.finish(result)

    def _placeholder(self, node: fx.Node, arguments: Any, options: Any) -> Any:
        if not self.results:
            return self.to.input
        if not arguments:
            raise self.to.refusal("the network must take one input")
        return arguments[0]

    def _attribute(self, node: fx.Node, arguments: Any, options: Any) -> Any:
        return operator.attrgetter(str(node.target))(self.module)

    def _module(self, node: fx.Node, arguments: Any, options: Any) -> Any:
        layer = self.module.get_submodule(str(node.target))
        self.to.enter(str(node.target), type(layer).__name__)
        if type(layer) not in MODULES:
            hint = "return the logits" if "Softmax" in type(layer).__name__ else "use another layer"
            raise self.to.refusal(f"this layer is not supported; {hint}")
        values = [*arguments, *options.values()]
        if len(values) != 1 or not isinstance(values[0], Value):
            raise self.to.refusal("a layer must take one computed value")
        return self._call(MODULES[type(layer)], (self.to, layer, values[0]), {})

    def _function(self, node: fx.Node, arguments: Any, options: Any) -> Any:
        target: Any = node.target
        if target is getattr and isinstance(arguments[0], Value):
            return self._property(arguments[0], arguments[1])
        if not _holds(Value, arguments, options):
            if target is not operator.getitem and _holds_batch(arguments, options):
                raise self.to.refusal("it computes with the batch size; use -1 or flatten instead")
            return self._call(target, arguments, options)
        if target not in FUNCTIONS:
            raise self.to.refusal("this function is not supported; use a supported one")
        return self._call(FUNCTIONS[target], (self.to, *arguments), options)

    def _method(self, node: fx.Node, arguments: Any, options: Any) -> Any:
        name, subject = str(node.target), arguments[0]
        if not _holds(Value, arguments, options):
            if _holds_batch(arguments, options):
                raise self.to.refusal("it computes with the batch size; use -1 or flatten instead")
            return self._call(getattr(subject, name), arguments[1:], options)
        if name not in METHODS:
            raise self.to.refusal("this method is not supported; use a supported one")
        return self._call(METHODS[name], (self.to, *arguments), options)

    def _property(self, value: Value, name: str) -> Any:
        known = {
            "shape": (BATCH, *value.shape),
            "ndim": len(value.shape) + 1,
            "dtype": self.to.dtype,
            "device": torch.device("cpu"),
        }
        if name not in known:
            raise self.to.refusal(f"attribute {name} of a computed value is not supported")
        return known[name]

    def _call(self, target: Any, arguments: Sequence[Any], options: dict[str, Any]) -> Any:
        try:
            return target(*arguments, **options)
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            raise self.to.refusal(f"cannot be read: {one_line(error)}") from error


def _name(target: Any) -> str:
    return str(getattr(target, "__name__", target))


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def _holds(kind: type, *values: Any) -> bool:
    return any(isinstance(leaf, kind) for leaf in _leaves(values))


def _holds_batch(*values: Any) -> bool:
    return any(isinstance(leaf, int) and leaf == BATCH for leaf in _leaves(values))


def _dtype(source: str, module: nn.Module) -> torch.dtype:
    stored = itertools.chain(module.parameters(), module.buffers())
    found = {str(t.dtype): t.dtype for t in stored if t.is_floating_point() or t.is_complex()}
    if len(found) > 1:
        raise UnsupportedNetworkError(
            f"{source}: its weights mix {', '.join(sorted(found))}; convert it with .float()"
        )
    return next(iter(found.values()), torch.float32)


def _run(source: str, module: nn.Module, x: Tensor) -> Any:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the module's own are not about the repair
            return module(x.clone())
    except Exception as error:  # anybody's code
        shape = ",".join(str(n) for n in x.shape[1:])
        raise UsageError(
            f"{source}: it does not take inputs [batch,{shape}]: {one_line(error)}"
        ) from error


def _compare(source: str, module: nn.Module, network: Network) -> None:
    """Raises UnsupportedNetworkError unless both agree on random inputs of several sizes."""
    generator = torch.Generator().manual_seed(0)
    for count, spread in ((1, 1.0), (2, 1.0), (3, 10.0)):
        shape = (count, *network.input_shape)
        x = spread * torch.randn(shape, generator=generator, dtype=network.dtype)
        want, have = _run(source, module, x), network(x)
        scale = max(float(want.abs().max()), 1e-6) if isinstance(want, Tensor) else 0.0
        if (
            not isinstance(want, Tensor)
            or want.shape != have.shape
            or not bool(((want - have).abs() <= _TOLERANCE * scale).all())
        ):
            raise UnsupportedNetworkError(
                f"{source}: what was read from it differs from it on random inputs; its forward "
                "depends on the data, on chance or on in-place changes"
            )
