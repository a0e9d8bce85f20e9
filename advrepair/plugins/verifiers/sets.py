"""Sets of points carried forwards, for what ReLUs see; rows are pulled back as DeepPoly does."""

from __future__ import annotations

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor

from advrepair.core.graph import INPUT, Network, Operation
from advrepair.core.rounding import UNIT64, above, gamma
from advrepair.core.types import LinearBound
from advrepair.plugins.verifiers.affine import fan_in
from advrepair.plugins.verifiers.propagation import Propagation
from advrepair.plugins.verifiers.relaxations import STEPS_OF_SLOPE, Relaxation

_KINDS = frozenset({"linear", "relu", "reshape"})
_FEW = 64  # inputs, up to which it pays to say what each of them answers for


def can_follow(network: Network) -> bool:
    """Whether the network is linear layers and ReLUs in a row, each on all values at once."""
    before = [INPUT, *(op.name for op in network.operations)]
    shapes = [network.input_shape, *(op.shape for op in network.operations)]
    steps = zip(network.operations, shapes, strict=False)
    # On a matrix a layer acts on every row alone, which a set here does not follow.
    flat = all(op.kind != "linear" or len(shape) == 1 for op, shape in steps)
    chain = all(
        list(op.inputs) == [name] for op, name in zip(network.operations, before, strict=False)
    )
    return chain and flat and {op.kind for op in network.operations} <= _KINDS


@frozen(eq=False)
class PointSet:
    """The points ``z + G a + E b + t`` with ``|a|, |b| <= 1`` and ``|t| <= error``.

    z, error, reach: [B,n]; reach is at least the distance of a point from z. G: [B,S,n], of the
    inputs. E: [R,n], each row of one box, owner: [R]. share: [R,S], how much of the ReLU that
    brought a row each input answers for.
    """

    z: Tensor
    G: Tensor
    E: Tensor
    owner: Tensor
    share: Tensor
    error: Tensor
    reach: Tensor

    @classmethod
    def of(
        cls, z: Tensor, G: Tensor, E: Tensor, owner: Tensor, share: Tensor, error: Tensor
    ) -> PointSet:
        """Measures the reach; a sum of so many numbers is off by less than is added."""
        reach = G.abs().sum(1).index_add_(0, owner, E.abs())
        return cls(z, G, E, owner, share, error, reach * (1 + gamma(G.shape[1] + len(E))) + error)

    def ends(self) -> tuple[Tensor, Tensor]:
        """Least and largest value, [B,n] each."""
        slack = 4 * UNIT64 * (self.z.abs() + self.reach)
        return self.z - self.reach - slack, self.z + self.reach + slack


@define(eq=False)
class Forward(Propagation):
    """As DeepPoly, with a set of points carried forwards instead of rows pulled backwards."""

    sets: dict[str, PointSet] = field(factory=dict)
    steep: dict[str, Relaxation] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        known = self.shallow[INPUT]
        z, radius = known.center.flatten(1), known.radius.flatten(1)
        # The radius covers both faces although the middle is rounded.
        radius = radius + 4 * UNIT64 * (z.abs() + radius) if self.rounding else radius
        E, owner = z.new_zeros(0, z.shape[1]), torch.zeros(0, dtype=torch.long)
        self.sets[INPUT] = PointSet.of(
            z, torch.diag_embed(radius), E, owner, E, torch.zeros_like(z)
        )

    def rows(self, C: Tensor, d: Tensor) -> LinearBound:
        """Rows of ``C f(x) + d``: of two choices of lines, row by row the better one.

        Sound: each choice is.
        """
        self.relax_all()
        last = len(self.network.operations) - 1
        same = self.back_substitute(last, C, d)
        parallel, self.relaxed = self.relaxed, self.steep
        steep, self.relaxed = self.back_substitute(last, C, d), parallel
        take = steep.minimum(self.box) > same.minimum(self.box)
        shape = (*take.shape, *[1] * (same.A.dim() - 2))
        A = torch.where(take.view(shape), steep.A, same.A)
        b, known = torch.where(take, steep.b, same.b), self._influence(C)
        if same.error is None or steep.error is None:
            return evolve(same, A=A, b=b, influence=known)
        error = torch.maximum(same.error, steep.error)
        return evolve(same, A=A, b=b, influence=known, error=error)

    def _influence(self, C: Tensor) -> Tensor | None:
        """How much of the width of each row every input answers for: [B,M,*S]."""
        found = self.sets[self.network.operations[-1].name]
        if found.G.shape[1] > _FEW:
            return None
        C = C.expand(len(self.box), -1, -1)
        own = (C @ found.G.transpose(1, 2)).abs()
        rows = torch.einsum("rn,rmn->rm", found.E, C[found.owner]).abs()
        parts = rows.unsqueeze(2) * found.share.unsqueeze(1)
        total = own.index_add(0, found.owner, parts)
        return total.view(*total.shape[:2], *self.network.input_shape)

    def _interval(self, name: str, reader: Operation) -> tuple[Tensor, Tensor]:
        """Bounds of a value over the boxes, [B,*shape] each: the ends of its set."""
        shapes = {op.name: op.shape for op in self.network.operations}
        shape = shapes.get(name, self.network.input_shape)
        lower, upper = self.sets[name].ends()
        return lower.unflatten(1, shape), upper.unflatten(1, shape)

    def _relax(self, op: Operation) -> None:
        """Lines around a ReLU, and its set.

        Sound: for any slope s in [0, 1], relu(v) - s v is convex, 0 at 0 and largest at an end of
        what v can be, so it lies in [0, 2 m] with 2 m its larger end; products of ours are off by
        less than is added to the error.
        """
        super()._relax(op)
        lower, upper = self._interval(op.inputs[0], op)
        rigorous = self.rounding is not None
        lower, upper = lower.flatten(1), upper.flatten(1)
        before = self.sets[op.inputs[0]]
        slope = self.relaxed[op.name].lower_slope.flatten(1)
        middle = torch.maximum(-slope * lower.clamp(max=0), (1 - slope) * upper.clamp(min=0)) / 2
        middle = torch.where((lower >= 0) | (upper <= 0), 0.0, middle * (1 + 8 * UNIT64))
        box, unit = (middle > 0).nonzero(as_tuple=True)
        share = before.G.transpose(1, 2)[box, unit].abs() / before.reach[box, unit].unsqueeze(1)
        fresh = middle.new_zeros(len(box), middle.shape[1])
        fresh[torch.arange(len(box)), unit] = middle[box, unit]
        z = slope * before.z + middle
        error = slope * before.error
        if rigorous:
            error = above(error + 8 * UNIT64 * (z.abs() + slope * before.reach + middle))
        # Every row shrinks by its unit's slope, and the fresh one is the middle.
        reach = (slope * before.reach + middle) * (1 + 8 * UNIT64) + error
        self.sets[op.name] = PointSet(
            z,
            before.G * slope.unsqueeze(1),
            torch.cat([before.E * slope[before.owner], fresh]),
            torch.cat([before.owner, box]),
            torch.cat([before.share, share]),
            error,
            reach,
        )

    def lines(self, op: Operation, lower: Tensor, upper: Tensor) -> Relaxation:
        """Two parallel lines; those of the other choice are kept besides.

        A certificate stores slopes in 255 steps, of which the last bit says which way is steep.
        The line above has the stored slope too: a checker whose bounds are tighter and whose
        slopes are these finds no less, as only the lines' offsets shrink.
        """
        low, high = lower.clamp(max=0), upper.clamp(min=0)
        steep = (upper > -lower).to(lower.dtype)
        tiny = torch.finfo(lower.dtype).tiny
        share = high / (high - low).clamp(min=tiny)
        slope = (2 * (share * (STEPS_OF_SLOPE // 2)).round() + steep) / STEPS_OF_SLOPE
        offset = torch.maximum(-slope * low, (1 - slope) * high)
        if self.rounding:
            offset = offset + 8 * UNIT64 * torch.maximum(-low, high) + tiny
        self.steep[op.name] = Relaxation(steep, slope, offset)
        return Relaxation(slope, slope, offset)

    def _extend_shallow(self, op: Operation) -> None:
        """Carry the set through an affine operation.

        Sound: the exact image of a set is one; our sums of products and the deployed ones differ
        from it by at most a rate of the sums of their absolute terms.
        """
        super()._extend_shallow(op)
        before = self.sets[op.inputs[0]]
        if op.kind == "reshape":
            self.sets[op.name] = before
            return
        W = self.params[op.tensors["weight"]].T
        bias = self.params[op.tensors["bias"]] if "bias" in op.tensors else W.new_zeros(W.shape[1])
        error = before.error @ W.abs()
        if self.rounding:
            terms = fan_in(op, self.params)
            ours = (before.z.abs() + before.reach) @ W.abs() + bias.abs()
            deployed = self.rounding.relative(terms, terms) * self.sums[op.name].flatten(1)
            error = above(
                error + deployed + gamma(2 * terms + 16) * ours + self.rounding.absolute(terms)
            )
        self.sets[op.name] = PointSet.of(
            torch.addmm(bias, before.z, W),
            before.G @ W,
            before.E @ W,
            before.owner,
            before.share,
            error,
        )
