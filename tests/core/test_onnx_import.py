"""Networks read from ONNX agree with onnxruntime, or are refused by the node's name."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from advrepair.core.errors import UnsupportedNetworkError, UsageError
from advrepair.core.graph import Network
from advrepair.core.onnx_import import read_onnx

DATA = os.environ.get("ADVREPAIR_DATA")
OPSETS = [8, 11, 13, 17, 22]
NEWEST = onnx.defs.onnx_opset_version()
rng = np.random.default_rng(0)


def values(*shape, positive=False):
    array = rng.normal(size=shape).astype(np.float32)
    return np.abs(array) + np.float32(0.5) if positive else array


def node(operator, inputs, output, **attributes):
    return helper.make_node(operator, inputs.split(), [output], name=f"the_{output}", **attributes)


def model(nodes, shape, constants=None, opset=13, batch="N", output="y", rank=2, kind=1):
    """An ONNX model from x [batch, *shape] to output."""
    constants = constants or {}
    inputs = [helper.make_tensor_value_info("x", kind, [batch, *shape])]
    if opset <= 8:  # as exporters of that time did
        inputs += [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in constants.items()
        ]
    graph = helper.make_graph(
        nodes,
        "test",
        inputs,
        [helper.make_tensor_value_info(output, kind, [None] * rank)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    ir_version = 3 if opset <= 8 else 10
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )


def read(tmp_path, proto) -> Network:
    path = Path(tmp_path) / "net.onnx"
    onnx.save(proto, str(path))
    return read_onnx(path)


def runtime(proto_or_path, x, one_by_one):
    source = proto_or_path if isinstance(proto_or_path, str) else proto_or_path.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [x[i : i + 1] for i in range(len(x))] if one_by_one else [x]
    return np.concatenate([session.run(None, {name: part})[0] for part in parts])


def check(tmp_path, proto, batch="N") -> Network:
    network = read(tmp_path, proto)
    x = rng.normal(size=(3, *network.input_shape))
    x = x.astype(np.float64 if network.dtype == torch.float64 else np.float32)
    want = runtime(proto, x, one_by_one=batch == 1)
    np.testing.assert_allclose(network(torch.from_numpy(x)).numpy(), want, rtol=1e-5, atol=1e-5)
    return network


def kinds(network):
    return [op.kind for op in network.operations]


def axes_node(operator, axes, opset, constants, inputs="x", output="s"):
    """Squeeze and Unsqueeze took their axes as an attribute before opset 13."""
    if opset < 13:
        return node(operator, inputs, output, axes=axes)
    constants[f"{output}_axes"] = np.array(axes)
    return node(operator, f"{inputs} {output}_axes", output)


FLAT = node("Flatten", "h", "y")
CASES = {
    "matmul_add": ([node("MatMul", "x w", "h"), node("Add", "h b", "y")], (4,),
                   {"w": values(4, 3), "b": values(3)}),
    "add_matmul": ([node("MatMul", "x w", "h"), node("Add", "b h", "y")], (4,),
                   {"w": values(4, 3), "b": values(1, 3)}),
    "matmul_rows": ([node("MatMul", "x w", "h"), node("Add", "h b", "r"),
                     node("Flatten", "r", "y")], (1, 1, 4), {"w": values(4, 3), "b": values(3)}),
    "gemm": ([node("Gemm", "x w b", "y", alpha=0.5, beta=2.0)], (4,),
             {"w": values(4, 3), "b": values(3)}),
    "gemm_transposed": ([node("Gemm", "x w b", "y", transB=1)], (4,),
                        {"w": values(3, 4), "b": values(1, 3)}),
    "gemm_scalar_bias": ([node("Gemm", "x w b", "y")], (4,), {"w": values(4, 3), "b": values(1)}),
    "sub_constant": ([node("Sub", "x c", "y")], (4,), {"c": values(4)}),
    "constant_sub": ([node("Sub", "c x", "y")], (4,), {"c": values(1, 4)}),
    "mul_constant": ([node("Mul", "c x", "y")], (4,), {"c": values(1)}),
    "div_constant": ([node("Div", "x c", "y")], (4,), {"c": values(4, positive=True)}),
    "residual": ([node("Relu", "x", "a"), node("Tanh", "x", "b"), node("Add", "a b", "y")],
                 (4,), {}),
    "difference": ([node("Relu", "x", "a"), node("Sub", "a x", "y")], (4,), {}),
    "doubled": ([node("Add", "x x", "y")], (4,), {}),
    "leaky_relu": ([node("LeakyRelu", "x", "y", alpha=0.2)], (4,), {}),
    "leaky_default": ([node("LeakyRelu", "x", "y")], (4,), {}),
    "sigmoid": ([node("Sigmoid", "x", "y")], (4,), {}),
    "tanh": ([node("Tanh", "x", "y")], (4,), {}),
    "reshape": ([node("Reshape", "x t", "y")], (2, 3), {"t": np.array([-1, 6])}),
    "reshape_zero": ([node("Reshape", "x t", "y")], (2, 3), {"t": np.array([0, -1])}),
    "flatten_negative": ([node("Flatten", "x", "y", axis=1)], (2, 3), {}),
    "flatten_late": ([node("Flatten", "x", "y", axis=2)], (1, 3), {}),
    "conv": ([node("Conv", "x w b", "h", pads=[1, 2, 0, 1], strides=[2, 1]), FLAT], (2, 5, 6),
             {"w": values(3, 2, 3, 3), "b": values(3)}),
    "conv_group": ([node("Conv", "x w", "h", group=2, dilations=[2, 1]), FLAT], (2, 6, 5),
                   {"w": values(4, 1, 2, 3)}),
    "conv_upper": ([node("Conv", "x w", "h", auto_pad="SAME_UPPER", strides=[2, 2]), FLAT],
                   (1, 5, 6), {"w": values(2, 1, 4, 3)}),
    "conv_lower": ([node("Conv", "x w", "h", auto_pad="SAME_LOWER"), FLAT], (1, 5, 6),
                   {"w": values(2, 1, 4, 2)}),
    "conv_valid": ([node("Conv", "x w", "h", auto_pad="VALID"), FLAT], (1, 5, 6),
                   {"w": values(2, 1, 4, 2)}),
    "batch_norm": ([node("BatchNormalization", "x g b m v", "h", epsilon=1e-3), FLAT], (3, 2, 2),
                   {"g": values(3), "b": values(3), "m": values(3),
                    "v": values(3, positive=True)}),
    "max_pool": ([node("MaxPool", "x", "h", kernel_shape=[3, 2], strides=[2, 1],
                       pads=[1, 0, 1, 0]), FLAT], (2, 5, 6), {}),
    "average_pool": ([node("AveragePool", "x", "h", kernel_shape=[2, 3], strides=[2, 2]), FLAT],
                     (2, 4, 7), {}),
    "average_counted": ([node("AveragePool", "x", "h", kernel_shape=[3, 3], pads=[1, 1, 0, 1],
                              count_include_pad=1), FLAT], (2, 4, 5), {}),
    "average_uncounted": ([node("AveragePool", "x", "h", kernel_shape=[3, 3], strides=[2, 2],
                                pads=[1, 1, 1, 0]), FLAT], (2, 5, 6), {}),
    "global_pool": ([node("GlobalAveragePool", "x", "h"), FLAT], (3, 4, 5), {}),
    "transpose": ([node("Transpose", "x", "h", perm=[0, 3, 1, 2]), FLAT], (2, 3, 4), {}),
    "identity": ([node("Identity", "x", "h"), node("Relu", "h", "y")], (4,), {}),
    "dropout": ([node("Dropout", "x", "h"), node("Relu", "h", "y")], (4,), {}),
    "cast": ([node("Cast", "x", "h", to=TensorProto.FLOAT), node("Relu", "h", "y")], (4,), {}),
    "dynamic_reshape": (
        [node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Concat", "n m", "t", axis=0),
         node("Reshape", "x t", "y")],
        (2, 3), {"zero": np.array([0]), "m": np.array([-1])},
    ),
    "constant_transposed": ([node("Transpose", "w", "v"), node("MatMul", "x v", "y")], (4,),
                            {"w": values(3, 4)}),
    "dead_code": ([node("Relu", "x", "y"), node("Softmax", "x", "unused", axis=1)], (4,), {}),
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("case", CASES)
def test_operator_agrees_with_onnxruntime(tmp_path, case, opset, batch):
    nodes, shape, constants = CASES[case]
    check(tmp_path, model(nodes, shape, constants, opset, batch), batch)


@pytest.mark.parametrize("opset", OPSETS)
def test_operators_whose_form_changed(tmp_path, opset):
    constants = {"c": values(3)}
    nodes = [
        axes_node("Unsqueeze", [2, -1] if opset >= 11 else [2, 3], opset, constants, "x", "u"),
        axes_node("Squeeze", [3, 2], opset, constants, "u", "q"),
        node("Add", "q c", "y"),
    ]
    check(tmp_path, model(nodes, (3,), constants, opset))
    pads = [0, 0, 1, 2, 0, 0, 0, 1]
    constants = {} if opset < 11 else {"p": np.array(pads)}
    pad = (
        node("Pad", "x", "h", pads=pads, mode="constant")
        if opset < 11
        else node("Pad", "x p", "h", mode="constant")
    )
    network = check(tmp_path, model([pad, FLAT], (2, 3, 4), constants, opset))
    assert kinds(network) == ["pad", "reshape"]
    constants = {}
    if opset < 18:
        mean = node("ReduceMean", "x", "y", axes=[2, 3], keepdims=0)
    else:
        constants["a"] = np.array([-1, -2])
        mean = node("ReduceMean", "x a", "y", keepdims=0)
    check(tmp_path, model([mean], (2, 3, 4), constants, opset))


def test_pad_with_axes(tmp_path):
    constants = {"p": np.array([1, 0]), "a": np.array([-1]), "zero": np.float32(0)}
    constants["zero"] = np.array(0, dtype=np.float32)
    check(tmp_path, model([node("Pad", "x p zero a", "h"), FLAT], (1, 2, 3), constants, 18))


def test_newest_opset_is_read(tmp_path):
    proto = model(
        [node("Gemm", "x w", "h"), node("Relu", "h", "y")], (4,), {"w": values(4, 3)}, NEWEST
    )
    network = read(tmp_path, proto)
    x = torch.randn(3, 4)
    weight = torch.from_numpy(numpy_helper.to_array(proto.graph.initializer[0]).copy())
    torch.testing.assert_close(network(x), (x @ weight).relu())
    proto.opset_import[0].version = NEWEST + 1
    with pytest.raises(UnsupportedNetworkError, match=f"opset {NEWEST + 1}"):
        read(tmp_path, proto)


def test_constant_nodes_and_batch_of_one(tmp_path):
    weight = helper.make_node(
        "Constant", [], ["w"], value=numpy_helper.from_array(values(5, 3), "w")
    )
    shift = helper.make_node("Constant", [], ["c"], value_floats=[1.0, 2.0, 3.0])
    nodes = [weight, shift, node("Flatten", "x", "f"), node("MatMul", "f w", "h"),
             node("Add", "h c", "y")]  # fmt: skip
    network = check(tmp_path, model(nodes, (1, 1, 5), batch=1), batch=1)
    assert network.input_shape == (1, 1, 5)
    assert kinds(network) == ["reshape", "linear"]


def test_reshape_of_a_fixed_batch(tmp_path):
    nodes = [node("Reshape", "x t", "y")]
    check(tmp_path, model(nodes, (2, 3), {"t": np.array([1, 6])}, batch=1), batch=1)
    with pytest.raises(UnsupportedNetworkError, match="moves the batch"):
        read(tmp_path, model(nodes, (2, 3), {"t": np.array([1, -1])}))


def test_exporter_pattern_with_slice_and_product(tmp_path):
    constants = {"one": np.array([1]), "end": np.array([9]), "zero": np.array(0),
                 "axis": np.array([0]), "first": np.array([0])}  # fmt: skip
    nodes = [
        node("Shape", "x", "s"),
        node("Slice", "s one end", "rest"),
        node("Gather", "rest zero", "c"),
        node("Gather", "s zero", "n"),
        node("Mul", "c c", "cc"),
        node("Unsqueeze", "n axis", "n1"),
        node("Unsqueeze", "cc axis", "cc1"),
        node("Concat", "n1 cc1", "t", axis=0),
        node("Reshape", "x t", "y"),
    ]
    assert kinds(check(tmp_path, model(nodes, (3, 3), constants))) == ["reshape"]


def test_float64_is_kept(tmp_path):
    nodes = [node("Gemm", "x w", "h", alpha=0.3), node("Relu", "h", "y")]
    proto = model(nodes, (4,), {"w": rng.normal(size=(4, 3))}, kind=TensorProto.DOUBLE)
    assert check(tmp_path, proto).dtype == torch.float64


def test_a_matmul_that_is_read_twice_keeps_its_bias_apart(tmp_path):
    nodes = [node("MatMul", "x w", "h"), node("Add", "h b", "s"), node("Add", "s h", "y")]
    network = check(tmp_path, model(nodes, (4,), {"w": values(4, 3), "b": values(3)}))
    assert kinds(network) == ["linear", "linear", "add"]


def test_neutral_operations_are_dropped_and_names_are_unique(tmp_path):
    same = [helper.make_node("Relu", ["x"], ["a"], name="r"),
            helper.make_node("Sub", ["a", "z"], ["b"]),
            helper.make_node("Tanh", ["b"], ["c"], name="r"),
            helper.make_node("Sigmoid", ["c"], ["y"])]  # fmt: skip
    network = read(tmp_path, model(same, (4,), {"z": np.zeros(4, np.float32)}))
    assert [op.name for op in network.operations] == ["r", "r_1", "Sigmoid_3"]


@given(
    size=st.tuples(st.integers(5, 7), st.integers(5, 7)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    auto=st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]),
    groups=st.sampled_from([1, 2]),
)
@settings(deadline=None)
def test_any_convolution(tmp_path_factory, size, kernel, stride, dilation, pads, auto, groups):
    if auto.startswith("SAME"):
        dilation = (1, 1)  # onnxruntime ignores the dilation when it pads by itself
    options = {"pads": list(pads)} if auto == "NOTSET" else {"auto_pad": auto}
    conv = node("Conv", "x w b", "h", strides=list(stride), dilations=list(dilation),
                group=groups, **options)  # fmt: skip
    weights = {"w": values(4, 2 // groups, *kernel), "b": values(4)}
    check(tmp_path_factory.mktemp("conv"), model([conv, FLAT], (2, *size), weights))


@given(
    size=st.tuples(st.integers(4, 7), st.integers(4, 7)),
    kernel=st.integers(2, 3),
    stride=st.integers(1, 3),
    pads=st.tuples(*[st.integers(0, 1)] * 4),
    count=st.integers(0, 1),
)
@settings(deadline=None)
def test_any_average_pool(tmp_path_factory, size, kernel, stride, pads, count):
    pool = node("AveragePool", "x", "h", kernel_shape=[kernel, kernel], strides=[stride, stride],
                pads=list(pads), count_include_pad=count)  # fmt: skip
    check(tmp_path_factory.mktemp("pool"), model([pool, FLAT], (2, *size)))


@given(st.permutations([2, 3, 4, 1]), st.integers(0, 4), st.booleans())
@settings(deadline=None)
def test_any_reshape(tmp_path_factory, shape, inferred, copied):
    target = [0 if copied else -1, *shape]
    if inferred and copied:
        target[inferred] = -1
    nodes = [node("Reshape", "x t", "h"), FLAT]
    check(tmp_path_factory.mktemp("r"), model(nodes, (4, 6), {"t": np.array(target)}))


ROOT, HALF = np.float32(1.4142135), np.float32(0.70710677)


def erf_of(source, root=ROOT, operator="Div", one=1.0):
    """The nodes of ``source / root``, its erf and one more than that; and their constants."""
    nodes = [node(operator, f"{source} r", "e"), node("Erf", "e", "f"), node("Add", "f one", "g")]
    numbers = {"r": root, "one": one, "half": 0.5, "two": [2.0]}
    return nodes, {name: np.array(value, np.float32) for name, value in numbers.items()}


GELUS = {  # nodes, and by what the GELU is multiplied
    "torch": (erf_of("x"), [node("Mul", "x g", "h"), node("Mul", "h half", "y")]),
    "halved input": (erf_of("x"), [node("Mul", "x half", "h"), node("Mul", "h g", "y")]),
    "halved share": (erf_of("x"), [node("Mul", "g half", "h"), node("Mul", "h x", "y")]),
    "by a product": (erf_of("x", HALF, "Mul"), [node("Mul", "half x", "h"),
                                                 node("Mul", "g h", "y")]),
    "twice as much": (erf_of("x"), [node("Mul", "x g", "y")]),
    "of a scaled input": (erf_of("s"), [node("Mul", "s g", "h"), node("Mul", "h half", "y")]),
}  # fmt: skip


@pytest.mark.parametrize("case", GELUS)
def test_a_gelu_that_is_written_out_is_read_as_one(tmp_path, case):
    (nodes, constants), rest = GELUS[case]
    before = [node("Mul", "x two", "s")] if case == "of a scaled input" else []
    network = check(tmp_path, model([*before, *nodes, *rest], (4,), constants))
    scales = (["scale"] if before else []), (["scale"] if case == "twice as much" else [])
    assert kinds(network) == [*scales[0], "gelu", *scales[1]]


def test_an_erf_alone_and_the_operator_gelu(tmp_path):
    assert kinds(check(tmp_path, model([node("Erf", "x", "y")], (4,)))) == ["erf"]
    for how in ({}, {"approximate": "none"}):
        gelu = model([node("Gelu", "x", "y", **how)], (4,), opset=20)
        assert kinds(check(tmp_path, gelu)) == ["gelu"]
    other = model([node("Gelu", "x", "y", approximate="tanh")], (4,), opset=20)
    with pytest.raises(UnsupportedNetworkError, match=r"the_y.*approximate='tanh'.*'none'"):
        read(tmp_path, other)


NO_GELUS = {
    "another root": (erf_of("x", 1.5), [node("Mul", "x g", "y")], "the_y.*multiplies"),
    "another shift": (erf_of("x", one=0.5), [node("Mul", "x g", "y")], "the_y.*multiplies"),
    "a matrix between": (erf_of("m"), [node("Mul", "x g", "y")], "the_y.*multiplies"),
    "of unequal numbers": (erf_of("m", [ROOT] * 3 + [1.0]), [node("Mul", "m g", "y")],
                           "the_y.*multiplies"),
    "by tanh": (([node("Mul", "x x", "g")], {}), [node("Tanh", "g", "y")], "the_g.*multiplies"),
    "cubed": (([node("Pow", "x two", "g")], {"two": values()}), [node("Tanh", "g", "y")],
              "the_g.*Pow.*not supported"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_GELUS)
def test_what_is_nearly_a_gelu_is_refused(tmp_path, case):
    (nodes, constants), rest, message = NO_GELUS[case]
    before, given = [node("MatMul", "x w", "m")], constants | {"w": values(4, 4)}
    with pytest.raises(UnsupportedNetworkError, match=message):
        read(tmp_path, model([*before, *nodes, *rest], (4,), given))


REFUSED = {
    "operator": ([node("Sin", "x", "y")], (4,), {}, "the_y.*Sin"),
    "softmax": ([node("Softmax", "x", "y", axis=1)], (4,), {}, "up to its logits"),
    "product": ([node("Relu", "x", "a"), node("Mul", "a x", "y")], (4,), {}, "the_y.*multiplies"),
    "quotient": ([node("Div", "c x", "y")], (4,), {"c": values(4)}, "divides by a computed"),
    "transposed_input": ([node("Gemm", "x w", "y", transA=1)], (4,), {"w": values(4, 3)},
                         "transA = 1"),
    "matrix_left": ([node("MatMul", "w x", "y")], (4,), {"w": values(3, 3)}, "a constant"),
    "matmul_of_values": ([node("MatMul", "x x", "y")], (4,), {}, "computed; only a constant"),
    "matmul_of_rows": ([node("MatMul", "x w", "h"), FLAT], (2, 4), {"w": values(4, 3)},
                       "flatten the input first"),
    "wrong_width": ([node("MatMul", "x w", "y")], (5,), {"w": values(4, 3)}, "must fit"),
    "broadcast": ([node("Relu", "x", "a"), node("Add", "a c", "h"), FLAT], (1, 4),
                  {"c": values(3, 4)}, "does not fit its input"),
    "batch_constant": ([node("Add", "x c", "y")], (4,), {"c": values(2, 4)}, "does not fit"),
    "moved_batch": ([node("Transpose", "x", "y", perm=[1, 0])], (4,), {}, "move the batch"),
    "transpose_default": ([node("Transpose", "x", "y")], (4,), {}, "move the batch"),
    "flatten_all": ([node("Flatten", "x", "y", axis=0)], (4,), {}, "joins the batch"),
    "flatten_rows": ([node("Flatten", "x", "y", axis=2)], (3, 4), {}, "joins the batch"),
    "reshape_batch": ([node("Reshape", "x t", "y")], (4,), {"t": np.array([2, -1])},
                      "moves the batch"),
    "reshape_mixes": ([node("Reshape", "x t", "y")], (4,), {"t": np.array([-1, 8])}, "cannot"),
    "batch_arithmetic": (
        [node("Shape", "x", "s"), node("Add", "s s", "t"), node("Reshape", "x t", "y")],
        (4,), {}, "the_t"),
    "ceil": ([node("MaxPool", "x", "h", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), FLAT],
             (1, 5, 4), {}, "ceil"),
    "dilated_pool": ([node("MaxPool", "x", "h", kernel_shape=[2, 2], dilations=[2, 2]), FLAT],
                     (1, 5, 4), {}, "dilated"),
    "pool_sides": ([node("MaxPool", "x", "h", kernel_shape=[2, 2], pads=[0, 0, 1, 1]), FLAT],
                   (1, 5, 4), {}, "differs between two sides"),
    "one_dimensional": ([node("Conv", "x w", "h"), FLAT], (2, 5), {"w": values(3, 2, 2)},
                        r"\[batch,C,H,W\]"),
    "pad_value": ([node("Pad", "x p v", "h"), FLAT], (1, 2, 2),
                  {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "v": values()}, "other than 0"),
    "pad_channels": ([node("Pad", "x p", "h"), FLAT], (1, 2, 2),
                     {"p": np.array([0, 1, 0, 0, 0, 0, 0, 0])}, "the channels"),
    "pad_reflect": ([node("Pad", "x p", "h", mode="reflect"), FLAT], (1, 2, 2),
                    {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, "mode"),
    "pad_crop": ([node("Pad", "x p", "h"), FLAT], (1, 3, 3),
                 {"p": np.array([0, 0, -1, 0, 0, 0, 0, 0])}, "crops"),
    "squeeze_batch": ([node("Squeeze", "x a", "y")], (4, 2), {"a": np.array([0])}, "the batch"),
    "squeeze_all": ([node("Squeeze", "x", "y")], (4, 1), {}, "name them"),
    "unsqueeze_batch": ([node("Unsqueeze", "x a", "h"), FLAT], (4,), {"a": np.array([0])},
                        "the batch"),
    "cast": ([node("Cast", "x", "h", to=TensorProto.DOUBLE),
              node("Cast", "h", "y", to=TensorProto.FLOAT)], (4,), {}, "precision"),
    "nan": ([node("Add", "x c", "y")], (4,), {"c": np.full(4, np.nan, np.float32)}, "NaN"),
    "zero_divisor": ([node("Div", "x c", "y")], (4,), {"c": np.zeros(4, np.float32)}, "infinity"),
    "mixed_precision": ([node("Mul", "x c", "y")], (4,), {"c": values(4).astype(np.float16)},
                        "float16"),
    "images_out": ([node("Relu", "x", "y")], (2, 3), {}, r"not \[batch,K\]"),
    "nothing": ([node("Identity", "x", "y")], (4,), {}, "nothing to do"),
    "constant_output": ([node("Identity", "c", "y")], (4,), {"c": values(4)},
                        "does not depend on the input"),
    "mean_of_channels": ([node("ReduceMean", "x", "h", axes=[1]), FLAT], (2, 3, 3), {},
                         "height and width"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusal_says_where_and_why(tmp_path, case):
    nodes, shape, constants, message = REFUSED[case]
    with pytest.raises(UnsupportedNetworkError, match=message) as error:
        read(tmp_path, model(nodes, shape, constants))
    assert "\n" not in str(error.value) and "net.onnx" in str(error.value)


def test_a_used_further_output_is_refused(tmp_path):
    pool = helper.make_node("MaxPool", ["x"], ["v", "i"], name="pool", kernel_shape=[2, 2])
    cast = node("Cast", "i", "h", to=TensorProto.FLOAT)
    with pytest.raises(UnsupportedNetworkError, match=r"'pool'.*further output 'i'"):
        read(tmp_path, model([pool, cast, FLAT], (1, 4, 4)))
    mask = helper.make_node("Dropout", ["x"], ["h", "mask"], name="drop")
    check(tmp_path, model([mask, node("Relu", "h", "y")], (4,)))


def test_random_dropout_is_refused(tmp_path):
    constants = {"r": np.array(0.5, np.float32), "t": np.array(True)}
    nodes = [node("Dropout", "x r t", "h"), node("Relu", "h", "y")]
    with pytest.raises(UnsupportedNetworkError, match="at random"):
        read(tmp_path, model(nodes, (4,), constants))


def test_training_batch_norm_is_refused(tmp_path):
    constants = {k: values(3, positive=True) for k in "gbmv"}
    norm = helper.make_node(
        "BatchNormalization", ["x", "g", "b", "m", "v"], ["y", "m2", "v2"], training_mode=1
    )
    with pytest.raises(UnsupportedNetworkError, match="training_mode = 1"):
        read(tmp_path, model([norm], (3,), constants, opset=15))


def test_foreign_domain_is_refused(tmp_path):
    other = helper.make_node("Relu", ["x"], ["y"], name="n", domain="com.example")
    with pytest.raises(UnsupportedNetworkError, match="'n'"):
        read(tmp_path, model([other], (4,)))


@pytest.mark.parametrize("case", ["two outputs", "two inputs", "batch of 8", "open axis", "half"])
def test_signature_is_refused(tmp_path, case):
    kind = TensorProto.FLOAT16 if case == "half" else TensorProto.FLOAT
    proto = model([node("Relu", "x", "y")], (4,), kind=kind,
                  batch=8 if case == "batch of 8" else "N")  # fmt: skip
    if case == "two outputs":
        proto.graph.output.append(helper.make_tensor_value_info("x", 1, [None, 4]))
    if case == "two inputs":
        proto.graph.input.append(helper.make_tensor_value_info("x2", 1, [None, 4]))
    if case == "open axis":
        proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"
    with pytest.raises(UnsupportedNetworkError, match=r"net\.onnx") as error:
        read(tmp_path, proto)
    assert "\n" not in str(error.value)


def test_old_opset_is_refused(tmp_path):
    with pytest.raises(UnsupportedNetworkError, match="opset 6"):
        read(tmp_path, model([node("Relu", "x", "y")], (4,), opset=6))


@pytest.mark.parametrize("content", [b"", b"junk that is no protobuf", b"\x80\x04\x95", b"PK\x03"])
def test_not_an_onnx_file(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.onnx: not an? ") as error:
        read_onnx(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_file(tmp_path, share):
    proto = model([node("Gemm", "x w", "y")], (40,), {"w": values(40, 30)})
    content = proto.SerializeToString()
    (tmp_path / "cut.onnx").write_bytes(content[: int(share * len(content))])
    with pytest.raises(UsageError, match=r"cut\.onnx"):
        read_onnx(tmp_path / "cut.onnx")


def test_missing_file_and_directory(tmp_path):
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(UsageError, match="not a readable ONNX file"):
            read_onnx(path)


def test_invalid_graph_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="not a valid ONNX file"):
        read(tmp_path, model([node("Relu", "nowhere", "y")], (4,)))


def _networks() -> list[Path]:
    return sorted(Path(DATA).rglob("*.onnx")) if DATA else []


@pytest.mark.skipif(not DATA, reason="ADVREPAIR_DATA is not set: no networks to read")
def test_every_shared_network_agrees_with_onnxruntime():
    found = _networks()
    assert len(found) >= 48
    for path in found:
        network = read_onnx(path)
        x = rng.random((4, *network.input_shape)).astype(np.float32)
        want = runtime(str(path), x, one_by_one=True)
        have = network(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5, err_msg=str(path))
        assert {op.kind for op in network.operations} <= {"reshape", "linear", "relu", "conv2d"}
