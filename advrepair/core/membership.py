"""Which boxes hold a point, and which boxes meet: the one membership test.

Exact: whether a pair meets is decided by comparing it in all coordinates, faces included, in the
wider of two dtypes. An index only leaves out pairs that it has shown to be apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from attrs import define, frozen
from torch import Tensor

from advrepair.core.box_index import Index, Pairs

_COARSE, _SAMPLE = 6, 64  # coordinates of every pair without an index; boxes to choose them by
_PROBES, _STAGE = 32, 8  # compared before the others where many pairs are left; at a time
_QUERIES, _ROWS, _PAIRS = 1024, 512, 2**18  # taken at a time, for bounded memory
_PAYS = 2**19  # pairs asked about before an index is built


@frozen(eq=False)
class Scan:
    """Boxes without an index: all pairs are compared, in a few coordinates.

    lower, upper: of all boxes, a row for each of those coordinates.
    """

    coordinate: Tensor
    lower: Tensor
    upper: Tensor

    @classmethod
    def of(cls, lower: Tensor, upper: Tensor) -> Scan:
        """Of boxes with these faces, [R,S]: coordinates that vary tell most of them apart."""
        some = lower[:_SAMPLE] if len(lower) else lower.new_zeros(1, lower.shape[1])
        spread = some.double().var(0, correction=0)
        coordinate = spread.topk(min(_COARSE, lower.shape[1])).indices
        return cls(
            coordinate, lower[:, coordinate].T.contiguous(), upper[:, coordinate].T.contiguous()
        )

    def candidates(self, low: Tensor, high: Tensor) -> Iterator[Pairs]:
        """Pairs of a query and a box, each once, among them all that meet."""
        below, above = low[:, self.coordinate], high[:, self.coordinate]
        step = max(1, _PAIRS // self.lower.shape[1])
        for start in range(0, len(low), step):
            part, near = slice(start, start + step), None
            for k, (lower, upper) in enumerate(zip(self.lower, self.upper, strict=True)):
                met = (lower <= above[part, k, None]) & (below[part, k, None] <= upper)
                near = met if near is None else near & met
            if near is not None:
                query, box = near.nonzero().T
                yield query + start, box


@frozen(eq=False)
class Membership:
    """R boxes that can be asked which of them meet others. lower, upper: [R,S]."""

    lower: Tensor
    upper: Tensor
    index: Index | Scan

    def first(self, x: Tensor) -> Tensor:
        """The first box that holds each point [N,S]: [N], -1 where there is none."""
        none = len(self.lower)
        found = torch.full((len(x),), none, dtype=torch.long, device=x.device)
        for query, box, met in self._pairs(x, x):
            found.scatter_reduce_(0, query, box.where(met, none), "amin")
        return found.masked_fill_(found == none, -1)

    def meets(self, low: Tensor, high: Tensor) -> Tensor:
        """All pairs (i, j) for which query i and box j share a point: [pairs, 2], sorted.

        low, high: faces of the queries, [N,S]; the same tensor twice for points.
        """
        nothing = torch.zeros(0, dtype=torch.long, device=low.device)
        pairs = ((query[met], box[met]) for query, box, met in self._pairs(low, high))
        query, box = (torch.cat(part) for part in zip((nothing, nothing), *pairs, strict=True))
        order = (query * len(self.lower) + box).argsort()
        return torch.stack([query[order], box[order]], 1)

    def _pairs(self, low: Tensor, high: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Pairs, each once and in no order, and whether they meet; of others it is known."""
        if not len(self.lower):
            return
        for start in range(0, len(low), _QUERIES):
            below = low[start : start + _QUERIES]
            above = below if low is high else high[start : start + _QUERIES]
            for query, box in self.index.candidates(below, above):
                if len(query) > _QUERIES and low.shape[1] > _PROBES:
                    query, box = self._near(below, above, query, box)
                for i, j in zip(query.split(_ROWS), box.split(_ROWS), strict=True):
                    yield i + start, j, self._met(below, above, i, j)

    def _near(self, low: Tensor, high: Tensor, query: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the pairs that meet in some coordinates."""
        width = low.shape[1]
        probes = torch.arange(_PROBES, device=low.device) * width // _PROBES
        for some in probes.split(_STAGE):
            i, j = query[:, None], box[:, None]
            begun = self.lower[j, some] <= high[i, some]
            kept = (begun & (low[i, some] <= self.upper[j, some])).all(1).nonzero()[:, 0]
            query, box = query[kept], box[kept]
        return query, box

    def _met(self, low: Tensor, high: Tensor, query: Tensor, box: Tensor) -> Tensor:
        """Whether query and box of each pair share a point: bool [.], by exact comparison."""
        above = high.index_select(0, query)
        below = above if low is high else low.index_select(0, query)
        # Written as 0 and 1 of the faces' own dtype: several times faster than bool.
        begun = self.lower.index_select(0, box).le_(above)
        return begun.mul_(self.upper.index_select(0, box).ge_(below)).amin(1) > 0


@define(eq=False)
class Kept:
    """The membership test of some boxes, built when it pays, and again if they change.

    It is neither copied nor stored with what it belongs to.
    """

    _built: Membership | None = None
    _versions: tuple[int, int] = (0, 0)
    _asked: int = 0

    def of(self, lower: Tensor, upper: Tensor, queries: int) -> Membership:
        """Of these boxes, [R,*S], for so many queries."""
        versions = (_version(lower), _version(upper))
        if self._built is not None and self._versions == versions:
            return self._built
        low, high = lower.detach().flatten(1), upper.detach().flatten(1)
        self._built, self._asked = None, self._asked + len(low) * queries
        if self._asked < _PAYS or not len(low):
            return Membership(low, high, Scan.of(low, high))
        self._versions = versions
        self._built = Membership(low, high, Index.of(low, high))
        return self._built

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        return Kept()

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


def _version(tensor: Tensor) -> int:
    """Changes whenever the tensor is written to, where torch knows."""
    return 0 if tensor.is_inference() else tensor._version
