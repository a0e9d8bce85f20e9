"""``.nnet`` files: the function they describe, the ACAS Xu networks, and damage."""

import os
from pathlib import Path

import pytest
import torch

from advrepair.core.errors import UsageError
from advrepair.core.network import load_network
from advrepair.core.nnet import read_nnet

DATA = Path(os.environ.get("ADVREPAIR_DATA", "")) / "acasxu"
ACAS = sorted((DATA / "nnet").glob("*.nnet"))
no_data = pytest.mark.skipif(
    not (os.environ.get("ADVREPAIR_DATA") and ACAS), reason="ADVREPAIR_DATA has no ACAS Xu networks"
)

LINES = """\
// a comment
//another
2,3,2,4,
3,4,2,
0,
-1.0,-2.0,0.0,
1.0,2.0,10.0,
0.5,0.0,5.0,7.25,
2.0,4.0,10.0,3.0,
1.0,2.0,3.0,
0.5,-0.5,0.25,
-1.0,0.0,1.0,
0.0,1e-1,-2.0e+00,
0.5,
-0.5,
0.0,
1.0,
1.0,-1.0,0.5,2.0,
0.0,3.0,-1.0,1.0,
0.125,
-0.25,
""".splitlines()


def write(path, lines):
    (path / "net.nnet").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path / "net.nnet"


def test_it_is_the_function_of_the_file(tmp_path):
    network = load_network(write(tmp_path, LINES))
    assert network.input_shape == (3,) and network.outputs == 2
    assert network.dtype == torch.float32 and network.units == 4
    x = torch.tensor([[0.5, 0.0, 5.0], [1.0, -2.0, 10.0], [9.0, -9.0, 90.0]])
    z = (x.double() - torch.tensor([0.5, 0, 5])) / torch.tensor([2.0, 4, 10])
    first = torch.tensor([[1, 2, 3], [0.5, -0.5, 0.25], [-1, 0, 1], [0, 0.1, -2]]).double()
    last = torch.tensor([[1, -1, 0.5, 2], [0, 3, -1, 1]]).double()
    hidden = (z @ first.T + torch.tensor([0.5, -0.5, 0, 1])).relu()
    expected = (hidden @ last.T + torch.tensor([0.125, -0.25])) * 3 + 7.25
    assert torch.allclose(network(x).double(), expected, rtol=1e-6, atol=1e-5)


def test_without_normalisation_there_are_layers_only(tmp_path):
    lines = [*LINES]
    lines[7], lines[8] = "0,0,0,0,", "1,1,1,1,"
    kinds = [op.kind for op in load_network(write(tmp_path, lines)).operations]
    assert kinds == ["linear", "relu", "linear"]


def test_comments_blank_lines_and_spaces_do_not_matter(tmp_path):
    plain = load_network(write(tmp_path, LINES))
    spaced = [f"  {line.replace(',', ' , ')}  " for line in LINES if not line.startswith("//")]
    loose = load_network(write(tmp_path, [*spaced[:9], "", "// here too", *spaced[9:], "", ""]))
    assert loose.digest() == plain.digest()


def damaged(number, line):
    """The lines with one replaced; number as an editor counts."""
    return [*LINES[: number - 1], line, *LINES[number:]]


@pytest.mark.parametrize(
    "lines, message",
    [
        ([], "line 1: the file ends where the numbers of layers"),
        (LINES[:3], "line 4: the file ends where the sizes of the layers should be"),
        (LINES[:-1], "line 21: the file ends where a bias of layer 2 should be: it is cut off"),
        ([*LINES, "1.0,"], "line 22: the file should end before this line"),
        (damaged(3, "2,3,2,"), "line 3: the numbers of layers, inputs and outputs should be 4"),
        (damaged(3, "2,-3,2,4,"), "line 3: .* should be positive integers"),
        (damaged(3, "2,3.5,2,4,"), "line 3: .* should be positive integers"),
        (damaged(3, "1e300,3,2,4,"), "line 3: .* should be positive integers"),
        (damaged(4, "4,4,2,"), r"line 4: layers \[4, 4, 2\] do not go from 3 inputs"),
        (damaged(7, "1,1,-1,"), "line 7: a greatest input is below the least one"),
        (damaged(8, "0,0,0,"), "line 8: the means should be 4 numbers, found 3"),
        (damaged(9, "1,0,1,1,"), "line 9: the ranges should be positive"),
        (damaged(10, "1.0,2.0,"), "line 10: a row of weights of layer 1 should be 3 numbers"),
        (damaged(10, "1.0,2.0,x,"), "line 10: a row of weights of layer 1 should be numbers with"),
        (damaged(10, "1.0,nan,2,"), "line 10: a row of weights of layer 1 hold NaN or infinity"),
        (damaged(10, "1.0,1e39,2,"), "its weights hold NaN or infinity"),
        (damaged(14, "0.5,0.5,"), "line 14: a bias of layer 1 should be 1 numbers, found 2"),
    ],
)
def test_damage_is_one_line_with_its_number(lines, message, tmp_path):
    with pytest.raises(UsageError, match=message) as error:
        read_nnet(write(tmp_path, lines))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_it_is_no_text(tmp_path):
    (tmp_path / "net.nnet").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UsageError, match=r"not a readable \.nnet file"):
        load_network(tmp_path / "net.nnet")


def test_a_factory_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"a \.nnet file needs no factory"):
        load_network(write(tmp_path, LINES), "package.module:function")


@no_data
@pytest.mark.parametrize("path", ACAS, ids=lambda path: path.stem[14:17])
def test_the_acas_xu_networks_are_their_onnx_twins(path):
    """The ONNX files take normalised inputs, one at a time, and give scaled outputs."""
    ours, twin = load_network(path), load_network(DATA / "onnx" / f"{path.stem}.onnx")
    assert ours.input_shape == (5,) and twin.input_shape == (1, 1, 5)
    low = torch.tensor([0.0, -3.141593, -3.141593, 100.0, 0.0])
    high = torch.tensor([60760.0, 3.141593, 3.141593, 1200.0, 1200.0])
    x = low + torch.rand(200, 5, generator=torch.Generator().manual_seed(0)) * (high - low)
    mean = torch.tensor([19791.091, 0, 0, 650, 600], dtype=torch.float64)
    spread = torch.tensor([60261, 6.28318530718, 6.28318530718, 1100, 1200]).double()
    normalised = ((x.double() - mean) / spread).float()
    y = (ours(x).double() - 7.5188840201005975) / 373.94992
    assert torch.allclose(y, twin(normalised.view(-1, 1, 1, 5)).double(), rtol=0, atol=2e-6)


@no_data
def test_there_are_forty_five_of_them():
    assert len(ACAS) == 45
