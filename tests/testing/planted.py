"""DeepPoly as in a textbook, made of replaceable pieces, and mistakes to replace them with.

For fully connected networks, in plain floating point: short enough to be seen correct, and
it shares no code with the verifiers that are shipped.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from advrepair.core.errors import UnsupportedNetworkError
from advrepair.core.graph import Network, Operation
from advrepair.core.interfaces import BoundFn, Verifier
from advrepair.core.rounding import Rounding
from advrepair.core.types import Box, LinearBound
from advrepair.plugins.verifiers.deeppoly import DeepPoly

Interval = tuple[Tensor, Tensor]
Lines = tuple[Tensor, Tensor, Tensor]  # lower slope, upper slope, upper offset; [B,units]


def relax(lower: Tensor, upper: Tensor) -> Lines:
    """Lines around ReLU: 0 or 1 where it is affine, least area where it is not."""
    dead, active = upper <= 0, lower >= 0
    chord = upper / (upper - lower).clamp(min=1e-300)
    above = torch.where(dead, 0.0, torch.where(active, 1.0, chord))
    below = torch.where(dead, 0.0, torch.where(active, 1.0, (upper > -lower).to(lower.dtype)))
    return below, above, torch.where(dead | active, 0.0, -chord * lower)


def lowest(A: Tensor, b: Tensor, box: Box) -> Tensor:
    """The least value of rows [B,M,S] over a box, at the corner against their sign."""
    low, high = box.lower.flatten(1).unsqueeze(1), box.upper.flatten(1).unsqueeze(1)
    return (A * torch.where(A >= 0, low, high)).sum(2) + b


def _same(value: Interval) -> Interval:
    return value


def _as_is(honest: BoundFn) -> BoundFn:
    return honest


@frozen(eq=False)
class Textbook(Verifier):
    """DeepPoly by back-substitution, for fully connected ReLU networks.

    relax, lowest: see the functions. interval: what becomes of intermediate bounds.
    around: makes the function of a whole call from the one of this class.
    """

    name: ClassVar[str] = "textbook"
    differentiable: ClassVar[bool] = True
    batchable: ClassVar[bool] = True
    rigorous: ClassVar[bool] = False

    relax: Callable[[Tensor, Tensor], Lines] = field(default=relax)
    lowest: Callable[[Tensor, Tensor, Box], Tensor] = field(default=lowest)
    interval: Callable[[Interval], Interval] = field(default=_same)
    around: Callable[[BoundFn], BoundFn] = field(default=_as_is)

    def prepare(self, network: Network, rounding: Rounding | None = None) -> BoundFn:
        for op in network.operations:
            if op.kind not in ("linear", "relu"):
                raise UnsupportedNetworkError(f"node {op.name!r}: {op.kind} is not in the book")

        def bound(params: Mapping[str, Tensor], box: Box, C: Tensor, d: Tensor) -> LinearBound:
            lines: dict[str, Lines] = {}
            for index, op in enumerate(network.operations):
                if op.kind == "relu":
                    before = network.operations[:index]
                    eye = torch.eye(op.shape[0], dtype=C.dtype).expand(len(box), -1, -1)
                    low = self.lowest(*back(before, lines, params, eye, d.new_zeros(())), box)
                    high = -self.lowest(*back(before, lines, params, -eye, d.new_zeros(())), box)
                    lines[op.name] = self.relax(*self.interval((low, high)))
            return LinearBound(*back(network.operations, lines, params, C, d))

        return self.around(bound)


def back(
    operations: tuple[Operation, ...],
    lines: Mapping[str, Lines],
    params: Mapping[str, Tensor],
    A: Tensor,
    b: Tensor,
) -> tuple[Tensor, Tensor]:
    """Rows over the last operation's value as rows over the input."""
    for op in reversed(operations):
        if op.kind == "relu":
            below, above, offset = (line.unsqueeze(1) for line in lines[op.name])
            b = b + (A.clamp(max=0) * offset).sum(2)
            A = A.clamp(min=0) * below + A.clamp(max=0) * above
        else:
            b = b + A @ params[op.tensors["bias"]]
            A = A @ params[op.tensors["weight"]]
    return A, b


def _swapped_slopes(lower: Tensor, upper: Tensor) -> Lines:
    below, above, offset = relax(lower, upper)
    return above, below, offset


def _missing_intercept(lower: Tensor, upper: Tensor) -> Lines:
    below, above, offset = relax(lower, upper)
    return below, above, torch.zeros_like(offset)


def _dead_as_active(lower: Tensor, upper: Tensor) -> Lines:
    below, above, offset = relax(lower, upper)
    return below, torch.where(upper <= 0, 1.0, above), offset


def _dead_not_flat(lower: Tensor, upper: Tensor) -> Lines:
    below, above, offset = relax(lower, upper)
    return torch.where(upper <= 0, 1.0, below), above, offset


def _slightly_low_intercept(lower: Tensor, upper: Tensor) -> Lines:
    below, above, offset = relax(lower, upper)
    return below, above, 0.999 * offset


def _wrong_corner(A: Tensor, b: Tensor, box: Box) -> Tensor:
    return (A @ box.lower.flatten(1).unsqueeze(2)).squeeze(2) + b


def _shrunk(value: Interval) -> Interval:
    less = 0.01 * (value[1] - value[0])
    return value[0] + less, value[1] - less


def _cut_off(value: Interval) -> Interval:
    return value[0].detach(), value[1].detach()


def _first_box(honest: BoundFn) -> BoundFn:
    def bound(params: Mapping[str, Tensor], box: Box, C: Tensor, d: Tensor) -> LinearBound:
        same = Box(box.lower[:1].expand_as(box.lower), box.upper[:1].expand_as(box.upper))
        return honest(params, same, C, d)

    return bound


def _first_specification(honest: BoundFn) -> BoundFn:
    return lambda params, box, C, d: honest(params, box, C[:1].expand_as(C), d[:1].expand_as(d))


def changed(change: Callable[[LinearBound], LinearBound]) -> Callable[[BoundFn], BoundFn]:
    """Change what a call returns."""

    def around(honest: BoundFn) -> BoundFn:
        return lambda params, box, C, d: change(honest(params, box, C, d))

    return around


@frozen(eq=False)
class _RoundingIgnored(DeepPoly):
    """Says that it is rigorous, and is not."""

    def prepare(self, network: Network, rounding: Rounding | None = None) -> BoundFn:
        large = torch.full((1, network.outputs), 1e3)
        return changed(lambda bound: evolve(bound, magnitude=large))(super().prepare(network))


BUGS: dict[str, Verifier] = {
    "swapped slopes": Textbook(relax=_swapped_slopes),
    "missing intercept": Textbook(relax=_missing_intercept),
    "wrong slope on dead neurons": Textbook(relax=_dead_as_active),
    "wrong corner": Textbook(lowest=_wrong_corner),
    "shrunk intermediate bounds": Textbook(interval=_shrunk),
    "first box for the whole batch": Textbook(around=_first_box),
    "NaN becomes zero": Textbook(
        around=changed(lambda bound: LinearBound(bound.A.nan_to_num(), bound.b.nan_to_num()))
    ),
    "detached graph": Textbook(
        around=changed(lambda bound: LinearBound(bound.A.detach(), bound.b.detach()))
    ),
}

# The same families, harder to see.
SUBTLE: dict[str, Verifier] = {
    "lower slope of dead neurons": Textbook(relax=_dead_not_flat),  # sound, but not exact
    "intercept too small by 0.1 %": Textbook(relax=_slightly_low_intercept),
    "first specification for all": Textbook(around=_first_specification),
    "intermediate bounds detached": Textbook(interval=_cut_off),
    "rounding ignored": _RoundingIgnored(),
}
