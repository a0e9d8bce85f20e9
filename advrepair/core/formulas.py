"""Linear constraints over the inputs X and outputs Y of a network, joined by and and or.

All numbers are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import product
from math import prod

from attrs import field, frozen

from advrepair.core.errors import UsageError

Place = tuple[int, int]  # line and column, from 1; column 0 if it is not known
Variable = tuple[str, int]  # ("X", i) or ("Y", j)


@frozen
class Linear:
    """A linear term over variables: exact coefficients, none of them zero, and a constant."""

    terms: Mapping[Variable, Fraction]
    constant: Fraction

    def times(self, factor: Fraction) -> Linear:
        """The term multiplied by a number."""
        scaled = {v: factor * c for v, c in self.terms.items()} if factor else {}
        return Linear(scaled, factor * self.constant)


def total(parts: Iterable[tuple[int, Linear]]) -> Linear:
    """Sum of linear terms, each with a sign."""
    terms: dict[Variable, Fraction] = {}
    constant = Fraction(0)
    for sign, part in parts:
        constant += sign * part.constant
        for variable, c in part.terms.items():
            terms[variable] = terms.get(variable, Fraction(0)) + sign * c
    return Linear({v: c for v, c in terms.items() if c}, constant)


@frozen
class Bound:
    """An input is at most (upper) or at least a value."""

    index: int
    upper: bool
    value: Fraction
    at: Place = field(eq=False)
    strict: bool = field(default=False, eq=False)


@frozen
class Row:
    """A row of the specification: ``coefficients . y + constant``.

    In a formula it stands for "<= 0", which is unsafe; in a Region for "> 0", which is safe.
    """

    coefficients: tuple[Fraction, ...]
    constant: Fraction
    at: Place = field(eq=False)
    strict: bool = field(default=False, eq=False)


@frozen
class Every:
    """A conjunction; with no part it is true."""

    parts: tuple[Formula, ...] = ()


@frozen
class Some:
    """A disjunction; with no part it is false."""

    parts: tuple[Formula, ...] = ()


Leaf = Bound | Row
Formula = Leaf | Every | Some


@frozen
class Declared:
    """The variables of a file: names and places of the inputs, and the number of outputs."""

    source: str
    inputs: tuple[str, ...]
    places: tuple[Place, ...]
    outputs: int

    def error(self, at: Place, message: str) -> UsageError:
        """An error at a place of the file."""
        return error_at(self.source, at, message)

    def constraint(self, linear: Linear, strict: bool, at: Place) -> Formula:
        """The constraint ``linear <= 0``, or ``< 0``.

        Raises UsageError if it mixes inputs and outputs or is about several inputs.
        """
        inputs = {v: c for v, c in linear.terms.items() if v[0] == "X"}
        if not linear.terms:
            holds = linear.constant < 0 if strict else linear.constant <= 0
            return Every() if holds else Some()
        if not inputs:
            terms = linear.terms
            row = tuple(terms.get(("Y", j), Fraction(0)) for j in range(self.outputs))
            return Row(row, linear.constant, at, strict)
        if len(inputs) < len(linear.terms):
            raise self.error(
                at,
                "a constraint mixes inputs and outputs; a region is a box of inputs, so bound "
                "inputs and outputs each on their own",
            )
        if len(inputs) > 1:
            some = " and ".join(self.inputs[i] for _, i in sorted(inputs)[:2])
            raise self.error(
                at,
                f"a constraint is about {len(inputs)} inputs, {some} among them; a region is a "
                "box, so bound each input on its own",
            )
        (((_, index), c),) = inputs.items()
        return Bound(index, c > 0, -linear.constant / c, at, strict)


def error_at(source: str, at: Place, message: str) -> UsageError:
    """An error at a place of a file."""
    return UsageError(f"{source}:{':'.join(str(n) for n in at if n)}: {message}")


def flattened(formulas: Sequence[Formula]) -> tuple[list[Leaf], list[Some]]:
    """Leaves and disjunctions of a conjunction, in order; conjunctions in it are opened."""
    leaves: list[Leaf] = []
    branching: list[Some] = []
    for each in formulas:
        if isinstance(each, Every):
            inner = flattened(each.parts)
            leaves += inner[0]
            branching += inner[1]
        elif isinstance(each, Some):
            branching.append(each)
        else:
            leaves.append(each)
    return leaves, branching


def count_of(formula: Formula) -> int:
    """How many disjuncts the disjunctive normal form has."""
    if isinstance(formula, Every):
        return prod(count_of(part) for part in formula.parts)
    return sum(map(count_of, formula.parts)) if isinstance(formula, Some) else 1


def cubes(formula: Formula) -> list[tuple[Leaf, ...]]:
    """The disjuncts of the disjunctive normal form."""
    if isinstance(formula, Some):
        return [cube for part in formula.parts for cube in cubes(part)]
    if isinstance(formula, Every):
        each = product(*(cubes(part) for part in formula.parts))
        return [tuple(leaf for part in cube for leaf in part) for cube in each]
    return [(formula,)]


def strict_in(formulas: Sequence[Formula]) -> list[Place]:
    """Places of strict constraints."""
    found: list[Place] = []
    for each in formulas:
        if isinstance(each, (Every, Some)):
            found += strict_in(each.parts)
        elif each.strict:
            found.append(each.at)
    return found


def shown(value: Fraction) -> str:
    """A number as people write it."""
    try:
        text = repr(float(value))
    except OverflowError:
        return str(value)
    text = text.removesuffix(".0")
    return text if Fraction(text) == value else str(value)
