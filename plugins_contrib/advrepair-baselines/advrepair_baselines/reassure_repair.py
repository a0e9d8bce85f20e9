"""REASSURE: regions of counterexamples, a patch for each, and what became of them."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import torch
from attrs import evolve, frozen
from torch import Tensor

from advrepair import Box, MethodResult, MethodStatus, Scope, Task, UsageError
from advrepair_baselines.reassure_lp import Failure, Maxima, Patch, entries, least_patch
from advrepair_baselines.reassure_network import PatchedRegions
from advrepair_baselines.reassure_regions import Piece, Pieces, Region

if TYPE_CHECKING:
    from advrepair_baselines.reassure import Reassure

_FEW = 32  # inputs, up to which the box of a region is made as narrow as it can be
_RIM = 1e-7  # a collar is no narrower
_SPAN = 1e-10  # singular values that are smaller, of the largest, count as 0
_AT_ONCE = 256
_COPIES = 8  # of all rows: found, together, stored, and several while they are written


@frozen(eq=False)
class Bugs:
    """Counterexamples of one region. first: [*S]. owners: their properties, sorted.

    The rows of the region are found again when it is its turn: together they may not fit.
    """

    first: Tensor
    owners: tuple[int, ...]


@frozen(eq=False)
class Mended:
    """A region and its patch. slack: what is proved beyond the demand; < 0 would be broken."""

    region: Region
    patch: Patch
    slack: float


def repair(options: Reassure, task: Task) -> MethodResult:
    """Patches of all regions that could be solved in time and held; none is applied unproved.

    Promised are the regions only if all of them were solved.
    """
    pieces = Pieces(task.network)
    found = bugs(pieces, task)
    most_rows = _refuse_too_large(task, pieces)
    mended: list[Mended] = []
    failures: Counter[str] = Counter()
    infeasible, pace, held = 0, 0.0, 0
    for number, each in enumerate(found):
        if task.left() < 2 * pace:
            failures["the time was up"] += len(found) - number
            break
        if _COPIES * held + most_rows > task.memory:
            failures["the memory was full"] += len(found) - number
            break
        task.tell("reassure", number, len(found))
        begin = time.perf_counter()
        made = mend(options, task, each, pieces.around(each.first))
        pace = max(pace, time.perf_counter() - begin)
        if isinstance(made, Mended):
            mended.append(made)
            held += made.region.A.nbytes
        else:
            failures[made.why] += 1
            infeasible += made.infeasible
    evidence = {"regions": len(found), "solved": len(mended), "unsolved": dict(failures)}
    if not mended:
        return _nothing(evidence, infeasible, len(found), failures)
    collar = collars([each.region for each in mended], task.x_adv, options.collar)
    parts = [each.region for each in mended], [each.patch for each in mended]
    most = torch.stack([_most(each.patch, _everywhere(task)) for each in mended])
    model = PatchedRegions(task.network, *parts, collar, most)
    with torch.no_grad():
        wrong = sum(
            int(task.properties[task.owner[i]].violated(model(task.x_adv[i])).sum())
            for i in torch.arange(len(task.x_adv)).split(_AT_ONCE)
        )
    evidence |= {
        "region": "linear regions of the counterexamples, less the collars of others",
        "rows": sum(len(each.region.b) for each in mended),
        "collar": [float(collar.min()), float(collar.max())],
        "largest patch": max(each.patch.least for each in mended),
        "constant patches": sum(not bool(each.patch.c.any()) for each in mended),
        "least slack": min(each.slack for each in mended),
        "still wrong": wrong,
    }
    status = MethodStatus.NOT_REPAIRED if wrong else MethodStatus.REPAIRED
    scope = Scope.NONE if wrong or failures else Scope.REGION
    return MethodResult(model, status, scope, evidence)


def bugs(pieces: Pieces, task: Task) -> list[Bugs]:
    """Counterexamples by their region; properties whose boxes meet have their regions together."""
    component = _components(task.properties.box)
    groups: dict[tuple[bytes, int], Bugs] = {}
    for number, (x, owner) in enumerate(zip(task.x_adv, task.owner.tolist(), strict=True)):
        if number % 16 == 0:
            task.tell("reassure: regions", number, len(task.x_adv))
        piece = pieces.around(x)
        key = piece.on.numpy().tobytes(), component[owner]
        known = groups.setdefault(key, Bugs(x, ()))
        groups[key] = evolve(known, owners=tuple(sorted({owner, *known.owners})))
    return list(groups.values())


def mend(options: Reassure, task: Task, bug: Bugs, piece: Piece) -> Mended | Failure:
    """The patch of one region, if it is proved to do what is demanded there."""
    owners, asked = torch.tensor(bug.owners), task.properties
    lower = asked.box.lower[owners].flatten(1).double().amin(0)
    upper = asked.box.upper[owners].flatten(1).double().amax(0)
    region = Region.of(*piece.faces(), lower, upper)
    maxima = Maxima(region)
    if len(lower) <= _FEW:
        region = narrowed(region, maxima, task.left())
        maxima = Maxima(region)
    rows, constant = demands(task, bug, piece)
    constant = constant + options.margin
    v, w = rows @ piece.F, rows @ piece.f + constant
    if entries(len(region.b) + 2 * len(lower), len(lower), *rows.shape) <= options.entries:
        patch = of_inputs(region, v, w, rows, task.left())
    else:
        patch = of_sums(maxima, v, w, rows, task.left())
    if isinstance(patch, Failure):
        return patch
    reached = maxima.of(v + rows @ patch.c, task.left()) + w + rows @ patch.d
    slack = options.margin - float(reached.max())
    # The solver meets its constraints up to a tolerance; less than half the margin may be lost.
    if not slack >= options.margin / 2:
        return Failure(False, "its solution does not do what is demanded")
    return Mended(region, patch, slack)


def of_inputs(
    region: Region, v: Tensor, w: Tensor, rows: Tensor, seconds: float
) -> Patch | Failure:
    """The least patch of all affine ones, for ``v x + w + rows p <= 0`` on the region."""
    eye = torch.eye(len(region.lower), dtype=torch.float64)
    B = torch.cat([region.A, eye, -eye])
    b = torch.cat([region.b, region.upper, -region.lower])
    return least_patch(B, b, eye, v, w, rows, seconds)


def of_sums(maxima: Maxima, v: Tensor, w: Tensor, rows: Tensor, seconds: float) -> Patch | Failure:
    """The least patch that is an affine function of v x alone, which lies between its ends.

    Coordinates are those of the space that the rows of v span, so that no relation is lost
    between them. That there is none proves nothing about other patches.
    """
    _, size, span = torch.linalg.svd(v, full_matrices=False)
    basis = span[size > _SPAN * size.amax().clamp(min=1e-300)]
    inner = v @ basis.T
    ends = maxima.of(torch.cat([v, -v]), seconds)
    found = least_patch(torch.cat([inner, -inner]), ends, basis, inner, w, rows, seconds)
    if isinstance(found, Failure):
        return Failure(False, f"no patch of the demanded sums alone: {found.why}")
    return found


def narrowed(region: Region, maxima: Maxima, seconds: float) -> Region:
    """The same region in the least box around it, so that fewer rows cut it."""
    eye = torch.eye(len(region.lower), dtype=torch.float64)
    upper, lower = maxima.of(eye, seconds), -maxima.of(-eye, seconds)
    upper, lower = torch.minimum(upper, region.upper), torch.maximum(lower, region.lower)
    return Region.of(region.A, region.b, torch.minimum(lower, upper), torch.maximum(lower, upper))


def demands(task: Task, bug: Bugs, piece: Piece) -> tuple[Tensor, Tensor]:
    """What is wanted in a region, ``rows y + constant <= 0``: [Q,K] and [Q], each row once.

    Of every property whose box meets one of the region's; of a group, of which one row must
    hold, the row that is nearest to it at the first counterexample.
    """
    asked, owners = task.properties, torch.tensor(bug.owners)
    boxes = Box(asked.box.lower[owners], asked.box.upper[owners])
    which = asked.box.meets(boxes)[:, 1].unique()
    y = piece.F @ bug.first.double().flatten() + piece.f
    C, d = asked.C[which].double(), asked.d[which].double()
    value, found = C @ y + d, []
    for i, group in enumerate(asked.group[which]):
        for number in group[group >= 0].unique():
            best = torch.where(group == number, value[i], -torch.inf).argmax()
            found.append(torch.cat([-C[i, best], -d[i, best, None]]))
    rows = torch.stack(found).unique(dim=0)
    return rows[:, :-1], rows[:, -1]


def collars(regions: list[Region], x: Tensor, widest: float) -> Tensor:
    """The collar of each region, [Q]: it ends before any counterexample outside the region."""
    points, found = x.flatten(1).double(), []
    for region in regions:
        excess = region.excess(points)
        others = excess[excess > 0]
        least = float(others.min()) if len(others) else widest
        found.append(min(widest, max(least, _RIM)))
    return torch.tensor(found, dtype=torch.float64)


def _components(box: Box) -> list[int]:
    """For each box the first of those that it meets, directly or by others."""
    first = list(range(len(box)))

    def root(i: int) -> int:
        while first[i] != i:
            i = first[i]
        return i

    for i, j in box.meets(box).tolist():
        a, b = root(i), root(j)
        first[max(a, b)] = min(a, b)
    return [root(i) for i in range(len(box))]


def _everywhere(task: Task) -> tuple[Tensor, Tensor]:
    """Faces of all inputs: their range, or three times the hull of the boxes. [S] each."""
    box = task.properties.box
    lower, upper = box.lower.flatten(1).double().amin(0), box.upper.flatten(1).double().amax(0)
    if task.clip is not None:
        low, high = (torch.full_like(lower, end) for end in task.clip)
        return torch.minimum(lower, low), torch.maximum(upper, high)
    return lower - (upper - lower), upper + (upper - lower)


def _most(patch: Patch, faces: tuple[Tensor, Tensor]) -> Tensor:
    """At least |p| on a box: of |c x + d| <= |c middle + d| + |c| radius, and some for rounding."""
    middle, radius = (faces[0] + faces[1]) / 2, (faces[1] - faces[0]) / 2
    most = (patch.c @ middle + patch.d).abs() + patch.c.abs() @ radius
    return most.max() * (1 + 1e-9)


def _refuse_too_large(task: Task, pieces: Pieces) -> int:
    """Bytes of the rows of one region at most; raises UsageError if they do not fit."""
    inputs, rows = task.x_adv[0].numel(), pieces.units + task.network.outputs + 4
    size = 8 * inputs * rows
    if size > task.memory:
        raise UsageError(
            f"reassure takes up to {rows} rows of {inputs} numbers for one region, "
            f"{size / 2**30:.3g} GiB, and there are {task.memory / 2**30:.3g}: raise --memory"
        )
    return size


def _nothing(
    evidence: dict[str, object], infeasible: int, regions: int, failures: Counter[str]
) -> MethodResult:
    """Nothing was solved."""
    if "the memory was full" in failures:
        raise MemoryError("the rows of the first region do not fit")
    if "the time was up" in failures:
        raise TimeoutError("the time was up before the first patch was solved")
    status = MethodStatus.INFEASIBLE if infeasible == regions else MethodStatus.SOLVER_FAILED
    reason = "; ".join(f"{why}: {count} regions" for why, count in failures.items())
    return MethodResult(None, status, Scope.NONE, evidence | {"reason": reason})
