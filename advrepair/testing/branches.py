"""Checks of complete verifiers: a bound on a part of a box holds on that part.

A part is made around a point: some ReLUs are fixed to the signs that their inputs have there.
So it is never empty, and what is computed at the point must not lie below the bound.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from attrs import evolve, frozen
from torch import Tensor

from advrepair.core.branches import Branch, BranchBound
from advrepair.core.errors import UnsupportedNetworkError
from advrepair.core.graph import INPUT, NON_AFFINE, STEPS, Network, size
from advrepair.core.interfaces import BranchBoundFn, CompleteVerifier, Verifier
from advrepair.core.rounding import Rounding
from advrepair.testing.cases import Case, standard_cases
from advrepair.testing.search import scatter
from advrepair.testing.trial import require, require_below

_PARTS = 6  # of every box


@frozen(eq=False)
class Part:
    """A part of each box of a case, made around one point of it.

    x: the points, in the dtype that the network was run in, [B,*S]. y: outputs, [B,K].
    """

    case: Case
    function: BranchBoundFn
    branch: Branch
    x: Tensor
    y: Tensor

    def bound(self, branch: Branch | None = None) -> BranchBound:
        """Bounds on the part, or with another branch."""
        case = self.case
        return self.function(case.params, case.box, case.C, case.d, branch or self.branch)

    @property
    def rows(self) -> Tensor:
        """What the rows are at the points, [B,M]."""
        return self.case.specified(self.y.unsqueeze(1))[:, 0]


def check_branches_hold_on_their_part(verifier: Verifier) -> None:
    """``A.x + b <= C f(x) + d`` wherever the signs are those of the branch; never "empty"."""
    for part in _parts(verifier, None, torch.float64):
        found, name = part.bound(), part.case.name
        require(
            not bool(found.empty.any()),
            f"{name} network: a part with an input in it is called empty",
        )
        line = (found.rows.A.flatten(2) @ part.x.flatten(1).unsqueeze(2)).squeeze(2) + found.rows.b
        what = "the line of a part is at {have} where the network is at {want}"
        require_below(part.case, line, part.rows, what)


def check_rigorous_branches_hold_when_deployed(verifier: Verifier) -> None:
    """With rounding, no evaluation whose own signs are those of the branch is below it."""
    for dtype, level in ((torch.float32, "deployed-float32"), (torch.float64, "deployed-float64")):
        for part in _parts(verifier, Rounding(level), dtype):  # type: ignore[arg-type]
            found, name = part.bound(), part.case.name
            require(not bool(found.empty.any()), f"{name} network: {level}: a part is not empty")
            least = found.rows.minimum_rigorous(part.case.box)
            what = f"the {level} bound of a part is {{have}}, yet the network computes {{want}}"
            require_below(part.case, least, part.rows, what, tolerance=0.0)


def check_smaller_boxes_have_no_lower_bounds(verifier: Verifier) -> None:
    """With the same slopes, and no sign known, half a box has no lower bound than the box.

    Where nothing but ReLUs bends: other lines follow from the box, and may be worse on a half.
    """
    for part in _parts(verifier, None, torch.float64):
        if any(op.kind in NON_AFFINE - {"relu"} for op in part.case.network.operations):
            continue
        case, branch = part.case, part.branch
        plain = Branch(torch.zeros_like(branch.phase), branch.slope, 0 * branch.multiplier)
        whole = part.bound(plain).rows.minimum(case.box)
        dim = torch.arange(len(case.box)) % size(case.box.input_shape)
        for half in case.box.split(dim):
            inner = evolve(part, case=evolve(case, box=half)).bound(plain).rows.minimum(half)
            require_below(case, whole, inner, "a box has the bound {have} and its half {want}")


def check_cuts_name_an_input_or_a_relu(verifier: Verifier) -> None:
    """``cut`` gives each piece a number below inputs plus ReLUs."""
    if not isinstance(verifier, CompleteVerifier):
        return
    for part in _parts(verifier, None, torch.float64):
        found, case = part.bound(), part.case
        where = verifier.cut(case.box, found.rows.A[:, 0], found.gap[:, 0])
        most = size(case.network.input_shape) + case.network.units
        good = where.shape == (len(case.box),) and bool(((where >= 0) & (where < most)).all())
        require(good, f"{case.name} network: cut() returned {where.tolist()}, not 0..{most - 1}")


def _parts(verifier: Verifier, rounding: Rounding | None, dtype: torch.dtype) -> Iterator[Part]:
    """Parts around points of every case; none of a verifier that does not branch."""
    if not isinstance(verifier, CompleteVerifier):
        return
    for case in standard_cases():
        try:
            function = verifier.prepare_branches(case.network, rounding)
        except UnsupportedNetworkError:
            continue  # the other checks say which it must accept
        points = scatter(case.box, _PARTS, _PARTS, seed=9).to(dtype)
        lower, upper = (f.to(dtype).unsqueeze(1) for f in (case.box.lower, case.box.upper))
        points = torch.minimum(torch.maximum(points, lower), upper)
        for seed, x in enumerate(points.unbind(1)):
            y, signs = _run(case.network, x)
            yield Part(case, function, _around(signs, case, seed), x, y)


def _run(network: Network, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [B,K] and the signs of all ReLU inputs [B,U], as computed in x's dtype."""
    tensors = {name: t.to(x.dtype) for name, t in network.tensors.items()}
    values, signs = {INPUT: x}, [x.new_zeros(len(x), 0)]
    for op in network.operations:
        inputs = [values[name] for name in op.inputs]
        if op.kind == "relu":
            signs.append(inputs[0].flatten(1).sign())
        values[op.name] = STEPS[op.kind](op, tensors, inputs)
    return values[network.operations[-1].name], torch.cat(signs, 1)


def _around(signs: Tensor, case: Case, seed: int) -> Branch:
    """A random part that holds the points with these signs."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.rand(signs.shape, generator=generator) < torch.rand((), generator=generator)
    either = torch.where(torch.rand(signs.shape, generator=generator) < 0.5, 1.0, -1.0)
    phase = torch.where(signs == 0, either.to(signs.dtype), signs) * fixed
    slope = torch.rand(signs.shape, generator=generator, dtype=torch.float64)
    shape = (*case.d.shape, signs.shape[1])
    multiplier = torch.rand(shape, generator=generator, dtype=torch.float64) * 2
    known = (phase != 0).unsqueeze(1)
    return Branch(phase.to(torch.int8), (255 * slope).round() / 255, multiplier * known)
