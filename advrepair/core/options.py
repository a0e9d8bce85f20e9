"""Typed options from TOML or the command line, for plugins and the core alike.

A component or a section of the configuration is a frozen attrs class; its fields are its
options, each declared with :func:`option`. No second class describes them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_type_hints

import attrs

from advrepair.core.errors import PluginError, UsageError

T = TypeVar("T")
Number = int | float

_METADATA = "advrepair.option"
_LIST = "list of "
_TYPES: dict[object, str] = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    tuple[int, ...]: _LIST + "int",
    tuple[float, ...]: _LIST + "float",
    tuple[str, ...]: _LIST + "str",
}
_ALLOWED = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a finite number",
    "str": "text",
    _LIST + "int": "a list of integers such as [64, 16]",
    _LIST + "float": "a list of finite numbers such as [0, 1]",
    _LIST + "str": 'a list of texts such as ["a", "b"]',
}


@attrs.frozen
class Option:
    """What is known about one option; of a list, the limits hold for every item."""

    name: str
    type: str
    default: object
    help: str
    choices: tuple[object, ...] | None = None
    at_least: Number | None = None
    above: Number | None = None
    at_most: Number | None = None

    @property
    def limits(self) -> str:
        """The limits in words, empty when there are none."""
        if self.choices is not None:
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        limits = {"at least": self.at_least, "above": self.above, "at most": self.at_most}
        return ", ".join(f"{word} {limit}" for word, limit in limits.items() if limit is not None)

    @property
    def allowed(self) -> str:
        """What a value must be, in words."""
        if self.choices is not None:
            return self.limits
        return _ALLOWED[self.type] + (f", {self.limits}" if self.limits else "")

    def read(self, value: object, section: str) -> object:
        """The typed value of what TOML or the command line gave.

        Raises UsageError for a wrong type or a value out of limits.
        """
        try:
            if not self.type.startswith(_LIST):
                typed = _READERS[self.type](value)
            else:
                reader = _READERS[self.type.removeprefix(_LIST)]
                typed = tuple(reader(item) for item in _items(value))
        except (ValueError, TypeError, OverflowError, ZeroDivisionError):
            raise self._refusal(value, section) from None
        if not self._fits(typed):
            raise self._refusal(value, section)
        return typed

    def check(self, value: object, section: str) -> None:
        """Raises UsageError unless value has the option's type and lies within its limits."""
        if not self._fits(value):
            raise self._refusal(value, section)

    def _fits(self, value: object) -> bool:
        element = self.type.removeprefix(_LIST)
        if element == self.type:
            return _has_type(value, element) and self._within(value)
        return isinstance(value, tuple) and all(
            _has_type(item, element) and self._within(item) for item in value
        )

    def _within(self, item: Any) -> bool:
        return (
            (self.choices is None or item in self.choices)
            and (self.at_least is None or item >= self.at_least)
            and (self.above is None or item > self.above)
            and (self.at_most is None or item <= self.at_most)
        )

    def _refusal(self, value: object, section: str) -> UsageError:
        shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
        return UsageError(f"{section}.{self.name} is {shown}: it must be {self.allowed}")


def _has_type(item: object, element: str) -> bool:
    """Whether item is of the named type; an int is a float too, a bool is neither."""
    if element == "float":
        if isinstance(item, int) and not isinstance(item, bool):
            return True
        return isinstance(item, float) and math.isfinite(item)
    return type(item).__name__ == element


def _items(value: object) -> Iterable[object]:
    """Items of "[64, 16]", "64,16", "[]" or a TOML array."""
    if isinstance(value, list | tuple):
        return value
    if not isinstance(value, str):
        raise TypeError
    text = value.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1].strip()
    return text.removesuffix(",").split(",") if text else ()


def _read_bool(value: object) -> object:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower(), value)
    return value


def _read_int(value: object) -> object:
    return int(value) if isinstance(value, str) else value


def _read_float(value: object) -> object:
    if isinstance(value, str):
        over, slash, under = value.partition("/")
        return float(over) / float(under) if slash else float(over)
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _read_str(value: object) -> object:
    if isinstance(value, str):
        value.encode()  # A lone surrogate cannot be written to a file later: ValueError.
    return value


_READERS = {"bool": _read_bool, "int": _read_int, "float": _read_float, "str": _read_str}


def option(
    default: T,
    help: str,
    *,
    choices: Iterable[T] | None = None,
    at_least: Number | None = None,
    above: Number | None = None,
    at_most: Number | None = None,
) -> T:
    """Declare an option: a keyword field of a frozen attrs class.

    Its annotation says the type: bool, int, float, str, tuple[int, ...], tuple[float, ...].

    default: every option has one. help: one line. choices: the only values allowed.
    at_least, above, at_most: limits of a number, or of every item of a list.
    """
    stated = {
        "help": help,
        "choices": None if choices is None else tuple(choices),
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
    }
    return attrs.field(
        default=default, kw_only=True, validator=_validate, metadata={_METADATA: stated}
    )


def _validate(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Check a value given to the constructor, where no section is named."""
    cls = type(instance)
    section = getattr(cls, "name", cls.__name__.lower())
    _described(cls, attribute, get_type_hints(cls)).check(value, section)


def _described(cls: type, attribute: attrs.Attribute[Any], hints: Mapping[str, object]) -> Option:
    where = f"{cls.__name__}.{attribute.name}"
    if _METADATA not in attribute.metadata:
        raise PluginError(f"{where}: declare it with option(default, help)")
    kind = _TYPES.get(hints[attribute.name])
    if kind is None:
        raise PluginError(
            f"{where}: an option is a bool, int, float, str, or a tuple[int | float | str, ...]"
        )
    return Option(attribute.name, kind, attribute.default, **attribute.metadata[_METADATA])


def describe(cls: type) -> tuple[Option, ...]:
    """Options of a component or section, in the order of its fields.

    Raises PluginError for a field not made by :func:`option`, a type that is no option's, or
    a default that breaks the option's own limits.
    """
    hints = get_type_hints(cls)
    found = tuple(_described(cls, field, hints) for field in attrs.fields(cls))
    for each in found:
        try:
            each.check(each.default, cls.__name__)
        except UsageError as error:
            raise PluginError(f"default of {error}") from None
    return found


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of an "unknown ..." message: the nearest name, or all there are."""
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(names)}" if names else "there is none to choose from"


def check_names(given: Iterable[str], known: Iterable[str], section: str) -> None:
    """Raises UsageError for the first option given that is not known."""
    names = tuple(known)
    for name in given:
        if name not in names:
            hint = suggestion(name, names)
            raise UsageError(f"unknown option {name!r} in [{section}]: {hint}")


def build(cls: type[T], values: Mapping[str, object], section: str) -> T:
    """A component or section with these options, the rest at their defaults.

    values: typed, as TOML gives them, or strings, as the command line does.
    Raises UsageError for an unknown option, a wrong type and a value out of limits.
    """
    known = {each.name: each for each in describe(cls)}
    check_names(values, known, section)
    return cls(**{name: known[name].read(value, section) for name, value in values.items()})


def values(instance: object) -> dict[str, Any]:
    """All options of a component or section as TOML values; :func:`build` reads them back."""
    found: dict[str, Any] = {}
    for each in describe(type(instance)):
        value = each.read(getattr(instance, each.name), each.name)
        found[each.name] = list(value) if isinstance(value, tuple) else value
    return found
