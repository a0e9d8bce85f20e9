import math
import tomllib

import pytest
import tomli_w
from attrs import field, frozen
from hypothesis import given
from hypothesis import strategies as st

from advrepair.core.errors import PluginError, UsageError
from advrepair.core.options import Option, build, describe, option, values


@frozen
class Every:
    """One option of each type."""

    flag: bool = option(False, "a flag")
    steps: int = option(3, "steps", at_least=1, at_most=2**62)
    lr: float = option(0.1, "a rate", above=0)
    mode: str = option("one", "a mode", choices=("one", "two"))
    path: str = option("", "any text")
    hidden: tuple[int, ...] = option((), "sizes", at_least=1)
    span: tuple[float, ...] = option((0.0, 1.0), "a range")


FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
EVERY = st.builds(
    Every,
    flag=st.booleans(),
    steps=st.integers(1, 2**62),
    lr=FINITE.filter(lambda value: value > 0),
    mode=st.sampled_from(["one", "two"]),
    path=TEXT,
    hidden=st.lists(st.integers(1, 2**62)).map(tuple),
    span=st.lists(FINITE).map(tuple),
)


@given(EVERY)
def test_values_round_trip_through_toml(every):
    layer = tomllib.loads(tomli_w.dumps(values(every)))
    assert build(Every, layer, "every") == every


@given(EVERY)
def test_values_round_trip_through_the_command_line(every):
    strings = {name: str(value) for name, value in values(every).items()}
    assert build(Every, strings, "every") == every


@given(st.integers(-1000, 1000), st.integers(1, 1000))
def test_a_fraction_is_the_float_division(over, under):
    assert build(Every, {"span": f"[{over}/{under}]"}, "every").span == (over / under,)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("lr", "8/255", 8 / 255),
        ("lr", 10, 10.0),
        ("lr", "1e-3", 0.001),
        ("flag", "true", True),
        ("flag", "False", False),
        ("steps", "12", 12),
        ("hidden", "[64,64,16]", (64, 64, 16)),
        ("hidden", "64,64, 16", (64, 64, 16)),
        ("hidden", "[64,]", (64,)),
        ("hidden", "64", (64,)),
        ("hidden", "[]", ()),
        ("hidden", "", ()),
        ("hidden", [64, "8"], (64, 8)),
        ("span", "0, 8/255", (0.0, 8 / 255)),
        ("span", [0, 1], (0.0, 1.0)),
        ("span", "-1,1", (-1.0, 1.0)),
    ],
)
def test_what_is_read(name, value, expected):
    read = getattr(build(Every, {name: value}, "every"), name)
    assert read == expected
    assert type(read) is type(expected)


BAD = [
    ("flag", 1),
    ("flag", "yes"),
    ("steps", 2.0),
    ("steps", "2.0"),
    ("steps", "many"),
    ("steps", True),
    ("steps", 0),
    ("steps", 2**63),
    ("lr", 0),
    ("lr", -1.0),
    ("lr", math.nan),
    ("lr", math.inf),
    ("lr", "nan"),
    ("lr", "1e999"),
    ("lr", 10**400),
    ("lr", "1/0"),
    ("lr", "1/2/3"),
    ("lr", "/"),
    ("lr", True),
    ("lr", {"a": 1}),
    ("mode", "three"),
    ("mode", 1),
    ("path", 3),
    ("path", "\udcff"),
    ("hidden", "[64,"),
    ("hidden", "[64,,16]"),
    ("hidden", "[64.0]"),
    ("hidden", [64, 0]),
    ("hidden", [[64]]),
    ("hidden", 64),
    ("span", [0.0, math.nan]),
    ("span", {"low": 0}),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_what_is_refused(name, value):
    with pytest.raises(UsageError) as caught:
        build(Every, {name: value}, "every")
    message = str(caught.value)
    assert message.startswith(f"every.{name} is ")
    assert "it must be" in message
    assert "\n" not in message


def test_a_refusal_says_value_and_limits():
    with pytest.raises(UsageError) as caught:
        build(Every, {"steps": "0"}, "pgd")
    assert str(caught.value) == (
        f"pgd.steps is '0': it must be an integer, at least 1, at most {2**62}"
    )
    with pytest.raises(UsageError, match=r"^pgd.mode is 'on': it must be one of one, two$"):
        build(Every, {"mode": "on"}, "pgd")


def test_a_long_value_is_cut():
    with pytest.raises(UsageError) as caught:
        build(Every, {"lr": "x" * 1000}, "every")
    assert len(str(caught.value)) < 150


def test_unknown_option():
    with pytest.raises(UsageError, match=r"^unknown option 'steps_' in \[pgd\]: did you mean 'st"):
        build(Every, {"steps_": 3}, "pgd")
    with pytest.raises(UsageError, match=r"'zzz' in .*: choose from flag, hidden, lr"):
        build(Every, {"zzz": 3}, "pgd")


def test_unknown_option_where_there_are_none():
    @frozen
    class Nothing:
        pass

    with pytest.raises(UsageError, match="there is none to choose from"):
        build(Nothing, {"zzz": 3}, "none")


@pytest.mark.parametrize(
    "wrong",
    [{"steps": "3"}, {"steps": 0}, {"hidden": [64]}, {"lr": math.nan}, {"mode": "x"}, {"flag": 1}],
)
def test_the_constructor_checks_too(wrong):
    (name,) = wrong
    with pytest.raises(UsageError, match=f"^every.{name} is "):
        Every(**wrong)


def test_options_are_keywords():
    with pytest.raises(TypeError):
        Every(True)


def test_an_int_is_a_float_and_is_written_as_one():
    assert repr(values(Every(lr=2))["lr"]) == "2.0"


def test_describe():
    found = {each.name: each for each in describe(Every)}
    assert list(found) == ["flag", "steps", "lr", "mode", "path", "hidden", "span"]
    assert found["lr"] == Option("lr", "float", 0.1, "a rate", above=0)
    assert found["lr"].limits == "above 0"
    assert found["hidden"].type == "list of int"
    assert found["hidden"].allowed == "a list of integers such as [64, 16], at least 1"
    assert found["mode"].choices == ("one", "two")


@frozen
class Undeclared:
    steps: int = field(default=1)


@frozen
class Untyped:
    steps: dict[str, int] = option({}, "no type of an option")  # noqa: RUF009


@frozen
class BadDefault:
    steps: int = option(0, "a default out of limits", at_least=1)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Undeclared, "Undeclared.steps: declare it with option"),
        (Untyped, "Untyped.steps: an option is a bool"),
        (BadDefault, "default of BadDefault.steps is 0: it must be an integer, at least 1"),
    ],
)
def test_an_authors_mistake_is_a_plugin_error(cls, reason):
    with pytest.raises(PluginError, match=reason):
        describe(cls)
