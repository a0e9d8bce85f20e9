"""Bounds of auto_LiRPA (https://github.com/Verified-Intelligence/auto_LiRPA), where installed."""

import importlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advrepair import (
    BoundFn,
    Box,
    LinearBound,
    Network,
    Operation,
    Rounding,
    UnsupportedNetworkError,
    UsageError,
    Verifier,
    hookimpl,
    option,
)

METHODS = ("CROWN", "CROWN-IBP", "IBP")
SLOPES = ("adaptive", "same-slope", "zero-lb", "one-lb")
OLDEST = (0, 7)
HOME = "https://github.com/Verified-Intelligence/auto_LiRPA"


@attrs.frozen
class AutoLirpa(Verifier):
    """Bounds of auto_LiRPA, which has to be installed too (CROWN, CROWN-IBP, IBP)."""

    name: ClassVar[str] = "auto-lirpa"
    differentiable: ClassVar[bool] = True
    batchable: ClassVar[bool] = False  # it branches on values, and keeps some on its nodes
    rigorous: ClassVar[bool] = False

    method: str = option(
        "CROWN", "CROWN-IBP bounds hidden values by intervals, IBP all of them", choices=METHODS
    )
    lower_slope: str = option(
        "adaptive", "slope below an unstable ReLU, in auto_LiRPA's words", choices=SLOPES
    )

    def prepare(self, network: Network, rounding: Rounding | None = None) -> BoundFn:
        check_supported(network)
        library = auto_lirpa()
        try:
            bounds = Bounds(library, network, self.method, self.lower_slope)
            bounds.try_out()
        except Exception as error:  # its converter fails in many ways; better here than later
            raise UnsupportedNetworkError(
                f"network: auto_LiRPA cannot bound its nodes {network.operations[0].name!r} to "
                f"{network.operations[-1].name!r} ({in_one_line(error)}); choose another verifier"
            ) from error
        return bounds


def check_supported(network: Network) -> None:
    """Raises UnsupportedNetworkError for an operation that is not mapped, by node name."""
    shapes = {"input": network.input_shape} | {op.name: op.shape for op in network.operations}
    for op in network.operations:
        if op.kind not in STEPS:
            raise UnsupportedNetworkError(
                f"network: node {op.name!r} ({op.kind}) has no rule in verifier "
                f"{AutoLirpa.name!r}; replace the node or choose another verifier"
            )
        if op.kind in ("scale", "add") and any(shapes[name] != op.shape for name in op.inputs):
            raise UnsupportedNetworkError(
                f"network: node {op.name!r} ({op.kind}) broadcasts its input, which verifier "
                f"{AutoLirpa.name!r} cannot bound"
            )


def auto_lirpa() -> Any:
    """The library. Imported when a network is prepared: the listing works without it.

    Raises UsageError if it is missing, too old, or does not work with this torch.
    """
    advice = f"install it from {HOME} or choose another --verifier"
    try:
        with warnings.catch_warnings(record=True):  # its import warns, and sets filters
            library = importlib.import_module("auto_LiRPA")
    except Exception as error:
        raise UsageError(
            f"verifier {AutoLirpa.name!r} needs auto_LiRPA ({in_one_line(error)}): {advice}"
        ) from error
    found = library.__version__
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise UsageError(
            f"verifier {AutoLirpa.name!r} needs auto_LiRPA {oldest}, not {found}: {advice}"
        )
    return library


def in_one_line(error: Exception) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


class Bounds:
    """A BoundFn: the network in auto_LiRPA's form, converted once; weights come with each call.

    Results stay on auto_LiRPA's nodes until the next call, so two threads cannot share one.
    """

    def __init__(self, library: Any, network: Network, method: str, lower_slope: str) -> None:
        self._library, self._network, self._method = library, network, method
        options = {
            "activation_bound_option": lower_slope,
            # Or the given tensors would be told whether to require gradients.
            "param": {"auto_requires_grad": False},
            # Or the bound of a box would depend on which units are unstable in another.
            "sparse_intermediate_bounds": False,
            # Its other mode gave wrong bounds for grouped convolutions.
            "conv_mode": "matrix",
        }
        form = Form(network)
        example = torch.zeros(1, *network.input_shape, dtype=network.dtype)
        with warnings.catch_warnings(record=True):  # tracing warns of what torch will drop
            warnings.simplefilter("ignore")
            self._module = library.BoundedModule(form, example, bound_opts=options, device="cpu")
        self._input = self._module[self._module.input_name[0]]
        nodes = {getattr(node, "ori_name", None): node.name for node in self._module.nodes()}
        self._keys = {
            name: f"{nodes[own]}.param" for name, own in form.names.items() if own in nodes
        }
        self._kernels = form.kernels

    def __call__(self, params: Mapping[str, Tensor], box: Box, C: Tensor, d: Tensor) -> LinearBound:
        A = C.new_zeros(*d.shape, *box.input_shape)
        given = [*params.values(), box.lower, box.upper]
        if not all(bool(tensor.isfinite().all()) for tensor in given):
            return LinearBound(A, torch.full_like(d, -torch.inf))
        least = self._least(params, box, C).reshape(d.shape)
        # With return_A it gives A and b without their gradients; on the input's node they have
        # them. There is no A if no pass went back to the input.
        if (found := getattr(self._input, "lA", None)) is not None:
            A = found.transpose(0, 1).reshape(A.shape)
        rows = A.flatten(2)
        b = least + d - dot(rows, box.center) + dot(rows.abs(), box.radius)
        known = rows.isfinite().all(2) & b.isfinite()
        A = torch.where(known.view(*known.shape, *[1] * len(box.input_shape)), A, 0)
        return LinearBound(A, torch.where(known, b, -torch.inf))

    def _least(self, params: Mapping[str, Tensor], box: Box, C: Tensor) -> Tensor:
        """Lower bound of ``C f(x)`` on each box; only for the call other weights are in place."""
        region = self._library.PerturbationLpNorm(x_L=box.lower, x_U=box.upper)
        task = {
            "method_opt": "compute_bounds",
            "x": (self._library.BoundedTensor(box.center, region),),
            "C": C,
            "method": self._method,
            "bound_upper": False,
        }
        kernels = {name: kernel.to(C.dtype) for name, kernel in self._kernels.items()}
        tensors = {**params, **kernels}
        weights = {key: tensors[name] for name, key in self._keys.items()}
        default = torch.get_default_dtype()
        torch.set_default_dtype(C.dtype)  # of the identities that it starts from
        try:
            least: Tensor = torch.func.functional_call(
                self._module, weights, kwargs=task, tie_weights=False
            )[0]
        finally:
            torch.set_default_dtype(default)
        return least

    def try_out(self) -> None:
        """Bound one point, where the bound is the network's value, before any work is done.

        Raises ArithmeticError if it is not: then auto_LiRPA reads an operation in another way.
        """
        shape, outputs = self._network.input_shape, self._network.outputs
        tensors = {name: tensor.double() for name, tensor in self._network.tensors.items()}
        point = torch.linspace(0, 1, math.prod(shape), dtype=torch.float64).reshape(1, *shape)
        C = torch.ones(1, 1, outputs, dtype=torch.float64)
        with torch.no_grad():
            have = self(tensors, Box(point, point), C, C.new_zeros(1, 1)).minimum(Box(point, point))
            want = self._network.apply_tensors(tensors, point)
        gap = (have - want.sum()).abs() / (1 + want.abs().sum())
        if bool(have.isfinite().all()) and bool(gap > 1e-6):
            raise ArithmeticError("it computes another function")


def dot(rows: Tensor, value: Tensor) -> Tensor:
    """Rows [B,M,S] times points [B,*S]: [B,M]."""
    return (rows @ value.flatten(1).unsqueeze(2)).squeeze(2)


# The network as auto_LiRPA reads it ----------------------------------------------------


class Form(nn.Module):
    """The network for auto_LiRPA to trace, in operations that it has rules for.

    names: of the parameters, by the names of tensors. kernels: what stands for the pads.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.operations = network.operations
        shapes = {"input": network.input_shape} | {op.name: op.shape for op in network.operations}
        self.kernels = {
            kernel_name(op): padding_kernel(op, shapes[op.inputs[0]][0]).to(network.dtype)
            for op in network.operations
            if op.kind == "pad"
        }
        tensors = network.tensors | self.kernels
        self.weights = nn.ParameterList(
            nn.Parameter(tensor, requires_grad=False) for tensor in tensors.values()
        )
        self.names = {name: f"weights.{i}" for i, name in enumerate(tensors)}

    def forward(self, x: Tensor) -> Tensor:
        tensors = dict(zip(self.names, self.weights, strict=True))
        values = {"input": x}
        for op in self.operations:
            values[op.name] = STEPS[op.kind](op, tensors, [values[name] for name in op.inputs])
        return values[self.operations[-1].name]


Step = Callable[[Operation, Mapping[str, Tensor], Sequence[Tensor]], Tensor]


def weight(op: Operation, tensors: Mapping[str, Tensor], role: str) -> Tensor | None:
    return tensors[op.tensors[role]] if role in op.tensors else None


def scale(op: Operation, tensors: Mapping[str, Tensor], x: Sequence[Tensor]) -> Tensor:
    factor, shift = weight(op, tensors, "weight"), weight(op, tensors, "bias")
    y = x[0] if factor is None else x[0] * factor
    return y if shift is None else y + shift


def pad(op: Operation, tensors: Mapping[str, Tensor], x: Sequence[Tensor]) -> Tensor:
    """A convolution that moves and pads: auto_LiRPA's own rule fails on what torch exports."""
    most = widest(op)
    kernel = tensors[kernel_name(op)]
    return F.conv2d(x[0], kernel, padding=(most, most), groups=len(kernel))


def padding_kernel(op: Operation, channels: int) -> Tensor:
    """[channels,1,h,w] with a single 1, where the value that moves to the corner is."""
    left, right, top, bottom = pads(op)
    most = widest(op)
    kernel = torch.zeros(channels, 1, 2 * most + 1 - top - bottom, 2 * most + 1 - left - right)
    kernel[:, :, most - top, most - left] = 1
    return kernel


def kernel_name(op: Operation) -> str:
    return f"{op.name}: pad"


def pads(op: Operation) -> tuple[int, ...]:
    given = op.settings["pad"]
    assert isinstance(given, tuple)
    return given


def widest(op: Operation) -> int:
    return max(0, *pads(op))


STEPS: dict[str, Step] = {
    "linear": lambda op, t, x: F.linear(x[0], t[op.tensors["weight"]], weight(op, t, "bias")),
    "conv2d": lambda op, t, x: F.conv2d(
        x[0], t[op.tensors["weight"]], weight(op, t, "bias"), **op.settings
    ),
    "scale": scale,
    "relu": lambda op, t, x: F.relu(x[0]),
    "avg_pool2d": lambda op, t, x: F.avg_pool2d(x[0], **op.settings),
    "pad": pad,
    "reshape": lambda op, t, x: x[0].reshape(-1, *op.shape),
    "permute": lambda op, t, x: x[0].permute(0, *(axis + 1 for axis in op.settings["axes"])),
    "add": lambda op, t, x: x[0] + x[1],
}


@hookimpl
def advrepair_components() -> list[type[Verifier]]:
    return [AutoLirpa]
