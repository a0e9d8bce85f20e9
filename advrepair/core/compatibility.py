"""Whether several demands can hold at one output.

A demand is a set of groups, and each group needs one row that is > 0. Finding an output that
meets all groups is hard in general, as each of them leaves a choice. So an output is searched
for, and counts only if its rows are positive beyond what rounding could have done.
"""

from __future__ import annotations

import torch
from torch import Tensor

from advrepair.core.rounding import UNIT64

_STARTS, _STEPS = 8, 100
_RELAXED = 1.5  # Agmon: any factor between 0 and 2 converges for a convex set
_DEPTHS = (1.0, 1e-3, 1e-6)  # how far inside the safe side a projection ends


def common_output(C: Tensor, d: Tensor, group: Tensor) -> Tensor | None:
    """An output that meets every group, [K], or None if none is found.

    Relaxed projections (Agmon, Canadian Journal of Mathematics 6, 1954), onto the nearest row
    of a group that is broken, from several starts.

    C: rows, float64 [M,K]. d: [M]. group: [M], -1 pads.
    """
    if impossible(C, d, group):
        return None
    C, d, member = _unit_rows(C, d, group)
    generator = torch.Generator().manual_seed(0)
    for depth in _DEPTHS:
        starts = torch.randn(_STARTS, C.shape[1], dtype=torch.float64, generator=generator)
        starts[0] = 0
        for start in starts:
            y: Tensor = start
            for _ in range(_STEPS):
                value = C @ y + d
                if _meets(C, d, member, y):
                    return y
                best, row = torch.where(member, value, -torch.inf).max(1)
                broken = best < depth
                # One after the other, the worst first: each sees what the last one did.
                for m in row[broken][best[broken].argsort()].tolist():
                    lack = depth - float(C[m] @ y + d[m])
                    if lack > 0:
                        y = y + _RELAXED * lack * C[m]
    return None


def impossible(C: Tensor, d: Tensor, group: Tensor) -> bool:
    """Whether some group is excluded row by row, each row by a group of one opposite row.

    Exact, but not complete: False says nothing. Arguments as of :func:`common_output`.
    """
    groups: dict[int, list[int]] = {}
    for m, g in enumerate(group.tolist()):
        if g >= 0:
            groups.setdefault(g, []).append(m)
    alone = torch.tensor([rows[0] for rows in groups.values() if len(rows) == 1])
    if not len(alone):
        return False
    # Rows of a group of one must hold. Scaled by a power of two, which rounds nothing, so that
    # opposite rows of unequal scale are recognised if the scale is such a power.
    scale = torch.exp2(-torch.frexp(C.abs().amax(1).clamp(min=1e-300)).exponent.double())
    C, d = C * scale[:, None], d * scale
    must, least = C[alone], d[alone]

    def excluded(m: int) -> bool:
        opposite = (must == -C[m]).all(1)
        return bool((opposite & (least <= -d[m])).any())

    return any(all(excluded(m) for m in rows) for rows in groups.values())


def _unit_rows(C: Tensor, d: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of length one without padding, and which group has which: bool [G,M]."""
    real = group >= 0
    C, d, group = C[real], d[real], group[real]
    length = C.norm(dim=1).clamp(min=1e-300)
    member = group.unique()[:, None] == group
    return C / length[:, None], d / length, member


def _meets(C: Tensor, d: Tensor, member: Tensor, y: Tensor) -> bool:
    """Whether a row of each group is positive by more than its own rounding and scaling."""
    slack = 4 * (C.shape[1] + 8) * UNIT64 * (C.abs() @ y.abs() + d.abs())
    return bool((member & (C @ y + d > slack)).any(1).all())
