"""docs/operators.md says what the code does with every operation."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exports import a_repair
from onnx import TensorProto, helper, numpy_helper

from advrepair.checker.files import Unsupported
from advrepair.checker.network import Network as Checked
from advrepair.core.box import Box
from advrepair.core.errors import UnsupportedNetworkError, UsageError
from advrepair.core.graph import STEPS, Network
from advrepair.core.interfaces import Verifier
from advrepair.core.onnx_import import read_onnx
from advrepair.core.onnx_operators import OPERATORS
from advrepair.core.onnx_writer import network_model
from advrepair.core.relu_form import check_relu_form
from advrepair.core.torch_export import ExportableNetwork, torchscript
from advrepair.core.torch_layers import MODULES
from advrepair.core.torch_operators import FUNCTIONS, METHODS
from advrepair.plugins.allocators.none import NoAllocator
from advrepair.plugins.verifiers.branch_and_bound import BranchAndBound
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.plugins.verifiers.interval import Interval
from advrepair.plugins.verifiers.sets import can_follow
from advrepair.plugins.verifiers.zonotope import Zonotope
from advrepair.testing.networks import Sketch

PAGE = Path(__file__).parent.parent / "docs" / "operators.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="no checkout: no docs/")

VECTOR, IMAGE = (4,), (2, 6, 6)
CONSTANTS = {
    "c": np.arange(1.0, 5.0), "w": np.ones((4, 3)), "k": np.ones((3, 2, 2, 2)),
    "v": np.array([2.0, 3.0]), "axes": np.array([2, 3]), "one": np.array([1]),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "target": np.array([-1, 72]),
}  # fmt: skip
# Every operator of ONNX that is read, in the forms that become different operations.
EXAMPLES: dict[str, list[tuple[tuple[int, ...], str, dict[str, Any]]]] = {
    "Add": [(VECTOR, "x x", {}), (VECTOR, "x c", {})],
    "AveragePool": [
        (IMAGE, "x", {"kernel_shape": [2, 2]}),
        (IMAGE, "x", {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]}),
    ],
    "BatchNormalization": [(IMAGE, "x v v v v", {})],
    "Cast": [(VECTOR, "x", {"to": TensorProto.FLOAT})],
    "Conv": [(IMAGE, "x k", {}), (IMAGE, "x k", {"pads": [1, 0, 0, 0]})],
    "Div": [(VECTOR, "x c", {})],
    "Dropout": [(VECTOR, "x", {})],
    "Erf": [(VECTOR, "x", {})],
    "Flatten": [(IMAGE, "x", {})],
    "Gelu": [(VECTOR, "x", {})],
    "Gemm": [(VECTOR, "x w", {})],
    "GlobalAveragePool": [(IMAGE, "x", {})],
    "Identity": [(VECTOR, "x", {})],
    "LeakyRelu": [(VECTOR, "x", {})],
    "MatMul": [(VECTOR, "x w", {})],
    "MaxPool": [(IMAGE, "x", {"kernel_shape": [2, 2]})],
    "Mul": [(VECTOR, "x c", {})],
    "Pad": [(IMAGE, "x pads", {})],
    "ReduceMean": [(IMAGE, "x axes", {}), (IMAGE, "x axes", {"keepdims": 0})],
    "Relu": [(VECTOR, "x", {})],
    "Reshape": [(IMAGE, "x target", {})],
    "Sigmoid": [(VECTOR, "x", {})],
    "Squeeze": [((1, 4), "x one", {})],
    "Sub": [(VECTOR, "x x", {}), (VECTOR, "x c", {})],
    "Tanh": [(VECTOR, "x", {})],
    "Transpose": [(IMAGE, "x", {"perm": [0, 3, 1, 2]})],
    "Unsqueeze": [(VECTOR, "x one", {})],
}
KINDS: dict[str, Callable[[], Sketch]] = {
    "linear": lambda: Sketch(0, VECTOR).linear(3),
    "conv2d": lambda: Sketch(0, IMAGE).conv2d(3, 2),
    "scale": lambda: Sketch(0, VECTOR).scale(),
    "max_pool2d": lambda: Sketch(0, IMAGE).max_pool2d(2, 2),
    "avg_pool2d": lambda: Sketch(0, IMAGE).avg_pool2d(2),
    "pad": lambda: Sketch(0, IMAGE).apply("pad", pad=(1, 0, 1, 0)),
    "reshape": lambda: Sketch(0, IMAGE).flatten(),
    "permute": lambda: Sketch(0, IMAGE).apply("permute", axes=(2, 0, 1)),
    "add": lambda: Sketch(0, VECTOR).add("input"),
    **{
        kind: lambda kind=kind: Sketch(0, VECTOR).apply(kind)
        for kind in ("relu", "sigmoid", "tanh", "erf", "gelu")
    },
}
COLUMNS = (
    "operation", "read from ONNX", "deeppoly", "branch-and-bound", "interval", "zonotope",
    "checker", "ONNX file", "torch files", "form `relu`",
)  # fmt: skip


def read(
    folder: Path, operator: str, shape: tuple[int, ...], inputs: str, attributes: dict[str, Any]
) -> Network:
    """A file of the operator, a Relu and a Flatten."""
    nodes = [
        helper.make_node(operator, inputs.split(), ["y"], name="it", **attributes),
        helper.make_node("Relu", ["y"], ["z"], name="last"),
        helper.make_node("Flatten", ["z"], ["out"], name="flat"),
    ]
    used = {name: CONSTANTS[name] for name in inputs.split() if name != "x"}
    stored = [
        numpy_helper.from_array(a.astype(np.float32 if a.dtype == float else np.int64), n)
        for n, a in used.items()
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, None])],
        stored,
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "net.onnx")
    return read_onnx(folder / "net.onnx")


def becomes(folder: Path, operator: str) -> set[str]:
    """The kinds of operation that an operator is read as."""
    made = [read(folder, operator, *example) for example in EXAMPLES[operator]]
    return {op.kind for net in made for op in net.operations if op.name not in ("last", "flat")}


def whole(kind: str) -> Network:
    """A network of some layers, with the operation first."""
    sketch = KINDS[kind]()
    return sketch.flatten().linear(4).relu().linear(3).finish()


def works(act: Callable[[], object]) -> str:
    """``yes``, or ``no`` where it is refused by the node's name."""
    try:
        act()
    except (UsageError, Unsupported) as error:
        assert "_0" in str(error) and "\n" not in str(error)
        return "no"
    return "yes"


AS_ROWS = {"yes": "as deeppoly", "no": "no"}


def bounded(network: Network, verifier: Verifier) -> None:
    """Bounds of a small box, which are numbers."""
    x = torch.rand(1, *network.input_shape, dtype=torch.float64)
    params = {name: t.double() for name, t in network.tensors.items()}
    C, d = torch.eye(3, dtype=torch.float64)[None], torch.zeros(1, 3, dtype=torch.float64)
    box = Box(x - 0.01, x + 0.01)
    found = verifier.prepare(network)(params, box, C, d)
    assert bool(found.minimum(box).isfinite().all())


def row(kind: str, sources: dict[str, set[str]]) -> str:
    """The row of the table that the code gives."""
    network = whole(kind)
    repaired = a_repair(network, NoAllocator())
    tensors = {name: t.numpy() for name, t in network.tensors.items()}
    written = onnx.load_from_string(network_model(network)).graph.node
    name = f"base/{network.operations[0].name}"
    mine = [node.op_type for node in written if node.name in (name, *_below(name, written))]
    cells = (
        f"`{kind}`",
        ", ".join(f"`{each}`" for each in sorted(sources[kind])),
        works(lambda: bounded(network, DeepPoly())),
        works(lambda: BranchAndBound().prepare_branches(network)),
        works(lambda: bounded(network, Interval())),
        "sets" if can_follow(network) else AS_ROWS[works(lambda: bounded(network, Zonotope()))],
        works(lambda: Checked(network.structure(), tensors)),
        ", ".join(f"`{each}`" for each in dict.fromkeys(mine)),
        works(lambda: torchscript(ExportableNetwork(repaired).eval())),
        works(lambda: check_relu_form(repaired)),
    )
    return f"| {' | '.join(cells)} |"


def _below(name: str, nodes: list[onnx.NodeProto]) -> list[str]:
    return [node.name for node in nodes if node.name.startswith(f"{name}/")]


def test_the_table_is_what_the_code_does(tmp_path):
    assert EXAMPLES.keys() == OPERATORS.keys() and KINDS.keys() == STEPS.keys()
    sources: dict[str, set[str]] = {kind: set() for kind in STEPS}
    for operator in EXAMPLES:
        for kind in becomes(tmp_path, operator):
            sources[kind].add(operator)
    text = PAGE.read_text(encoding="utf-8")
    table = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    table += [row(kind, sources) for kind in STEPS]
    assert "\n".join(table) in text, "docs/operators.md lacks\n" + "\n".join(table)


def named(text: str, title: str) -> set[str]:
    """The names in the second cell of a row."""
    (cell,) = re.findall(rf"^\| {title} \| (.*) \|$", text, re.M)
    return set(re.findall(r"`([^`]+)`", cell))


def test_what_leaves_nothing_behind_is_named(tmp_path):
    gone = {operator for operator in EXAMPLES if not becomes(tmp_path, operator)}
    assert named(PAGE.read_text(encoding="utf-8"), "ONNX, dropped") == gone


def test_every_name_of_torch_that_is_read_is_there():
    text = PAGE.read_text(encoding="utf-8")
    layers = {layer.__name__ for layer in MODULES} - {"Network"}
    assert named(text, "torch layers") == layers
    functions = {f.__name__.replace("special_", "special.") for f in FUNCTIONS}
    assert named(text, "torch functions") == functions
    assert named(text, "torch methods") == set(METHODS)


def test_an_operation_that_nobody_knows_is_refused_everywhere():
    """So that a cell of the table can say no."""
    network = whole("tanh")
    first, *rest = network.operations
    foreign = type(first)(first.name, "swish", first.inputs, first.shape)
    network.operations = (foreign, *rest)
    for prepare in (DeepPoly().prepare, Interval().prepare, Zonotope().prepare):
        with pytest.raises(UnsupportedNetworkError, match=r"'tanh_0' \(swish\) has no rule"):
            prepare(network)
    with pytest.raises(UnsupportedNetworkError, match=r"'tanh_0' \(swish\) has no rule"):
        BranchAndBound().prepare_branches(network)
    with pytest.raises(Unsupported, match="'tanh_0': no rule for such a 'swish'"):
        Checked(network.structure(), {name: t.numpy() for name, t in network.tensors.items()})
    with pytest.raises(UnsupportedNetworkError, match=r"'tanh_0' \(swish\) cannot be exported"):
        network_model(network)
