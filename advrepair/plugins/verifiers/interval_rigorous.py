"""Interval arithmetic forwards, with every rounding counted: ours and the deployed one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.graph import INPUT, NON_AFFINE, STEPS, Network, Operation
from advrepair.core.rounding import UNIT64, Rounding, above, gamma
from advrepair.core.types import LinearBound
from advrepair.plugins.verifiers.affine import fan_in, without_bias
from advrepair.plugins.verifiers.interval_arithmetic import image

Faces = tuple[Tensor, Tensor]


def enclose(
    network: Network,
    params: Mapping[str, Tensor],
    box: Box,
    C: Tensor,
    d: Tensor,
    rounding: Rounding,
) -> LinearBound:
    """Constants below ``C y + d`` for every deployed output y, [B,M]; rows A are zero.

    Sound: :meth:`_Enclosure.through` says why each value lies between its faces. A row is
    least where every output is at the face that its sign asks for; what the 2 K products
    and sums of that err by, gamma(2 K + 8) of the absolute terms, is subtracted. Faces that
    are not finite prove nothing.
    """
    low, high = _Enclosure.of(network, params, rounding).outputs(box)
    most = torch.maximum(low.abs(), high.abs())
    size = C.abs()
    least = C.clamp(min=0) @ low.unsqueeze(2) + C.clamp(max=0) @ high.unsqueeze(2)
    terms = (size @ most.unsqueeze(2)).squeeze(2) + d.abs()
    error = above(gamma(2 * C.shape[2] + 8) * terms)
    lower = (least.squeeze(2) + d - error).nan_to_num(-torch.inf, posinf=-torch.inf)
    # Constants only: a zero A without memory of its own.
    zero = box.lower.new_zeros(()).expand(*lower.shape, *box.lower.shape[1:])
    return LinearBound(zero, lower, most, error=error.expand_as(lower))


@frozen(eq=False)
class _Enclosure:
    network: Network
    params: Mapping[str, Tensor]
    absolute: Mapping[str, Tensor]
    rounding: Rounding

    @classmethod
    def of(cls, network: Network, params: Mapping[str, Tensor], rounding: Rounding) -> _Enclosure:
        return cls(network, params, {name: t.abs() for name, t in params.items()}, rounding)

    def outputs(self, box: Box) -> Faces:
        """Faces of the outputs, [B,K] each. A value is forgotten after its last use."""
        last = {name: i for i, op in enumerate(self.network.operations) for name in op.inputs}
        known: dict[str, Faces] = {INPUT: (box.lower, box.upper)}
        for i, op in enumerate(self.network.operations):
            known[op.name] = self.through(op, [known[name] for name in op.inputs])
            for name in set(op.inputs):
                if last[name] == i:
                    del known[name]
        return known[self.network.operations[-1].name]

    def through(self, op: Operation, inputs: list[Faces]) -> Faces:
        """Faces of what an operation gives, as deployed.

        Sound: of functions that are not affine as :func:`image` says; what only moves numbers is
        exact. Anything else is
        W x + b for x = c + s r, |s| <= 1, so W c + b -+ |W| r, with c and r that cover the faces.
        The deployed sum of k terms errs by ``rounding`` of T = |W| max|x| + |b|. Ours err by
        gamma(k + 2) of |W| |c| + |b| and of |W| r, both at most T, and the last three sums by
        units of 3 T: gamma(2 k + 20) of T is more.
        """
        step = STEPS[op.kind]
        if op.kind in NON_AFFINE:
            return image(op, *inputs[0], self.rounding)
        low, high = [list(faces) for faces in zip(*inputs, strict=True)]
        terms = fan_in(op, self.params)
        if not terms:
            return step(op, self.params, low), step(op, self.params, high)
        center = [(a + b) / 2 for a, b in inputs]
        radius = [
            torch.maximum(b - c, c - a) * (1 + 4 * UNIT64)
            for (a, b), c in zip(inputs, center, strict=True)
        ]
        most = [torch.maximum(a.abs(), b.abs()) for a, b in inputs]
        total = above(step(op, self.absolute, most))
        share = terms if op.kind == "avg_pool2d" else 1  # summed before it is divided
        total = self.rounding.overflowing(total * share) / share
        rate = self.rounding.relative(terms, 2 * terms + 20)
        slack = above(rate * total + self.rounding.absolute(terms))
        middle = step(op, self.params, center)
        reach = step(without_bias(op), self.absolute, radius)
        known = total < torch.inf
        below = torch.where(known, middle - reach - slack, -torch.inf)
        return below, torch.where(known, middle + reach + slack, torch.inf)
