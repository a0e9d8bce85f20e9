"""What is demanded: from points and a radius, or from boxes and rows; and in words.

Also, whether the demands of boxes that overlap can hold together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import evolve
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.compatibility import common_output, impossible
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


def demands(
    lower: Tensor,
    upper: Tensor,
    C: Tensor,
    d: Tensor,
    group: Tensor,
    names: Sequence[str] | None = None,
) -> PropertySet:
    """A PropertySet built from boxes and rows directly.

    For every input x of box p and every group, some row of ``C f(x) + d`` of that group must
    be > 0. So rows in groups of their own are joined by "and", rows of one group by "or".

    lower, upper: faces of the boxes [P,*S], in the network's dtype, kept as they are. C:
    [P,M,K]. d: [P,M]. group: [P,M], from 0 and below M; -1 for rows that only fill up. C and d
    may be float64 whatever the network's dtype is. names: for people, P of them.
    Raises UsageError for shapes that disagree, NaN or infinities, an inverted box, a group
    number out of range, a property with no row, and a row without a coefficient.
    """
    if C.dim() != 3 or lower.dim() < 2:
        raise UsageError(
            f"demands: C has shape {tuple(C.shape)} and lower {tuple(lower.shape)}; give [P,M,K] "
            "and [P,*S]"
        )
    if len({len(part) for part in (lower, upper, C, d, group)}) > 1:
        counts = ", ".join(str(len(part)) for part in (lower, upper, C, d, group))
        raise UsageError(f"demands: lower, upper, C, d, group have lengths {counts}; give P each")
    called = tuple(names) if names is not None else tuple(f"property {i}" for i in range(len(C)))
    box = Box(lower, upper)
    if not (lower.is_floating_point() and C.is_floating_point() and d.is_floating_point()):
        raise UsageError("demands: lower, upper, C and d must be floating-point tensors")
    properties = PropertySet(
        box=box,
        C=C,
        d=d,
        group=group.long(),
        label=torch.full((len(C),), -1),
        target=torch.full((len(C),), -1),
        # Clamped, as the sum of two huge faces may be infinite.
        center=box.clamp(box.center),
        names=called,
    )
    real = properties.group >= 0
    outside = (properties.group < -1) | (properties.group >= C.shape[1])
    wrong = {
        "a face of its box is NaN or infinite": ~(lower.isfinite() & upper.isfinite()),
        "its box is inverted: a lower bound is above its upper bound": lower > upper,
        "C or d is NaN or infinite": ~(C.isfinite().all(2) & d.isfinite()),
        f"group numbers must lie in -1..{C.shape[1] - 1}": outside,
        "it has no row; a property needs at least one": ~real.any(1, keepdim=True),
        "a row has no coefficient that is not zero": real & (C == 0).all(2),
    }
    for message, where in wrong.items():
        bad = where.flatten(1).any(1).nonzero()[:, 0]
        if len(bad):
            raise UsageError(f"demands: {called[int(bad[0])]}: {message}")
    # What fills up says nothing: equal demands are then equal in every number.
    return evolve(properties, C=C * real[:, :, None], d=d * real)


def united(sets: Sequence[PropertySet]) -> PropertySet:
    """Several sets of properties as one; where one has fewer rows, rows that say nothing."""
    most = max(each.C.shape[1] for each in sets)

    def filled(rows: Tensor, value: float) -> Tensor:
        lacking = rows.new_full((len(rows), most - rows.shape[1], *rows.shape[2:]), value)
        return torch.cat([rows, lacking], 1)

    boxes = [each.box for each in sets]
    return PropertySet(
        box=Box(torch.cat([b.lower for b in boxes]), torch.cat([b.upper for b in boxes])),
        C=torch.cat([filled(each.C, 0) for each in sets]),
        d=torch.cat([filled(each.d, 0) for each in sets]),
        group=torch.cat([filled(each.group, -1) for each in sets]),
        label=torch.cat([each.label for each in sets]),
        target=torch.cat([each.target for each in sets]),
        center=torch.cat([each.center for each in sets]),
        names=tuple(name for each in sets for name in each.names),
    )


def refuse_contradictions(properties: PropertySet) -> None:
    """Raises UsageError if two boxes overlap and no output meets the demands of both.

    Boxes that overlap with the same demand, or with demands that some output meets together,
    are fine. Outputs are searched for; a pair for which none is found is refused too.
    """
    pairs = properties.box.meets(properties.box)
    i, j = pairs[pairs[:, 0] < pairs[:, 1]].T
    if not len(i):
        return
    # Few demands are distinct, and a pair of them is tried once, however many boxes meet.
    kind = _kinds(properties)
    i, j = i[kind[i] != kind[j]], j[kind[i] != kind[j]]
    low, high = torch.minimum(kind[i], kind[j]), torch.maximum(kind[i], kind[j])
    found, which = (low * (int(kind.max()) + 1) + high).unique(return_inverse=True)
    first = torch.full((len(found),), len(i)).scatter_reduce(0, which, torch.arange(len(i)), "amin")
    never = torch.tensor([common_output(*_together(properties, i[k], j[k])) is None for k in first])
    if not bool(never.any()):
        return
    bad = never[which].nonzero()[:, 0]
    a, b = int(i[bad[0]]), int(j[bad[0]])
    proved = impossible(*_together(properties, a, b))
    labelled = int(properties.label[a]) >= 0 and int(properties.label[b]) >= 0
    raise UsageError(
        f"{properties.names[a]} ({_demand(properties, a)}) and {properties.names[b]} "
        f"({_demand(properties, b)}) "
        + (
            "overlap and cannot both hold"
            if proved
            else "overlap, and no output was found that meets both"
        )
        + (f" ({len(bad)} such pairs)" if len(bad) > 1 else "")
        + ("; use a smaller --epsilon, or leave one of them out of the data" if labelled else "")
        + ("" if labelled else "; leave one of them out")
    )


def _kinds(properties: PropertySet) -> Tensor:
    """Numbers that two properties share iff they demand the same, [P]."""
    parts = (properties.C, properties.d, properties.group)
    rows = zip(*(part.flatten(1).cpu().numpy() for part in parts), strict=True)
    known: dict[bytes, int] = {}
    content = (b"".join(part.tobytes() for part in row) for row in rows)
    return torch.tensor([known.setdefault(each, len(known)) for each in content])


def _together(
    properties: PropertySet, a: int | Tensor, b: int | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of two properties as those of one: C [2M,K], d [2M], group [2M]."""
    first, second = properties.group[a], properties.group[b]
    shifted = torch.where(second < 0, second, second + first.max() + 1)
    rows, pair = torch.cat([first, shifted]), torch.tensor([int(a), int(b)])
    return properties.C[pair].double().flatten(0, 1), properties.d[pair].double().flatten(), rows


def in_words(properties: PropertySet, index: int) -> str:
    """What a property demands, in words: y0, y1 ... are the outputs."""
    label = int(properties.label[index])
    if label >= 0:
        return f"for every input of the box, output {label} is larger than each of the others"
    return f"for every input of the box, {_words(properties, index)}"


def _demand(properties: PropertySet, index: int) -> str:
    label = int(properties.label[index])
    return f"label {label}" if label >= 0 else _words(properties, index)


def _words(properties: PropertySet, index: int) -> str:
    ranked = _ranked(properties, index)
    if ranked:
        return ranked
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
    return " and ".join(parts)


def _ranked(properties: PropertySet, index: int) -> str:
    """The demand as the rank of one output, if it is one that compares it with all others."""
    real = properties.group[index] >= 0
    C, d, group = properties.C[index][real], properties.d[index][real], properties.group[index]
    count, outputs = C.shape
    groups = len(group[real].unique())
    if outputs < 2 or count != outputs - 1 or groups not in (1, count) or bool(d.any()):
        return ""
    ranks = ((1, "the largest", "not the smallest"), (-1, "the smallest", "not the largest"))
    for sign, every, some in ranks:
        for output in (sign * C > 0).all(0).nonzero()[:, 0].tolist():
            rows = sign * C / C[:, output, None].abs()
            others = torch.eye(outputs, dtype=C.dtype)
            wanted = others[output] - others[torch.arange(outputs) != output]
            if torch.equal(rows[rows.argmin(1).argsort()], wanted):
                return f"output {output} is {every if groups == count else some}"
    return ""


def _inequality(row: Tensor, constant: float) -> str:
    outputs = row.nonzero()[:, 0].tolist()
    factors = [float(row[k]) for k in outputs]
    if len(outputs) == 1:
        sign = "<" if factors[0] < 0 else ">"
        return f"y{outputs[0]} {sign} {-constant / factors[0] + 0:.6g}"
    if sorted(factors) == [-1, 1] and not constant:
        return f"y{outputs[factors.index(1)]} > y{outputs[factors.index(-1)]}"
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
