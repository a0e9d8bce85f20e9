"""What a file demands: regions of inputs, and for each one the outputs that are safe.

Files of this kind describe the *unsafe* set, a formula over inputs X and outputs Y. In
disjunctive normal form every disjunct is a box of inputs with rows ``a.y + b <= 0``; safe is
whatever lies in none of them. So each disjunct on a box becomes one group of that box, whose
rows are ``a.y + b > 0``. All numbers are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import product
from math import prod

from attrs import frozen

from advrepair.core.errors import UsageError
from advrepair.core.formulas import (
    Bound,
    Declared,
    Formula,
    Row,
    count_of,
    cubes,
    flattened,
    shown,
    strict_in,
)

DISJUNCTS = 100_000  # a normal form with more of them is refused


@frozen
class Region:
    """A box of inputs and what is safe there: every group must have a row that is > 0.

    lower, upper: flattened inputs. groups: one for each disjunct of the unsafe set.
    """

    lower: tuple[Fraction, ...]
    upper: tuple[Fraction, ...]
    groups: tuple[tuple[Row, ...], ...]


@frozen
class Specification:
    """What one file demands.

    name: of the file. inputs, outputs: how many variables it declares. regions: distinct
    boxes; they may overlap. notes: what was read in a way that people should know of.
    """

    name: str
    source: str
    inputs: int
    outputs: int
    regions: tuple[Region, ...]
    notes: tuple[str, ...] = ()


def safe_regions(name: str, declared: Declared, unsafe: Sequence[Formula]) -> Specification:
    """What is demanded if the conjunction of some formulas is the unsafe set.

    Strict constraints count as non-strict: a tie is unsafe too, which demands a little more.
    Raises UsageError if an input is not bounded, no box is left, nothing or a whole box is
    unsafe, or there are more than DISJUNCTS disjuncts.
    """
    common, branching = flattened(unsafe)
    count = prod(count_of(part) for part in branching)
    if count > DISJUNCTS:
        raise UsageError(
            f"{declared.source}: its normal form has {count} disjuncts, at most {DISJUNCTS} are "
            "read; split the file"
        )
    always = [leaf for leaf in common if isinstance(leaf, Row)]
    boxes = _Boxes(declared, [leaf for leaf in common if isinstance(leaf, Bound)])
    found: dict[int, dict[tuple[Row, ...], None]] = {}
    for cube in product(*(cubes(part) for part in branching)):
        leaves = [leaf for part in cube for leaf in part]
        box = boxes.within([leaf for leaf in leaves if isinstance(leaf, Bound)])
        if box is None:
            continue
        rows = tuple(dict.fromkeys(always + [leaf for leaf in leaves if isinstance(leaf, Row)]))
        if not rows:
            at = [leaf.at for leaf in (*leaves, *common)]
            raise declared.error(
                at[0] if at else (1, 1),
                "a whole region of inputs is unsafe whatever the outputs are, and no repair can "
                "help that; add a constraint on the outputs",
            )
        found.setdefault(box, {})[rows] = None
    if not found:
        raise boxes.empty or UsageError(
            f"{declared.source}: nothing is unsafe, so nothing is demanded; correct its asserts"
        )
    return Specification(
        name,
        declared.source,
        len(declared.inputs),
        declared.outputs,
        tuple(Region(*boxes.faces[box], tuple(groups)) for box, groups in found.items()),
        _notes(unsafe, boxes.dropped, count),
    )


_Faces = tuple[tuple[Fraction, ...], tuple[Fraction, ...]]


class _Boxes:
    """The boxes of disjuncts: bounds that all of them share, with a disjunct's own."""

    def __init__(self, declared: Declared, shared: Sequence[Bound]) -> None:
        self.declared, self.dropped = declared, 0
        self.empty: UsageError | None = None
        self.sides: dict[tuple[int, bool], Bound] = {}
        _tighten(self.sides, shared)
        self.faces: list[_Faces] = []  # distinct ones
        self.number: dict[_Faces, int] = {}
        self.known: dict[tuple[int, ...], int | None] = {}

    def within(self, own: Sequence[Bound]) -> int | None:
        """Number of the box among the distinct ones, or None if no input is left."""
        # Many disjuncts share their bounds: these are told apart by who they are, not by value.
        key = tuple(map(id, own))
        if key not in self.known:
            sides = dict(self.sides)
            _tighten(sides, own)
            faces = self._faces(sides)
            self.known[key] = None if faces is None else self._numbered(faces)
        self.dropped += self.known[key] is None
        return self.known[key]

    def _numbered(self, faces: _Faces) -> int:
        if faces not in self.number:
            self.number[faces] = len(self.faces)
            self.faces.append(faces)
        return self.number[faces]

    def _faces(self, sides: Mapping[tuple[int, bool], Bound]) -> _Faces | None:
        names = self.declared.inputs
        for i, name in enumerate(names):
            low, high = sides.get((i, False)), sides.get((i, True))
            if low is not None and high is not None and low.value > high.value:
                self.empty = self.empty or self.declared.error(
                    max(low.at, high.at),
                    f"{name} has the lower bound {shown(low.value)} above its upper bound "
                    f"{shown(high.value)}, so no input is left; correct one of them",
                )
                return None
        for i, name in enumerate(names):
            for side, word, sign in ((False, "lower", ">="), (True, "upper", "<=")):
                if (i, side) not in sides:
                    raise self.declared.error(
                        self.declared.places[i],
                        f"{name} has no {word} bound; add one: (assert ({sign} {name} NUMBER))",
                    )
        lower, upper = (
            tuple(sides[i, side].value for i in range(len(names))) for side in (False, True)
        )
        return lower, upper


def _tighten(sides: dict[tuple[int, bool], Bound], bounds: Iterable[Bound]) -> None:
    for bound in bounds:
        key = (bound.index, bound.upper)
        old = sides.get(key)
        tighter = old is None or (
            bound.value < old.value if bound.upper else bound.value > old.value
        )
        if tighter:
            sides[key] = bound


def _notes(unsafe: Sequence[Formula], dropped: int, count: int) -> tuple[str, ...]:
    strict, notes = strict_in(unsafe), []
    if strict:
        notes.append(
            f"{len(strict)} strict constraint(s), the first in line {min(strict)[0]}, read as "
            "non-strict: a tie counts as unsafe"
        )
    if dropped:
        notes.append(f"{dropped} of {count} disjuncts left out: their bounds admit no input")
    return tuple(notes)
