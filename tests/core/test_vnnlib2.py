"""VNN-LIB 2.0: the same demands as 1.0, through the syntax tree of an optional package."""

import builtins
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advrepair.core.errors import UsageError
from advrepair.core.vnnlib import read_vnnlib

NETWORK = (
    "(vnnlib-version <2.0>)\n(declare-network acc (declare-input X float32 [1,2])"
    "\n (declare-output Y float32 [3]))\n"
)
BOX = (
    "(assert (and (<= X[0,0] 0.1) (>= X[0,0] -0.5) (<= X[0,1] 1.0) (>= X[0,1] 0.0)))\n"
    "(assert (<= Y[0] 0.0))\n"
)


@pytest.fixture
def read(tmp_path):
    path = tmp_path / "some.vnnlib"

    def reader(text):
        path.write_text(text)
        return read_vnnlib(path)

    return reader


def test_without_the_package_the_command_that_installs_it_is_named(read, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **options):
        if name == "vnnlib":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UsageError) as error:
        read("; a comment\n" + NETWORK + BOX)
    assert str(error.value).endswith('needs another package; pip install "advrepair[vnnlib]"')


@pytest.fixture(name="read2")
def read_with_package(read):
    pytest.importorskip("vnnlib", reason="the optional package vnnlib is not installed")
    return read


def test_numbers_are_exact_and_indices_flattened(read2):
    either = "(or (and (< Y[0] (- 0.3)) (>= (* 2.0 Y[1] 0.1) (- Y[2] Y[0] 1.5))) (== Y[1] 0.0))"
    found = read2(NETWORK + BOX.replace("(<= Y[0] 0.0)", either))
    assert (found.name, found.inputs, found.outputs) == ("some", 2, 3)
    (region,) = found.regions
    assert region.lower == (Fraction(-1, 2), 0)
    assert region.upper == (Fraction(1, 10), 1)
    groups = [[(row.coefficients, row.constant) for row in group] for group in region.groups]
    fifth = Fraction(1, 5)
    assert groups == [
        [((1, 0, 0), Fraction(3, 10)), ((-1, -fifth, 1), Fraction(-3, 2))],
        [((0, 1, 0), 0), ((0, -1, 0), 0)],
    ]
    assert found.notes[0].startswith("1 strict constraint(s), the first in line 5, read as")


def test_tensors_are_flattened_with_the_last_index_fastest(read2):
    text = NETWORK.replace("float32 [1,2]", "float32 [2,3]")
    for i in range(2):
        for j in range(3):
            text += f"(assert (and (<= X[{i},{j}] {i}.{j}) (>= X[{i},{j}] -1.0)))\n"
    (region,) = read2(text + "(assert (<= Y[0] 0.0))").regions
    assert [*map(float, region.upper)] == [0.0, 0.1, 0.2, 1.0, 1.1, 1.2]


ROW = st.tuples(st.sampled_from(["<=", ">="]), st.integers(0, 2), st.integers(-9, 9))


@given(st.lists(ROW, min_size=1, max_size=4), st.booleans())
def test_both_versions_say_the_same(tmp_path_factory, rows, joined):
    pytest.importorskip("vnnlib", reason="the optional package vnnlib is not installed")
    folder, word = tmp_path_factory.getbasetemp(), "and" if joined else "or"
    new, old = (
        " ".join(f"({s} (+ {name % j} (* 2.5 {name % 0})) {c / 8})" for s, j, c in rows)
        for name in ("Y[%d]", "Y_%d")
    )
    one, two = folder / "one.vnnlib", folder / "two.vnnlib"
    two.write_text(NETWORK + BOX + f"(assert ({word} {new}))")
    declared = "".join(f"(declare-const {n} Real)" for n in ("X_0", "X_1", "Y_0", "Y_1", "Y_2"))
    box = BOX.replace("X[0,", "X_").replace("Y[", "Y_").replace("]", "")
    one.write_text(declared + box + f"(assert ({word} {old}))")
    assert read_vnnlib(one).regions == read_vnnlib(two).regions


Y = "(declare-output Y float32 [3])"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NETWORK + BOX + "(assert (<= Y[0] X[0,0]))", ":6: a constraint mixes inputs and outputs"),
        (NETWORK + BOX + "(assert (<= Y[7] 0.0))", ":6: Index out of bounds for variable: Y[7]; "),
        (NETWORK + BOX + "(assert (<= Z[0] 0.0))", ":6: Undeclared variable: Z; "),
        (NETWORK + BOX + "(assert (<= Y[0] 0.0)", ":6:20: syntax error before ''"),
        (NETWORK + BOX + "(assert (!= Y[0] 0.0))", ":6: (!= Y [0] 0.0): NotEqual is not read"),
        (NETWORK + BOX + "(assert (<= (* Y[0] Y[1]) 0.0))", ":6: a product of variables is not li"),
        (NETWORK + "(assert (<= Y[0] 0.0))", ":2:22: X[0,0] has no lower bound"),
        (NETWORK + BOX.replace("-0.5", "0.5"), ":4: X[0,0] has the lower bound 0.5 above its"),
        (NETWORK.replace("2.0", "2.7") + BOX, ":1: VNN-LIB version <2.7> is not read"),
        (NETWORK.replace("float32 [1,2]", "int8 [1,2]"), ":2:22: X has type I8; only real"),
        (
            NETWORK.replace(Y, f'(declare-hidden H float32 [3] "n") {Y}') + BOX,
            ":3:2: H is hidden; leave it out",
        ),
        (
            NETWORK.replace(Y, f"{Y} (declare-output Z float32 [3])") + BOX,
            ":3:33: Z is a second output; only one is read",
        ),
        (
            NETWORK + "(declare-network b (declare-input U float32 [1])"
            "(declare-output V float32 [1]))" + BOX,
            ": it has several networks (acc, b); only one is read",
        ),
    ],
)
def test_what_is_not_read_is_refused_by_name(read2, tmp_path, text, message):
    if "int8" in text:
        text += "(assert (<= Y[0] 0.0))"
    with pytest.raises(UsageError) as error:
        read2(text)
    found = str(error.value)
    assert found.startswith(f"{tmp_path / 'some.vnnlib'}{message}"), found
    assert "\n" not in found
