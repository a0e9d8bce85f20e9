"""What is demanded, from points and a radius; and whether the demands can hold together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.errors import UsageError
from advrepair.core.types import PropertySet


def robustness(
    x: Tensor,
    label: Tensor,
    epsilon: float,
    outputs: int,
    *,
    clip: tuple[float, float] | None = None,
    target: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> PropertySet:
    """Every input within epsilon of x_i keeps label_i: one group a row, as in Def. 3.3.

    x: centres [P,*S]. label: [P]. epsilon: in input units. outputs: K. clip: input range.
    target: [P], the class most likely to win instead; -1 or None if not known.
    Raises UsageError for a label outside 0..K-1.
    """
    if outputs < 2:
        raise UsageError("the network has one output: a label needs at least two")
    if len(label) and not (int(label.min()) >= 0 and int(label.max()) < outputs):
        raise UsageError(f"labels must lie in 0..{outputs - 1}, found {int(label.max())}")
    count, rows = len(x), outputs - 1
    eye = torch.eye(outputs, dtype=x.dtype)
    others = torch.tensor([[k for k in range(outputs) if k != j] for j in range(outputs)])
    C = eye[label].unsqueeze(1) - eye[others[label]]
    return PropertySet(
        box=Box.around(x, epsilon, clip),
        C=C,
        d=torch.zeros(count, rows, dtype=x.dtype),
        group=torch.arange(rows).expand(count, rows).contiguous(),
        label=label,
        target=torch.full_like(label, -1) if target is None else target,
        center=x,
        names=tuple(names) if names is not None else tuple(f"input {i}" for i in range(count)),
    )


def refuse_contradictions(properties: PropertySet) -> None:
    """Raises UsageError if two boxes overlap and demand different things.

    Boxes that overlap with the same demand are fine: the router takes the first.
    """
    pairs = properties.box.meets(properties.box)
    i, j = pairs[pairs[:, 0] < pairs[:, 1]].T
    same = torch.ones_like(i, dtype=torch.bool)
    for part in (properties.C, properties.d, properties.group):
        same &= (part[i] == part[j]).flatten(1).all(1)
    if bool(same.all()):
        return
    bad = (~same).nonzero()[:, 0]
    a, b = int(i[bad[0]]), int(j[bad[0]])
    raise UsageError(
        f"{properties.names[a]} ({_demand(properties, a)}) and {properties.names[b]} "
        f"({_demand(properties, b)}) overlap and cannot both hold"
        + (f" ({len(bad)} such pairs)" if len(bad) > 1 else "")
        + "; use a smaller --epsilon, or leave one of them out of the data"
    )


def in_words(properties: PropertySet, index: int) -> str:
    """What a property demands, in words: y0, y1 ... are the outputs."""
    label = int(properties.label[index])
    if label >= 0:
        return f"for every input of the box, output {label} is larger than each of the others"
    groups: dict[int, list[str]] = {}
    rows = zip(
        properties.group[index].tolist(), properties.C[index], properties.d[index], strict=True
    )
    for group, row, constant in rows:
        if group >= 0:
            groups.setdefault(group, []).append(_inequality(row, float(constant)))
    parts = [" or ".join(each) for each in groups.values()]
    if len(parts) > 1:
        parts = [f"({part})" if " or " in part else part for part in parts]
    return f"for every input of the box, {' and '.join(parts)}"


def _inequality(row: Tensor, constant: float) -> str:
    terms = []
    for k in row.nonzero()[:, 0].tolist():
        factor = float(row[k])
        sign = "-" if factor < 0 else "+"
        size = "" if abs(factor) == 1 else f"{abs(factor):.6g} "
        terms.append(f"{sign} {size}y{k}")
    if constant or not terms:
        terms.append(f"{'-' if constant < 0 else '+'} {abs(constant):.6g}")
    text = " ".join(terms)
    return (f"-{text[2:]}" if text[0] == "-" else text[2:]) + " > 0"


def _demand(properties: PropertySet, index: int) -> str:
    label = int(properties.label[index])
    return f"label {label}" if label >= 0 else "another specification"
