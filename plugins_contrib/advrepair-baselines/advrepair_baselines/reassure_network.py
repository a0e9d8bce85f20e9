"""A network with patches on linear regions, as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from advrepair import Network, write_network
from advrepair_baselines.reassure_lp import Patch
from advrepair_baselines.reassure_regions import Region


class PatchedRegions(nn.Module):
    """N + sum over patches of ReLU(p - K (1 - g)) - ReLU(-p - K (1 - g)).

    g = ReLU(1 - sum min(1, ReLU(a x - b) / w)) over the rows and faces of a region, w its
    collar. Where g is 1, the patch is p to the last bit, as K is multiplied by 0. All but N
    is computed in float64, and regions whose box is farther than the collar are left out.

    collar: [Q]. most: K, at least |p| on every input that is asked for, [Q].
    """

    A: Tensor
    b: Tensor
    lower: Tensor
    upper: Tensor
    c: Tensor
    d: Tensor
    collar: Tensor
    most: Tensor

    def __init__(
        self,
        base: Network,
        regions: list[Region],
        patches: list[Patch],
        collar: Tensor,
        most: Tensor,
    ) -> None:
        super().__init__()
        self.base, self.rows = base, [len(each.b) for each in regions]
        for name, value in {
            "A": torch.cat([each.A for each in regions]),
            "b": torch.cat([each.b for each in regions]),
            "lower": torch.stack([each.lower for each in regions]),
            "upper": torch.stack([each.upper for each in regions]),
            "c": torch.stack([each.c for each in patches]),
            "d": torch.stack([each.d for each in patches]),
            "collar": collar,
            "most": most,
        }.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """[N,*S] to [N,K]."""
        y, z = self.base(x), x.flatten(1).double()
        total = y.new_zeros(y.shape, dtype=torch.float64)
        query, patch = self._near(z.detach())
        for number in patch.unique().tolist():
            index = query[patch == number]
            total = total.index_add(0, index, self._added(z[index], number))
        return y + total.to(y.dtype)

    def _near(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of inputs and patches whose box is nearer than the collar."""
        center, radius = (self.lower + self.upper) / 2, (self.upper - self.lower) / 2
        # A first look by the widest side, of every pair; then every side of those that are left.
        wide = radius.amax(1) + 2 * self.collar
        query, patch = (torch.cdist(z, center, p=torch.inf) <= wide).nonzero().T
        near = []
        for q, p in zip(query.split(10_000), patch.split(10_000), strict=True):
            outside = torch.maximum(self.lower[p] - z[q], z[q] - self.upper[p])
            near.append((outside < self.collar[p, None]).all(1))
        keep = torch.cat(near)
        return query[keep], patch[keep]

    def _added(self, z: Tensor, number: int) -> Tensor:
        """What one patch adds, [n,K]."""
        begin = sum(self.rows[:number])
        A, b = (each[begin : begin + self.rows[number]] for each in (self.A, self.b))
        outside = (self.lower[number] - z).clamp(min=0) + (z - self.upper[number]).clamp(min=0)
        beyond = torch.cat([outside, (z @ A.T - b).clamp(min=0)], 1)
        total = (beyond / self.collar[number]).clamp(max=1).sum(1, keepdim=True)
        off = self.most[number] * (1 - (1 - total).clamp(min=0))
        p = z @ self.c[number].T + self.d[number]
        return (p - off).clamp(min=0) - (-p - off).clamp(min=0)

    def write(self, to: Any, x: str) -> str:
        """The same, operator by operator, every patch for every input: [N,K]."""
        y = write_network(to, self.base, x)
        patches, outputs, inputs = self.c.shape
        z = to.call("Cast", to.call("Flatten", x, axis=1), to=torch.float64)
        one = to.constant(torch.ones(1, dtype=torch.float64))

        def positive(value: str) -> str:
            return to.call("Max", value, to.constant(torch.zeros(1, dtype=torch.float64)))

        def steps(value: str, width: Tensor) -> str:
            return to.call("Min", to.call("Div", positive(value), to.constant(width)), one)

        spread = to.call("Unsqueeze", z, axes=(1,))
        sides = [
            steps(
                to.call("Sub", to.constant(self.lower[None]), spread), self.collar[None, :, None]
            ),
            steps(
                to.call("Sub", spread, to.constant(self.upper[None])), self.collar[None, :, None]
            ),
        ]
        total = to.call("ReduceSum", to.call("Add", *sides), axes=(2,), keepdims=0)
        if len(self.b):
            owner = torch.arange(patches).repeat_interleave(torch.tensor(self.rows))
            beyond = to.call(
                "Sub", to.call("MatMul", z, to.constant(self.A.T)), to.constant(self.b)
            )
            beyond = steps(beyond, self.collar[owner])
            which = (owner[:, None] == torch.arange(patches)).double()
            total = to.call("Add", total, to.call("MatMul", beyond, to.constant(which)))
        on = positive(to.call("Sub", one, total))
        off = to.call("Mul", to.call("Sub", one, on), to.constant(self.most[None]))
        off = to.call("Unsqueeze", off, axes=(2,))
        c = to.constant(self.c.reshape(-1, inputs).T)
        p = to.call("Add", to.call("MatMul", z, c), to.constant(self.d.reshape(-1)))
        p = to.call("Reshape", p, shape=(-1, patches, outputs))
        up = positive(to.call("Sub", p, off))
        down = positive(to.call("Sub", to.call("Neg", p), off))
        added = to.call("ReduceSum", to.call("Sub", up, down), axes=(1,), keepdims=0)
        return to.call("Add", y, to.call("Cast", added, to=self.base.dtype))
