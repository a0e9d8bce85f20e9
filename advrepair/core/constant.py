"""The trivial repair: a constant patch. The fallback of training, and the baseline.

Any finite bound of N gives one that is certified at once (``docs/concepts.md``), which is
why its figures stand beside every result.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from advrepair.core.batches import Batch
from advrepair.core.bounding import Bounder
from advrepair.core.patching import Stack, constant_stack
from advrepair.core.refinement import Worklist
from advrepair.core.types import group_margin, worst_margin

_ATTEMPTS = 6
_PROJECTIONS = 200


def constant_patches(patches: Tensor, worklist: Worklist, bounder: Bounder) -> tuple[Stack, Tensor]:
    """Constant patches, the smallest found that is proved, and which are: bool [q].

    patches: [q]. A patch whose base network has no finite bound, or whose properties ask
    for opposite things, is not proved. Proved as every patch of this shape is.
    """

    def margins(value: Tensor, batch: Batch, own: Tensor) -> Tensor:
        return bounder.margins(constant_stack(bounder.template, value), batch)

    value, proved = _constants(patches, worklist, bounder, margins)
    return constant_stack(bounder.template, value), proved


def constant_bias(patches: Tensor, worklist: Worklist, bounder: Bounder) -> tuple[Tensor, Tensor]:
    """The baseline: what a patch adds that looks at no input, [q,K], and whether it is proved.

    patches: [q]. It is a constant in the deployed function too, which takes no patch to bound.
    """

    def margins(value: Tensor, batch: Batch, own: Tensor) -> Tensor:
        value = value.to(bounder.network.dtype).double()  # as it is deployed
        pieces = value.repeat_interleave(batch.real.shape[1], 0)
        return bounder.shifted(own, batch.rows, batch.C, pieces)

    return _constants(patches, worklist, bounder, margins)


def _constants(
    patches: Tensor,
    worklist: Worklist,
    bounder: Bounder,
    margins: Callable[[Tensor, Batch, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    batch = worklist.batch(patches, rigorous=True)
    q, pieces = batch.real.shape
    known = batch.own
    margin = batch.rows.minimum_rigorous(batch.box) if known is None else known
    label = worklist.properties.label[worklist.owner]
    labels = [label[index].unique() for index in worklist.pieces_of(patches)]
    slack = torch.full((q,), 1e-3, dtype=torch.float64)
    parts, C = [slice(i * pieces, (i + 1) * pieces) for i in range(q)], batch.C.double()
    for _ in range(_ATTEMPTS):
        need = (slack.repeat_interleave(pieces)[:, None] - margin).clamp(min=0)
        value = torch.stack(
            [
                _one_label(need[part], int(labels[i]), bounder)
                if len(labels[i]) == 1 and int(labels[i]) >= 0
                else _projected(margin[part], C[part], batch.group[part], slack[i])
                for i, part in enumerate(parts)
            ]
        )
        proved = proved_patches(margins(value, batch, margin), batch.group, batch.real)
        if bool(proved.all()):
            break
        # Rounding in the deployed sum grows with the constant itself.
        slack = torch.where(proved, slack, 4 * slack + 2.0**-20 * value.abs().amax(1))
    return value, proved


def proved_patches(margin: Tensor, group: Tensor, real: Tensor) -> Tensor:
    """Patches all of whose pieces are proved: bool [q]. A NaN proves nothing.

    margin, group: [q*B,M]. real: bool [q,B], padding is False.
    """
    worst = worst_margin(margin, group).view(real.shape)
    return ((worst > 0) | ~real).all(1)


def _one_label(need: Tensor, label: int, bounder: Bounder) -> Tensor:
    """What the label's output lacks at most: all of it is added there, [K]."""
    value = need.new_zeros(bounder.template.outputs)
    value[label] = need.max()
    return value


def _projected(margin: Tensor, C: Tensor, group: Tensor, slack: Tensor) -> Tensor:
    """A constant for any specification, by relaxed projections on the most violated row: [K].

    Agmon's method (10.4153/CJM-1954-037-2) on C v >= slack - margin, one row a group; where
    it does not end at a solution, the constant is simply not proved.

    margin, group: [B,M]. C: [B,M,K].
    """
    value = margin.new_zeros(C.shape[2])
    for _ in range(_PROJECTIONS):
        rows = margin + C @ value
        groups = group_margin(rows, group)
        piece = int(groups.min(1).values.argmin())
        which = int(groups[piece].argmin())
        lack = slack - groups[piece, which]
        if not bool(lack > 0) or not bool(torch.isfinite(lack)):
            break
        row = int(torch.where(group[piece] == which, rows[piece], -torch.inf).argmax())
        direction = C[piece, row]
        value = value + 1.5 * lack / direction.square().sum().clamp(min=1e-30) * direction
    return value
