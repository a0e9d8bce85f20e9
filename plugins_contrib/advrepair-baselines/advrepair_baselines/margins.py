"""Margins of outputs, without the boxes of their properties."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from advrepair import PropertySet


@frozen(eq=False)
class Rows:
    """The demands of some properties: C [n,M,K], d [n,M], group [n,M], -1 pads."""

    C: Tensor
    d: Tensor
    group: Tensor

    @classmethod
    def of(cls, properties: PropertySet, index: Tensor) -> Rows:
        """Of the properties with these numbers, [n]."""
        return cls(properties.C[index], properties.d[index], properties.group[index])

    def __len__(self) -> int:
        return len(self.C)

    def __getitem__(self, index: Tensor) -> Rows:
        return Rows(self.C[index], self.d[index], self.group[index])

    def repeated(self, times: int) -> Rows:
        """All of them, so many times one after the other."""
        return Rows(
            self.C.repeat(times, 1, 1), self.d.repeat(times, 1), self.group.repeat(times, 1)
        )

    def margin(self, y: Tensor) -> Tensor:
        """Of outputs [n,K]: [n], differentiable; > 0 iff every group has a row > 0."""
        C, d = self.C.to(y.dtype), self.d.to(y.dtype)
        values = torch.einsum("nmk,nk->nm", C, y) + d
        groups = []
        for number in range(int(self.group.max()) + 1):
            mine = self.group == number
            best = values.masked_fill(~mine, -torch.inf).amax(1)
            groups.append(best.masked_fill(~mine.any(1), torch.inf))
        return torch.stack(groups).amin(0)
