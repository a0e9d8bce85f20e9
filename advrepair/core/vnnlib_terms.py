"""VNN-LIB 1.0 as text: tokens, parentheses, and linear terms over declared variables."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

from attrs import frozen

from advrepair.core.formulas import (
    Declared,
    Every,
    Formula,
    Linear,
    Place,
    Some,
    Variable,
    error_at,
    total,
)

_TOKEN = re.compile(r'[()]|"(?:[^"]|"")*"|\|[^|]*\||[^\s()";|]+|(?P<skip>\s+|;[^\n]*)|(?P<bad>.)')
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE]([+-]?\d+))?")
_DEPTH = 150  # parentheses within one another
_LONG, _EXPONENT = 1000, 1000  # characters and decimal exponent of a number
_SHOWN = 40
_FALSE, _TRUE = Some(), Every()


@frozen(eq=False)
class Expression:
    """A word, or a parenthesis with its parts; at: where it begins."""

    text: str
    parts: tuple[Expression, ...] | None
    at: Place

    @property
    def head(self) -> str:
        """First word of a parenthesis."""
        return self.parts[0].text if self.parts and self.parts[0].parts is None else ""


def expressions(source: str, text: str) -> list[Expression]:
    """Top-level expressions of a text; raises UsageError for unbalanced parentheses."""
    line, start = 1, 0
    open_: list[tuple[Place, list[Expression]]] = [((0, 0), [])]
    for match in _TOKEN.finditer(text):
        word, at = match.group(), (line, match.start() - start + 1)
        if match["bad"]:
            raise error_at(source, at, f"{word!r} is not closed; add the other one")
        if word == "(":
            open_.append((at, []))
            if len(open_) > _DEPTH:
                raise error_at(
                    source, at, f"more than {_DEPTH} parentheses in one another; nest less"
                )
        elif word == ")":
            begin, parts = open_.pop()
            if not open_:
                raise error_at(source, at, "this ')' closes nothing; remove it")
            open_[-1][1].append(Expression("", tuple(parts), begin))
        elif not match["skip"]:
            open_[-1][1].append(Expression(word, None, at))
        if "\n" in word:
            line += word.count("\n")
            start = match.start() + word.rindex("\n") + 1
    if len(open_) > 1:
        raise error_at(source, open_[-1][0], "this '(' is not closed; add a ')'")
    return open_[0][1]


@frozen(eq=False)
class Reader:
    """Turns expressions into formulas over the variables of a file."""

    declared: Declared
    variables: dict[str, Variable]

    def formula(self, expression: Expression) -> Formula:
        """A formula; raises UsageError for whatever is not one."""
        word, parts = expression.head, (expression.parts or ())[1:]
        if expression.text in ("true", "false"):
            return _TRUE if expression.text == "true" else _FALSE
        if word in ("and", "or"):
            self._need(expression, 1)
            inner = tuple(self.formula(part) for part in parts)
            return Every(inner) if word == "and" else Some(inner)
        if word in ("<=", ">=", "<", ">", "="):
            self._need(expression, 2)
            terms = [self.linear(part) for part in parts]
            found = tuple(
                each for a, b in pairwise(terms) for each in self._compared(word, a, b, expression)
            )
            return found[0] if len(found) == 1 else Every(found)
        what = f"operator {word!r}" if word else repr(expression.text or "(...)")
        raise self.declared.error(
            expression.at, f"{_short(what)} is no constraint; use and, or, <=, >=, <, > or ="
        )

    def linear(self, expression: Expression) -> Linear:
        """A linear term; raises UsageError for whatever is not one."""
        if expression.parts is None:
            return self._word(expression)
        word = expression.head
        if word not in ("+", "-", "*", "/"):
            what = f"operator {word!r}" if word else "'(...)'"
            raise self.declared.error(
                expression.at, f"{_short(what)} is no linear term; use +, -, * and numbers"
            )
        self._need(expression, 2 if word == "/" else 1)
        parts = (expression.parts or ())[1:]
        terms = [self.linear(part) for part in parts]
        if word == "+":
            return total((1, term) for term in terms)
        if word == "-":
            sign = -1 if len(terms) == 1 else 1
            return total((sign if i == 0 else -1, term) for i, term in enumerate(terms))
        found = terms[0]
        for term, part in zip(terms[1:], parts[1:], strict=True):
            if term.terms and (word == "/" or found.terms):
                what = "a product of variables" if word == "*" else "division by a variable"
                raise self.declared.error(
                    expression.at, f"{what} is not linear; only linear terms are read"
                )
            if word == "*":
                number, found = (found, term) if term.terms else (term, found)
                found = found.times(number.constant)
            elif term.constant == 0:
                raise self.declared.error(part.at, "division by zero; correct the divisor")
            else:
                found = found.times(1 / term.constant)
        return found

    def _word(self, expression: Expression) -> Linear:
        text, at = expression.text, expression.at
        if text in self.variables:
            return Linear({self.variables[text]: Fraction(1)}, Fraction(0))
        match = _NUMBER.fullmatch(text)
        if match is None:
            if re.fullmatch(r"[XY]_\d+", text):
                todo = f"is not declared; add (declare-const {text} Real)"
            else:
                todo = "is neither a number nor a declared variable; correct or declare it"
            raise self.declared.error(at, f"{_short(repr(text))} {todo}")
        if len(text) > _LONG or abs(int(match[1] or 0)) > _EXPONENT:
            raise self.declared.error(at, f"{_short(text)} is too long; write fewer digits")
        return Linear({}, Fraction(text))

    def _compared(self, word: str, a: Linear, b: Linear, at: Expression) -> list[Formula]:
        strict, found = word in ("<", ">"), []
        if word in ("<", "<=", "="):
            found.append(self.declared.constraint(total([(1, a), (-1, b)]), strict, at.at))
        if word in (">", ">=", "="):
            found.append(self.declared.constraint(total([(1, b), (-1, a)]), strict, at.at))
        return found

    def _need(self, expression: Expression, count: int) -> None:
        have = len(expression.parts or ()) - 1
        if have < count:
            raise self.declared.error(
                expression.at, f"{expression.head!r} has {have} argument(s); give at least {count}"
            )


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
