"""The words of the design as data. Shape letters: ``docs/shapes.md``.

**P** properties, **Q** patches, **B** boxes in flight, **N** points, ***S** input shape,
**K** outputs, **M** rows of C, **G** groups. A positive margin is safe.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable

import torch
from attrs import Factory, frozen
from torch import Tensor

from advrepair.core.box import Box, dot
from advrepair.core.errors import UsageError
from advrepair.core.rounding import UNIT64, above, gamma

_SPARE = 16.0  # times what rounding takes


class Status(enum.StrEnum):
    """What is known about a property of the repaired network."""

    CERTIFIED = "certified"
    EMPIRICAL = "empirical"
    FALSIFIED = "falsified"
    UNKNOWN = "unknown"

    @property
    def sentence(self) -> str:
        """The sentence a user sees."""
        return {
            Status.CERTIFIED: "proved for every input of the region",
            Status.EMPIRICAL: "hold for sampled features; not proved, and not certified",
            Status.FALSIFIED: "a counterexample remains in the region",
            Status.UNKNOWN: "neither proved nor refuted; do not count it as repaired",
        }[self]


@frozen(eq=False)
class LinearBound:
    """``A.x + b <= C f(x) + d`` for every x in the box it was made for.

    A: [B,M,*S]. b: [B,M]. Bounds of f and of g add up to a bound of f + g. Of rigorous bounds
    only: magnitude: [B,K], ``|f(x)|`` is at most that on the box. slope: uint8 [B,U], what
    stands below each ReLU, k for k/255; with it a checker finds the same bound. influence:
    [B,M,*S], if the verifier knows it: how much of the width of a row each input answers for.
    error: [B,M], if it is known: what was taken off the rows for rounding.
    """

    A: Tensor
    b: Tensor
    magnitude: Tensor | None = None
    slope: Tensor | None = None
    influence: Tensor | None = None
    error: Tensor | None = None

    def __add__(self, other: LinearBound) -> LinearBound:
        return LinearBound(self.A + other.A, self.b + other.b)

    def __getitem__(self, index: Tensor | slice) -> LinearBound:
        size = None if self.magnitude is None else self.magnitude[index]
        slope = None if self.slope is None else self.slope[index]
        known = None if self.influence is None else self.influence[index]
        error = None if self.error is None else self.error[index]
        return LinearBound(self.A[index], self.b[index], size, slope, known, error)

    def to(self, dtype: torch.dtype) -> LinearBound:
        """Rounded to another dtype (for training; a certificate uses the float64 rows)."""
        return LinearBound(self.A.to(dtype), self.b.to(dtype))

    def spare(self) -> Tensor:
        """A margin with which another program, that counts rounding otherwise, finds a proof too.

        [B], in the rows' dtype; 0 where it is not known what rounding took.
        """
        if self.error is None:
            return self.b.new_zeros(len(self.b))
        return _SPARE * self.error.amax(1)

    def minimum(self, box: Box) -> Tensor:
        """Lower bound of the rows over the box, [B,M], in the rows' dtype.

        Sound: A.x >= A.c - |A|.r for x = c + s r, |s| <= 1; up to rounding.
        """
        return dot(self.A, box.center) - dot(self.A.abs(), box.radius) + self.b

    def minimum_rigorous(self, box: Box) -> Tensor:
        """Lower bound of the rows over the box, [B,M], valid in exact arithmetic.

        Sound: with m = max(|lower|, |upper|) the terms of :meth:`minimum` are at most |A|m
        each, center and radius err by u m, and a sum of k terms by gamma(k) of the absolute
        sum; three times that is subtracted, which also covers one rounding of every
        coefficient, as when the rows are themselves a sum. float64 rows only.
        """
        if self.A.dtype != torch.float64:
            raise UsageError("a rigorous minimum needs float64 rows")
        box = box.to(torch.float64)
        size = self.A.abs()
        absolute = dot(size, torch.maximum(box.lower.abs(), box.upper.abs()))
        terms = 2 * box.lower[0].numel() + 8
        error = above(3 * (gamma(terms) + 4 * UNIT64) * absolute + gamma(8) * self.b.abs())
        return dot(self.A, box.center) - dot(size, box.radius) + self.b - error


def group_margin(margin: Tensor, group: Tensor) -> Tensor:
    """Margin of every group: the largest of its rows.

    margin: [P,M]. group: [P,M], the group of each row from 0, or -1 for padding.
    Returns [P,G]; a group that a property does not have is +inf.
    """
    count = int(group.max()) + 1 if group.numel() else 0
    if not count:
        return margin
    if group.shape[1] == count and bool((group == torch.arange(count)).all()):
        return margin
    column = torch.where(group < 0, count, group)
    start = margin.new_full((len(margin), count + 1), -torch.inf)
    best = start.scatter_reduce(1, column, margin, "amax", include_self=True)[:, :count]
    absent = torch.ones_like(start, dtype=torch.bool).scatter(1, column, False)[:, :count]
    return best.masked_fill(absent, torch.inf)


def worst_margin(margin: Tensor, group: Tensor) -> Tensor:
    """Margin of every property, [P]: its worst group. Positive iff the property holds."""
    return group_margin(margin, group).min(1).values


@frozen(eq=False)
class PropertySet:
    """What is demanded: on each box every group has a row of ``C y + d`` that is > 0.

    box: P boxes. C: [P,M,K]. d: [P,M]. group: [P,M], -1 pads. label, target: [P], -1 when
    there is none. center: [P,*S], the input each box was built around. names: for people.
    """

    box: Box
    C: Tensor
    d: Tensor
    group: Tensor
    label: Tensor
    target: Tensor
    center: Tensor
    names: tuple[str, ...]

    def __attrs_post_init__(self) -> None:
        count, rows = len(self.box), self.C.shape[1]
        shapes = {
            "C": (self.C.shape[:2], (count, rows)),
            "d": (self.d.shape, (count, rows)),
            "group": (self.group.shape, (count, rows)),
            "label": (self.label.shape, (count,)),
            "target": (self.target.shape, (count,)),
            "center": (self.center.shape, self.box.lower.shape),
            "names": ((len(self.names),), (count,)),
        }
        for name, (have, want) in shapes.items():
            if tuple(have) != tuple(want):
                raise UsageError(f"properties: {name} has shape {tuple(have)}, not {tuple(want)}")

    def __len__(self) -> int:
        return len(self.box)

    def __getitem__(self, index: Tensor) -> PropertySet:
        return PropertySet(
            self.box[index],
            self.C[index],
            self.d[index],
            self.group[index],
            self.label[index],
            self.target[index],
            self.center[index],
            tuple(self.names[i] for i in index.tolist()),
        )

    def margin(self, y: Tensor) -> Tensor:
        """Margin of output i under property i: [P] from y [P,K]; holds iff > 0.

        Computed in float64, where float32 differences are exact enough to keep their sign.
        """
        rows = torch.einsum("pmk,pk->pm", self.C.double(), y.double()) + self.d.double()
        return worst_margin(rows, self.group)

    def violated(self, y: Tensor) -> Tensor:
        """Whether output i breaks property i: bool [P]. A tie and a NaN break it."""
        return ~(self.margin(y) > 0)

    def identifiers(self) -> tuple[str, ...]:
        """A name of each property that depends on nothing but its own content."""
        parts = (self.box.lower, self.box.upper, self.C, self.d, self.group)
        rows = zip(*(part.flatten(1).cpu().numpy() for part in parts), strict=True)
        return tuple(
            hashlib.sha256(b"".join(part.tobytes() for part in row)).hexdigest()[:16]
            for row in rows
        )


@frozen(eq=False)
class Assignment:
    """Which patch serves which property.

    patch: [P], the patch that is on where that property needs one, or -1 if it holds without;
    an indicator is asked only about those that need one. names: one per patch, [Q].
    """

    patch: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def among(self, which: Tensor) -> Assignment:
        """The same where only some of the properties have a patch, which: bool [P]; -1 else."""
        patch = torch.full_like(which, -1, dtype=torch.long)
        patch[which] = self.patch
        return Assignment(patch, self.names)

    def checked(self, properties: int) -> Assignment:
        """Raises UsageError unless every property has a patch and every patch a property."""
        if tuple(self.patch.shape) != (properties,):
            raise UsageError(f"assignment: patch has shape {tuple(self.patch.shape)}")
        if sorted(set(self.patch.tolist())) != list(range(len(self.names))):
            raise UsageError("assignment: patches must be numbered 0..Q-1, each of them in use")
        return self


@frozen(eq=False)
class Regions:
    """Where which patch is on: the first region that holds an input decides.

    box: R boxes. patch: [R]; -1 says that none is, whatever an allocator would choose.
    """

    box: Box
    patch: Tensor


@frozen(eq=False)
class Centres:
    """What an allocator may know about the repaired inputs.

    x: [P,*S]. logits: of the base network there, [P,K]. label, target: [P]. patch: [P], -1 of
    a property that needed none. patches: Q. fitted: of a smooth allocator, what it found.
    """

    x: Tensor
    logits: Tensor
    label: Tensor
    target: Tensor
    patch: Tensor
    patches: int
    fitted: dict[str, Tensor] = Factory(dict)

    def to_patches(self, chosen: Tensor) -> Tensor:
        """Patches of the chosen properties: bool [N,P] to bool [N,Q]."""
        query, property_ = chosen.nonzero().T
        patch = self.patch.to(chosen.device)[property_]
        on = patch >= 0
        gates = torch.zeros(len(chosen), self.patches, dtype=torch.bool, device=chosen.device)
        gates[query[on], patch[on]] = True
        return gates


def _untold(share: float) -> None:
    """Nobody listens."""


@frozen(eq=False)
class Points:
    """Labelled inputs that a smooth allocator is fitted to.

    x: to remember, [n,*S], label [n]. held: balls around inputs to choose its parameters by,
    which are remembered as well where keep says so. clip: the input range. noise: for
    everything random. tell: to be told what share of the work is done, from 0 to 1. see: what
    gives the features that the allocator is asked about, where that is not the input.
    """

    x: Tensor
    label: Tensor
    held: PropertySet
    keep: bool
    clip: tuple[float, float] | None
    noise: torch.Generator
    tell: Callable[[float], None] = _untold
    see: Callable[[Tensor], Tensor] | None = None

    def seen(self, x: Tensor) -> Tensor:
        """What the allocator is given of inputs [N,*S]: these, or features [N,D] of them."""
        return x if self.see is None else self.see(x)


@frozen(eq=False)
class SplitPlan:
    """Where to cut. piece: [T], indices of the pieces to bisect. dim: [T], flat dimension."""

    piece: Tensor
    dim: Tensor
