"""VNN-LIB files: what they say is what is demanded, and what cannot be read is refused."""

import gzip
import os
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from advrepair.core import specification
from advrepair.core.errors import UsageError
from advrepair.core.properties import in_words
from advrepair.core.specified import from_specifications
from advrepair.core.vnnlib import read_vnnlib

DATA = os.environ.get("ADVREPAIR_DATA")
INPUTS, OUTPUTS = 2, 3
BOX = "(assert (and (<= 0 X_0 1) (>= 1 X_1 0)))\n"


def declared(inputs=INPUTS, outputs=OUTPUTS):
    names = [f"X_{i}" for i in range(inputs)] + [f"Y_{j}" for j in range(outputs)]
    return "".join(f"(declare-const {name} Real)" for name in names) + "\n"


def written(folder, text):
    path = Path(folder) / "some.vnnlib"
    path.write_text(text)
    return path


@pytest.fixture
def read(tmp_path):
    return lambda text: read_vnnlib(written(tmp_path, text))


def demand(found):
    """Of every region its groups, a row as (coefficients, constant) in floats."""
    return [
        [
            [([*map(float, r.coefficients)], float(r.constant)) for r in group]
            for group in each.groups
        ]
        for each in found.regions
    ]


# Random formulas -----------------------------------------------------------------------

NUMBERS = st.integers(-8, 8).map(lambda n: Fraction(n, 4))
FACTORS = NUMBERS.filter(bool)


@st.composite
def literal(draw, value=None):
    """A number in one of the ways to write it: (text, function of x and y)."""
    value = draw(NUMBERS) if value is None else value
    number, size = float(value), float(abs(value))
    ways = [f"{number}", f"{number:e}", f"(/ {int(value * 4)} 4)", f"(* {number / 2} 2)"]
    ways += [f"(- {size})"] if value <= 0 else [f"+{size}", f"(- (- {size}))", f"(+ {size} 0)"]
    return draw(st.sampled_from(ways)), lambda x, y: value


@st.composite
def output_term(draw, depth=2):
    kind = draw(st.sampled_from(["variable", "variable", "number", "scaled", "+", "-"]))
    if kind == "number":
        return draw(literal())
    if kind == "variable" or not depth:
        j = draw(st.integers(0, OUTPUTS - 1))
        return f"Y_{j}", lambda x, y: y[j]
    if kind == "scaled":
        (factor, k), (text, inner) = draw(literal()), draw(output_term(depth - 1))
        whole = draw(st.sampled_from([f"(* {factor} {text})", f"(* {text} {factor})"]))
        return whole, lambda x, y: k(x, y) * inner(x, y)
    parts = draw(st.lists(output_term(depth - 1), min_size=1, max_size=3))
    signs = [1 if kind == "+" or (i == 0 and len(parts) > 1) else -1 for i in range(len(parts))]
    text = f"({kind} {' '.join(text for text, _ in parts)})"
    return text, lambda x, y: sum(s * part(x, y) for s, (_, part) in zip(signs, parts, strict=True))


@st.composite
def input_term(draw):
    i, (factor, k), (shift, c) = (
        draw(st.integers(0, INPUTS - 1)),
        draw(FACTORS.flatmap(literal)),
        draw(literal()),
    )
    ways = [
        (f"X_{i}", lambda x, y: x[i]),
        (f"(* {factor} X_{i})", lambda x, y: k(x, y) * x[i]),
        (f"(- {shift} X_{i})", lambda x, y: c(x, y) - x[i]),
    ]
    return draw(st.sampled_from(ways))


ORDER = {"<=": lambda a, b: a <= b, ">=": lambda a, b: a >= b, "=": lambda a, b: a == b}


@st.composite
def constraint(draw, outputs=None):
    """An atom; a strict one compares a variable with a number, and holds in a tie too."""
    if draw(st.integers(0, 4)) == 0:
        sign = draw(st.sampled_from("<>"))
        name, i = draw(st.sampled_from(["Y_0", "Y_2"])), 0
        i = int(name[-1])
        text, number = draw(literal())
        return f"({sign} {name} {text})", lambda x, y: ORDER[sign + "="](y[i], number(x, y))
    if draw(st.booleans()) if outputs is None else outputs:
        terms = draw(st.lists(output_term(), min_size=2, max_size=3))
    else:
        terms = [draw(literal()), draw(input_term()), draw(literal())]
        terms = terms[draw(st.sampled_from([slice(2), slice(1, 3), slice(3)]))]
    sign = draw(st.sampled_from(["<=", "<=", ">=", ">=", "="]))
    text = f"({sign} {' '.join(text for text, _ in terms)})"
    return text, lambda x, y: all(
        ORDER[sign](a(x, y), b(x, y)) for (_, a), (_, b) in pairwise(terms)
    )


def joined(parts):
    def combine(pair):
        word, each = pair
        test = all if word == "and" else any
        text = f"({word} {' '.join(text for text, _ in each)})"
        return text, lambda x, y: test(part(x, y) for _, part in each)

    return st.tuples(st.sampled_from(["and", "or"]), st.lists(parts, min_size=1, max_size=3)).map(
        combine
    )


FORMULAS = st.recursive(constraint(), joined, max_leaves=8)
POINTS = st.lists(
    st.tuples(*[st.integers(-12, 12).map(lambda n: Fraction(n, 8))] * (INPUTS + OUTPUTS)),
    min_size=5,
    max_size=15,
)


def is_unsafe(regions, x, y):
    """Whether x lies in a region whose demand y breaks."""
    return any(
        all(low <= v <= high for low, v, high in zip(r.lower, x, r.upper, strict=True))
        and not all(
            any(
                sum(c * v for c, v in zip(row.coefficients, y, strict=True)) + row.constant > 0
                for row in group
            )
            for group in r.groups
        )
        for r in regions
    )


@given(FORMULAS, constraint(outputs=True), POINTS)
def test_demands_are_broken_exactly_where_the_formula_holds(tmp_path_factory, main, last, points):
    folder = tmp_path_factory.getbasetemp()
    sides = "".join(f"(assert (<= (- 1) X_{i} 1.0))" for i in range(INPUTS))
    path = written(folder, f"{declared()}{sides}; bounds\n(assert {main[0]}) (assert {last[0]})")

    def holds(x, y):
        inside = all(-1 <= v <= 1 for v in x)
        return inside and main[1](x, y) and last[1](x, y)

    split = [(point[:INPUTS], point[INPUTS:]) for point in points]
    try:
        found = read_vnnlib(path)
    except UsageError as error:
        message = str(error)
        if "whatever the outputs are" in message:  # a constraint without variables that is true
            assume(False)
        assert "no input is left" in message or "nothing is unsafe" in message
        assert not any(holds(x, y) for x, y in split)
        return
    for x, y in split:
        assert is_unsafe(found.regions, x, y) == holds(x, y)
    properties = from_specifications([found], (INPUTS,), OUTPUTS, torch.float32)
    for x, y in split:  # eighths, which float32 holds
        point, output = (torch.tensor([[*map(float, each)]]) for each in (x, y))
        inside = properties.box.holds(point.expand(len(properties), -1))
        broken = properties.violated(output.expand(len(properties), -1))
        assert bool((inside & broken).any()) == holds(x, y)


# What is read --------------------------------------------------------------------------


def test_disjuncts_are_groups_of_negated_rows(read):
    found = read(declared() + BOX + "(assert (or (and (<= Y_1 Y_0) (>= Y_2 3)) (< Y_1 -2e-1)))")
    assert (found.name, found.inputs, found.outputs) == ("some", 2, 3)
    assert demand(found) == [
        [[([-1.0, 1.0, 0.0], 0.0), ([0.0, 0.0, -1.0], 3.0)], [([0.0, 1.0, 0.0], 0.2)]]
    ]
    assert found.regions[0].groups[1][0].constant == Fraction(1, 5)
    assert found.notes == (
        "1 strict constraint(s), the first in line 3, read as non-strict: a tie counts as unsafe",
    )


def test_boxes_that_are_written_twice_are_one_region(read):
    either = "(or (and (<= X_0 .5) (<= Y_0 0)) (and (<= X_0 0.50) (<= Y_0 0)) (<= Y_1 0))"
    found = read(declared() + BOX + f"(assert {either})")
    assert [float(r.upper[0]) for r in found.regions] == [0.5, 1.0]
    assert [len(r.groups) for r in found.regions] == [1, 1]


def test_disjuncts_without_an_input_are_left_out(read):
    found = read(declared() + BOX + "(assert (or (>= X_0 2) (<= Y_0 0)))(assert (<= Y_1 0))")
    assert demand(found) == [[[([0.0, 1.0, 0.0], 0.0), ([1.0, 0.0, 0.0], 0.0)]]]
    assert found.notes == ("1 of 2 disjuncts left out: their bounds admit no input",)


def test_commands_that_say_nothing_are_passed_over(read):
    text = '(set-logic QF_LRA)(set-info :source "a ) ""b"" (")(check-sat)(get-model)(exit)'
    text = "\ufeff; a comment (\n" + declared() + text + BOX
    text = text.replace("(declare-const Y_2 Real)", "(declare-fun Y_2 () Real)")
    assert demand(read(text + "(assert (and true (<= Y_0 |0|)))".replace("|", ""))) == [
        [[([1.0, 0.0, 0.0], 0.0)]]
    ]


@pytest.mark.parametrize("name", ["a.vnnlib.gz", "a.vnnlib"])
def test_compressed_files_are_read(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress((declared() + BOX + "(assert (<= Y_0 0))").encode()))
    assert read_vnnlib(path).name == "a"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UsageError, match="not whole as a gzip file"):
        read_vnnlib(path)


# What is refused -----------------------------------------------------------------------

REFUSED = [
    ("(assert (<= Y_0 0)", "2:1: this '(' is not closed"),
    ("(assert (<= Y_0 0)))", "2:20: this ')' closes nothing"),
    ('(echo "a', "2:7: '\"' is not closed"),
    ("(assert (<= Y_0 foo))", "2:17: 'foo' is neither a number nor a declared variable"),
    ("(assert (<= Y_0 1_0))", "2:17: '1_0' is neither"),
    ("(assert (<= Y_0 Y_7))", "2:17: 'Y_7' is not declared; add (declare-const Y_7 Real)"),
    ("(assert (<= Y_0 (* Y_1 Y_0)))", "2:17: a product of variables is not linear"),
    ("(assert (<= Y_0 (* X_1 Y_0)))", "2:17: a product of variables is not linear"),
    ("(assert (<= Y_0 (/ 1 Y_0)))", "2:17: division by a variable is not linear"),
    ("(assert (<= Y_0 (/ 1 0.0)))", "2:22: division by zero"),
    ("(assert (<= Y_0 (/ 1)))", "2:17: '/' has 1 argument(s); give at least 2"),
    ("(assert (<= Y_0))", "2:9: '<=' has 1 argument(s)"),
    ("(assert (and))", "2:9: 'and' has 0 argument(s)"),
    ("(assert (not (<= Y_0 0)))", "2:9: operator 'not' is no constraint; use and, or"),
    ("(assert Y_0)", "2:9: 'Y_0' is no constraint"),
    ("(assert ((<= Y_0 0)))", "2:9: '(...)' is no constraint"),
    ("(assert (<= (max Y_0 Y_1) 0))", "2:13: operator 'max' is no linear term"),
    ("(assert (<= Y_0 X_0))", "2:9: a constraint mixes inputs and outputs"),
    ("(assert (or (<= Y_0 0)\n (<= X_0 X_1)))", "3:2: a constraint is about 2 inputs, X_0 and X_1"),
    ("(assert (<= Y_0 0) (<= Y_1 0))", "2:1: assert takes one formula"),
    ("(push 1)", "2:1: 'push' is no command of VNN-LIB"),
    ("assert", "2:1: 'assert' is no command"),
    ("(declare-const X_0 Real)", "2:1: X_0 is declared twice"),
    ("(declare-const Z_0 Real)", "2:16: 'Z_0' is no name of an input"),
    ("(declare-const X_00 Real)", "2:16: 'X_00' is no name"),
    ("(declare-const X_2 Int)", "2:20: X_2 is a Int; only Real is read"),
    ("(declare-const X_2)", "2:1: no declaration; write (declare-const X_0 Real)"),
    ("(declare-const X_3 Real)", "2:1: X_3 is declared but X_2 is not; number without gaps"),
    ("(assert (<= X_0 0))(assert (>= X_0\n 1))", "2:28: X_0 has the lower bound 1 above its upper"),
    ("(assert (<= Y_0 1e99999))", "2:17: 1e99999 is too long"),
    ("(assert (<= Y_0 " + "9" * 1001 + "))", "2:17: " + "9" * 40 + "... is too long"),
    ("(" * 200, "2:150: more than 150 parentheses in one another"),
    ("(assert (<= 0 X_1 1))(assert (<= X_0 0))(assert (<= Y_0 0))", "1:1: X_0 has no lower bound"),
    ("(assert (<= 0 X_0 1))(assert (>= X_1 0))(assert (<= Y_0 0))", "1:25: X_1 has no upper bound"),
    (BOX, "2:14: a whole region of inputs is unsafe whatever the outputs are"),
    (BOX + "(assert (or (<= Y_0 0) (<= X_0 0.5)))", "3:24: a whole region of inputs is unsafe"),
    (BOX + "(assert (< 1 1))", " nothing is unsafe, so nothing is demanded"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_cannot_be_read_is_refused_by_its_place(tmp_path, text, message):
    path = written(tmp_path, declared() + text)
    with pytest.raises(UsageError) as error:
        read_vnnlib(path)
    found = str(error.value)
    assert found.startswith(f"{path}:{message}"), found
    assert "\n" not in found
    assert len(found) < len(str(path)) + 200


def test_an_empty_box_names_both_bounds(read):
    with pytest.raises(
        UsageError, match=r"X_1 has the lower bound 0\.7 above its upper bound 1/3,"
    ):
        read(declared() + BOX + "(assert (>= X_1 0.7))(assert (<= (* 3 X_1) 1))(assert (<= Y_0 0))")


def test_a_normal_form_that_explodes_is_refused_with_its_size(read, monkeypatch):
    monkeypatch.setattr(specification, "DISJUNCTS", 8)
    either = "(assert (or (<= Y_0 0) (<= Y_1 0)))"
    assert len(read(declared() + BOX + either * 3).regions[0].groups) <= 8
    with pytest.raises(UsageError, match="its normal form has 16 disjuncts, at most 8 are read"):
        read(declared() + BOX + either * 4)


def test_the_size_is_known_before_it_explodes(read):
    either = "(assert (or (<= Y_0 0) (<= Y_1 0)))"
    with pytest.raises(UsageError, match=f"has {2**200} disjuncts"):
        read(declared() + BOX + either * 200)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "declares no input X_0; add"),
        (b"(declare-const X_0 Real)", r"declares no output Y_0; add \(declare-const Y_0 Real\)"),
        (b"\xff\xfe\x00", "is not a text file"),
        (b"\x00\x01", "is not a text file"),
        (b"; a\n(vnnlib-version <3.1>)", ":2: VNN-LIB version <3.1> is not read"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "some.vnnlib"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_vnnlib(path)


def test_paths_that_are_no_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"none\.vnnlib: no such file"):
        read_vnnlib(tmp_path / "none.vnnlib")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_vnnlib(tmp_path)


# As properties of a network ------------------------------------------------------------


@given(st.fractions(-10, 10), st.fractions(0, 1), st.sampled_from([torch.float32, torch.float64]))
def test_faces_are_rounded_outward_by_one_step_at_most(tmp_path_factory, low, width, dtype):
    high = low + width
    sides = [f"(/ {value.numerator} {value.denominator})" for value in (low, high)]
    text = declared(1, 2) + f"(assert (<= {sides[0]} X_0 {sides[1]}))(assert (<= Y_0 0))"
    found = read_vnnlib(written(tmp_path_factory.getbasetemp(), text))
    box = from_specifications([found], (1, 1), 2, dtype).box
    assert box.lower.dtype == dtype and box.input_shape == (1, 1)
    assert Fraction(box.lower.item()) <= low and Fraction(box.upper.item()) >= high
    inner = torch.nextafter(box.lower, box.lower + 1), torch.nextafter(box.upper, box.upper - 1)
    assert Fraction(inner[0].item()) > low and Fraction(inner[1].item()) < high


@given(st.lists(st.decimals(-9, 9, places=3), min_size=2, max_size=2), st.decimals(-9, 9, places=9))
def test_rows_demand_what_is_written_or_a_little_more(tmp_path_factory, factors, constant):
    a, b, c = (Fraction(value) for value in (*factors, constant))
    assume(a and b)
    text = f"(assert (<= (+ (* {factors[0]} Y_0) (* {factors[1]} Y_1) {constant}) 0))"
    text = declared(1, 2) + "(assert (<= 0 X_0 1))" + text
    found = read_vnnlib(written(tmp_path_factory.getbasetemp(), text))
    properties = from_specifications([found], (1,), 2, torch.float32)
    first, second = map(Fraction, properties.C[0, 0].tolist())
    factor = first / a
    assert factor > 0 and second == factor * b, "exact, up to one positive factor"
    assert Fraction(1, 4) < factor < 4
    stored = Fraction(properties.d[0, 0].item())
    assert factor * c * (1 - Fraction(1, 2**52)) <= stored <= factor * c or c < 0
    assert stored <= factor * c <= stored + abs(stored) / 2**52


def test_a_single_coefficient_may_have_any_number_of_digits(read):
    found = read(declared() + BOX + "(assert (<= (* 0.123456789012345678901 Y_1) 0))")
    properties = from_specifications([found], (2,), 3, torch.float32)
    assert properties.C.tolist() == [[[0, 0.125, 0]]]


def test_regions_become_properties_that_are_padded(read):
    text = "(assert (or (and (<= X_0 0.5) (<= Y_0 0) (<= Y_1 0)) (and (>= X_0 0.75) (<= Y_2 0))))"
    found = read(declared() + BOX + text)
    properties = from_specifications([found], (2, 1), 3, torch.float64)
    assert properties.names == ("some[0]", "some[1]")
    assert properties.group.tolist() == [[0, 0], [0, -1]]
    assert properties.C[1].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert properties.box.lower.tolist() == [[[0], [0]], [[0.75], [0]]]
    assert properties.box.upper.tolist() == [[[0.5], [1]], [[1], [1]]]
    single = read(declared() + BOX + "(assert (<= Y_2 0))")
    both = from_specifications([found, single], (2,), 3, torch.float32)
    assert both.names == ("some[0]", "some[1]", "some")


def test_numbers_that_do_not_fit_the_network_are_refused(read):
    found = read(declared() + BOX + "(assert (<= Y_2 0))")
    with pytest.raises(UsageError, match=r"declares 2 inputs, the network takes 784 \(1,28,28\)"):
        from_specifications([found], (1, 28, 28), 3, torch.float32)
    with pytest.raises(UsageError, match="declares 3 outputs, the network has 10"):
        from_specifications([found], (2,), 10, torch.float32)
    with pytest.raises(UsageError, match="no specification was given"):
        from_specifications([], (2,), 10, torch.float32)
    long = "(<= (+ (* 1.2345678901 Y_0) (* 0.12345678901234567 Y_1) (* 9.87654321000001 Y_2)) 0)"
    found = read(declared() + BOX + f"(assert {long})")
    with pytest.raises(UsageError, match=r"vnnlib:3:9: the numbers before the outputs have more"):
        from_specifications([found], (2,), 3, torch.float32)
    found = read(declared() + BOX.replace("1 X_1", "1e39 X_1") + "(assert (<= Y_2 0))")
    with pytest.raises(UsageError, match=r"some: a bound is too large for torch\.float32"):
        from_specifications([found], (2,), 3, torch.float32)
    assert len(from_specifications([found], (2,), 3, torch.float64)) == 1


# ACAS Xu -------------------------------------------------------------------------------

ACAS = {  # properties, groups of each, and what they demand
    1: (1, 1, "y0 < 3.99113"),
    2: (1, 1, "output 0 is not the largest"),
    3: (1, 1, "output 0 is not the smallest"),
    4: (1, 1, "output 0 is not the smallest"),
    5: (1, 4, "output 4 is the smallest"),
    6: (2, 4, "output 0 is the smallest"),
    7: (1, 2, ""),
    8: (1, 3, ""),
    9: (1, 4, "output 3 is the smallest"),
    10: (1, 4, "output 0 is the smallest"),
}


@pytest.mark.skipif(not DATA, reason="ADVREPAIR_DATA is not set: no files to read")
@pytest.mark.parametrize("number", ACAS)
def test_files_of_acas_xu(number):
    found = read_vnnlib(Path(DATA or "") / "acasxu" / "vnnlib" / f"prop_{number}.vnnlib")
    count, groups, words = ACAS[number]
    assert (found.name, found.inputs, found.outputs) == (f"prop_{number}", 5, 5)
    assert found.notes == ()
    assert [len(region.groups) for region in found.regions] == [groups] * count
    properties = from_specifications([found], (1, 1, 1, 5), 5, torch.float32)
    assert all(in_words(properties, p).endswith(words) for p in range(count))
    if number == 6:
        sides = [float(region.upper[1]) for region in found.regions]
        assert sides == [0.499999896, -0.11140846]
